"""Bytes, wherever they lie: folders, containers, the checkpoint read from them."""
