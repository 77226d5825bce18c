"""``python -m axk1``: the command line, where its script is not on the path."""

from axk1.cli.main import main

main()
