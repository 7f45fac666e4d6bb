"""Options that several commands declare alike."""

from collections.abc import Callable
from typing import Any

import click


def setting(
    names: str, metavar: str, kind: "click.ParamType[Any]", default: object, text: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator of an option with a default, which the help shows.

    Args:
        names: of the option, and of its parameter where it has another; separated by a space.
        metavar: stands for the value in the help.
        kind: type of the value.
        default: value where the option is not given.
        text: help.
    """
    return click.option(
        *names.split(), metavar=metavar, type=kind, default=default, show_default=True, help=text
    )
