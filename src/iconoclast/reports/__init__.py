"""Reports for people to read: summaries, tables, plots."""
