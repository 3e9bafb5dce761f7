"""Runs: the folder, the pipeline, the export."""
