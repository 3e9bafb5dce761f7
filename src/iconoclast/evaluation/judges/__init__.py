"""Judges: a second opinion on what a response is."""
