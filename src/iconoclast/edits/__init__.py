"""Edits: one pure-data Edit, applied live, as an adapter, or merged into the weights."""
