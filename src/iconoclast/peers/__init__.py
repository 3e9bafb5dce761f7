"""Other tools' formats, one package a tool."""
