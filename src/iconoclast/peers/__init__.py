"""Other tools' formats, one package a tool."""

PEER = "heretic"
"""The tool that the command line names in its flags and its help; stands here because the registry loads torch."""
