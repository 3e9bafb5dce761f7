"""Edits: pure data, applied live, as an adapter, or merged into the weights."""
