"""Other tools' formats, one package a tool."""

PEER = "heretic"
"""The peer in the command line's flags and help; it stands here because the registry loads torch."""
