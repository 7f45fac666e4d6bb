"""`python -m perception` is the `perception` command."""

from perception.cli import main

main()
