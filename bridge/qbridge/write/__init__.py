"""Carried out and proved: jobs, the writer, its budget, staging."""
