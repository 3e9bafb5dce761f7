"""`python -m iconoclast` is `iconoclast`."""

from iconoclast.cli.app import main

main()
