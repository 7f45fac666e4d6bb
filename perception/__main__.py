"""The `perception` command, installed or as `python -m perception`."""

import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


def main() -> None:
    """Run the command; Ctrl-C ends it quietly, while its modules load as well."""
    try:
        from perception.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
