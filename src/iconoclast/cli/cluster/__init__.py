"""The commands of `iconoclast cluster`."""
