"""Straight into an engine: its own loader is given the tensors of a conversion, and nothing is written."""
