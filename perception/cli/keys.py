"""`perception keys`: the pair of this host, and the keys of other hosts with their rights."""

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perception.cli.standard_streams import show
from perception.io.out_path import OutFolder

if TYPE_CHECKING:
    from perception.bus.trust import Entry

_folder = click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="keys",
    show_default=True,
    help="Folder of keys, as the profile's key 'keys' names it.",
)


@click.group()
def keys() -> None:
    """Keys of hosts: they encrypt graphs across hosts, and decide who may do what.

    On each host: `perception keys new`, then `perception keys show` and, on the other hosts, `perception keys
    trust` with what that prints. See `perception guide security`.
    """


@keys.command()
@click.argument("folder", type=OutFolder(), default="keys")
def new(folder: Path) -> None:
    """Make the pair of this host in FOLDER (default: keys).

    A profile names the folder in its key 'keys'.
    """
    from perception.bus.keys import new_keys

    show(f"{new_keys(folder)}: keys made; keep them secret; perception keys show prints the public key")


@keys.command(name="show")
@_folder
def show_key(folder: Path) -> None:
    """Print the public key of this host.

    It is no secret.
    """
    from perception.bus.keys import load
    from perception.bus.trust import hex_of

    key = hex_of(load(folder).public)
    name = re.sub("[^A-Za-z0-9_-]", "-", platform.node())[:64] or "host"
    show(key)
    show(f"on another host: perception keys trust {name} {key} --publish 'camera/*'", err=True)


def _right(name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--{name}", metavar="PATTERN", multiple=True, help=f"{text}; may be repeated.")


@keys.command()
@click.argument("name")
@click.argument("key")
@_right("subscribe", "Topics of this host that it may receive, such as 'state/*' or '*'")
@_right("publish", "Topics that are accepted from it")
@_right("control", "Topics control/... that are accepted from it, such as control/fusion")
@_folder
def trust(
    name: str,
    key: str,
    subscribe: tuple[str, ...],
    publish: tuple[str, ...],
    control: tuple[str, ...],
    folder: Path,
) -> None:
    """Store a key and its rights.

    NAME is the host; an earlier entry of this name is replaced. KEY is what `perception keys show` prints
    there. The entry takes effect within a second.
    """
    from pydantic import ValidationError

    from perception.bus.trust import FILE, Entry, add
    from perception.errors import ProfileError
    from perception.profile.problems import problems

    if not (subscribe or publish or control):
        raise click.UsageError("give at least one of --subscribe, --publish, --control")
    if not re.fullmatch("[0-9a-fA-F]{64}", key):
        raise click.BadParameter("expected the 64 digits that perception keys show prints", param_hint="KEY")
    try:
        entry = Entry(key=key.lower(), subscribe=subscribe, publish=publish, control=control)
    except ValidationError as error:
        raise ProfileError(problems(error)) from error
    add(folder, name, entry)
    show(f"{folder / FILE}: {_described(name, entry)}")


@keys.command()
@click.argument("name")
@_folder
def revoke(name: str, folder: Path) -> None:
    """Remove the key of a host.

    Running nodes disconnect the host NAME within a second.
    """
    from perception.bus.trust import FILE, remove

    remove(folder, name)
    show(f"{folder / FILE}: '{name}' is no longer trusted")


@keys.command(name="list")
@_folder
def list_keys(folder: Path) -> None:
    """List trusted hosts and their rights."""
    from perception.bus.keys import load
    from perception.bus.trust import FILE, hex_of, read

    show(f"this host: key {hex_of(load(folder).public)}: everything")
    entries = read(folder / FILE)
    for name, entry in entries.items():
        show(_described(name, entry))
    if not entries:
        show(f"{folder / FILE} names no host: only copies of this folder are trusted", err=True)


def _described(name: str, entry: "Entry") -> str:
    rights = {"subscribe": entry.subscribe, "publish": entry.publish, "control": entry.control}
    given = "; ".join(f"{right} {', '.join(topics)}" for right, topics in rights.items() if topics)
    return f"{name}: key {entry.key}: {given or 'nothing'}"
