"""The entry point of the command `axk1` and of ``python -m axk1``."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it with 130 also while its modules are still being imported."""
    try:
        from axk1.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
