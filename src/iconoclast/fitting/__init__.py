"""Edits whose directions and strengths are fitted by gradient."""
