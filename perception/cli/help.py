"""Help of a group of commands: every command with its whole first sentence, in sections."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

_NEVER_CUT = 10_000


class Group(click.Group):
    """A group whose help lists each command with the whole first sentence of its own help.

    Args:
        sections: names of the commands by the title under which help lists them; the rest under "Commands".
    """

    group_class = type  # subgroups are of this class too

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._sections = dict(sections or {})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section: its commands and what they do."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = {
            name: command.get_short_help_str(_NEVER_CUT)
            for name, command in commands.items()
            if command is not None and not command.hidden
        }
        width = max(map(len, rows))
        sectioned = {name for names in self._sections.values() for name in names}
        rest = [name for name in rows if name not in sectioned]
        for title, names in {**self._sections, "Commands": rest}.items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([(f"{name:{width}}", rows[name]) for name in names])
