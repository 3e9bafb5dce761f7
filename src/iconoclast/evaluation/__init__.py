"""Evaluation: what an edit does to responses and to the distribution of the next token."""
