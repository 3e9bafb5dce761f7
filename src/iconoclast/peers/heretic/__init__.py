"""heretic: its journals read, its trials made again as Edits, its program as a job."""
