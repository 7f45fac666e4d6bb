"""A group of commands whose help shows what each of them does without cutting it."""

import click

_NEVER_CUT = 10_000


class Group(click.Group):
    """Lists its commands with the whole first sentence of their help, folded to the terminal."""

    group_class = type  # groups below it are of this class too

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and what they do."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(_NEVER_CUT))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
