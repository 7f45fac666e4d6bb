"""The `perception` command, installed or as `python -m perception`."""

import sys

from perception.errors import INTERRUPTED


def main() -> None:
    """Run the command; Ctrl-C ends it quietly, while its modules load as well."""
    try:
        from perception.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
