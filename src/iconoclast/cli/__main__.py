"""`python -m iconoclast.cli` is `iconoclast`."""

from iconoclast.cli.app import main

main()
