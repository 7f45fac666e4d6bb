"""Options that several commands declare alike."""

from collections.abc import Callable
from typing import Any

import click

from perception.bus.domains import JOINED_DOMAIN
from perception.errors import SessionError
from perception.io.out_path import OutFile


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


def overriding(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator of `--set`; `what` names the profile whose keys it overrides."""
    return click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help=f"Override a key of {what}, e.g. fusion.hop_ms=200; may be repeated.",
    )


joined_domain = click.option("--domain", metavar="NAME", help=JOINED_DOMAIN)
this_host = click.option(
    "--host", metavar="NAME", help="Start the nodes of this host of the profile: [host.NAME]."
)


def connecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--connect`, `--keys` and `--insecure`: read another host instead of this one."""
    for option in (
        click.option("--insecure", is_flag=True, help="With --connect: read a host without keys."),
        click.option("--keys", metavar="DIR", type=click.Path(), help="With --connect: folder of the keys."),
        click.option(
            "--connect",
            metavar="HOST",
            help="Read the graph of another host: HOST, HOST:PORT or tcp://HOST:PORT.",
        ),
    ):
        command = option(command)
    return command


trusting = click.option(
    "--trust",
    is_flag=True,
    help="Open the files, models and heads that FILE names. Without it only what ships is used.",
)
session_out = click.option(
    "--out", metavar="FILE", type=OutFile(SessionError), required=True, help="Session file to write."
)
run_seconds = click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop S seconds after the first state (without a fusion: the first message).",
)
