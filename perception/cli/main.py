"""The `perception` command. Each subcommand imports what it needs when it runs, so that all start fast."""

import io
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from perception.cli.bench import bench
from perception.cli.guide import guide
from perception.cli.help import Group
from perception.cli.keys import keys
from perception.cli.options import connecting, joined_domain, overriding, run_seconds, this_host
from perception.cli.record import record
from perception.cli.replay import fuse, replay, verify
from perception.cli.search import search
from perception.cli.session import session
from perception.cli.simulate import simulate
from perception.cli.standard_streams import open_closed_streams, show
from perception.cli.swap import swap
from perception.cli.torture import torture
from perception.cli.training import COMMANDS as TRAINING_COMMANDS
from perception.errors import DISTRIBUTION, INTERRUPTED, PerceptionError
from perception.errors.credentials import CleanFormatter, without_credentials
from perception.io.out_path import OutFile, OutFolder

_QUIET_S: Final = 2.0
_NODES_LISTEN_S: Final = 2.6
"""A node publishes its health once a second; a rate needs two messages, and a hang shows after 2.5 s."""


_SECTIONS: Final = {
    "Run a graph": ("up", "down", "nodes", "echo", "say", "swap", "keys"),
    "Sessions": ("record", "replay", "session", "search", "mark", "labels"),
    "Training": ("train", "evaluate", "reproduce"),
    "This machine": ("doctor", "bench", "simulate"),
    "Reference": ("guide", "schema"),
}


@click.group(cls=Group, sections=_SECTIONS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def cli() -> None:
    """Fuse camera, microphone and text into one state per tick, live.

    Start with:  perception up demo
    """


@cli.command()
@click.argument("profile")
@run_seconds
@overriding("the profile")
@click.option(
    "--domain",
    metavar="NAME",
    help="Domain to run the graph in. Default: $PERCEPTION_DOMAIN, else the profile's own.",
)
@this_host
@click.option(
    "--json", "json_file", metavar="FILE", type=OutFile(), help="Also write the summary to FILE as JSON."
)
def up(
    profile: str,
    seconds: float | None,
    overrides: tuple[str, ...],
    domain: str | None,
    host: str | None,
    json_file: Path | None,
) -> int:
    """Start the nodes of PROFILE and show them until Ctrl-C, then print a summary.

    PROFILE is the name of a profile that ships, such as demo, or a .toml file.
    """
    from perception.cli.up import run, with_domain, with_host

    return run(profile, with_host(with_domain(overrides, domain), host), seconds=seconds, json_file=json_file)


@cli.command()
@joined_domain
def down(domain: str | None) -> None:
    """Stop a graph from another terminal, also one whose launcher hangs or was killed."""
    from perception.bus.domains import named
    from perception.bus.host import Runtime
    from perception.cli.down import graphs, stop

    runtime = Runtime(domain) if named(domain) else graphs()
    show(f"domain '{runtime.domain}' is down: {stop(runtime)} processes have ended")


@cli.command()
@click.argument("topic")
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after N messages.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message.")
@click.option("--hz", is_flag=True, help="Print rate and jitter once a second instead of the messages.")
@connecting
@joined_domain
def echo(
    topic: str,
    count: int | None,
    as_json: bool,
    hz: bool,
    domain: str | None,
    connect: str | None,
    keys: str | None,
    insecure: bool,
) -> None:
    """Print the messages of TOPIC as they arrive.

    TOPIC is a name such as state/fused, or a pattern such as 'camera/*'.
    """
    from perception.bus.host import HostClock
    from perception.bus.subscriber import Subscriber
    from perception.cli import message_text
    from perception.cli.connect import source_of

    source, clock = source_of((topic,), domain, connect, keys, insecure=insecure), HostClock()
    rates = message_text.Rates()
    with Subscriber(*source.topics, clock=clock.now_ns, **source.options) as subscriber:
        if not (message := subscriber.receive(_QUIET_S)):
            show(f"perception: waiting for {topic}; {source.published()}", err=True)
            message = subscriber.receive()
        received = 0
        while message:
            received += 1
            if hz:
                for line in rates.add(message):
                    show(line)
            elif as_json:
                click.echo(message_text.as_json(message))
            else:
                show(message_text.as_line(message, clock.now_ns()))
            if received == count:
                return
            message = subscriber.receive()


@cli.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--name", metavar="NAME", default="say", show_default=True, help="Publish on text/NAME.")
@click.option("--language", metavar="TAG", default="", help="Language of the text as a BCP 47 tag, e.g. en.")
@joined_domain
def say(words: tuple[str, ...], name: str, language: str, domain: str | None) -> None:
    """Publish one line of text on text/say."""
    from perception.bus.api import publish
    from perception.bus.domains import joined

    topic = f"text/{name}"
    if not publish(topic, domain=joined(domain).domain, text=" ".join(words), language=language):
        raise PerceptionError(f"no subscriber to {topic}; start a graph with that input, or choose --name")


@cli.command()
@connecting
@joined_domain
def nodes(domain: str | None, connect: str | None, keys: str | None, insecure: bool) -> None:
    """List the nodes of a graph, also those that are missing: status, rates, drops, device."""
    import time

    from rich.console import Console

    from perception.bus.host import HostClock
    from perception.bus.subscriber import Subscriber
    from perception.cli.connect import await_clocks, health_of
    from perception.cli.panel import Board, node_table
    from perception.cli.summary_tables import PLAIN_WIDTH
    from perception.messages import SUPERVISOR, is_supervisor

    source, names = health_of(domain, connect, keys, insecure=insecure)
    clock, board = HostClock().now_ns, Board()
    with Subscriber(*source.topics, clock=clock, **source.options) as subscriber:
        await_clocks(subscriber, source)
        since_ns = clock()
        deadline_s = time.monotonic() + _NODES_LISTEN_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            if message := subscriber.receive(left_s):
                board.add(message)
    board.now_ns = clock()
    if any(map(is_supervisor, board.nodes)):  # on a host of a profile its name is not that of its topic
        names = [name for name in names if name != SUPERVISOR]
    table = node_table(board, published=names, since_ns=since_ns)
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


@cli.command()
@click.argument("profile", required=False)
@overriding("the profile")
def doctor(profile: str | None, overrides: tuple[str, ...]) -> int:
    """Check packages, devices, GPU and clock of this machine, and what PROFILE needs.

    With PROFILE also: its devices, model weights and ports. The exit code is 1 if a check failed.
    """
    from perception.cli.doctor import examine
    from perception.cli.finding import print_findings

    return print_findings(examine(profile, overrides), sys.stdout)


@cli.command()
@click.option(
    "--out", metavar="DIR", type=OutFolder(), help="Write schemas and byte vectors into DIR instead."
)
def schema(out: Path | None) -> None:
    """Print the JSON Schema of every message on the wire.

    With --out, write them to files, with byte vectors to test another implementation against.
    """
    import json

    from perception.bus.schema import json_schemas, write

    if out is None:
        click.echo(json.dumps(json_schemas(), indent=1))
    else:
        for file in write(out):
            show(str(file))


session.add_command(verify)
session.add_command(fuse)
for command in (
    keys,
    record,
    replay,
    session,
    swap,
    search,
    bench,
    simulate,
    torture,
    guide,
    *TRAINING_COMMANDS,
):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; an error for users is one line on stderr."""
    try:
        result: Any = cli.main(arguments, prog_name="perception", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except PerceptionError as error:
        show(f"perception: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show(file=(shown := io.StringIO()))
        show(*without_credentials(shown.getvalue()).rstrip("\n").split("\n"), err=True)
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except SystemExit:  # in this mode click raises it for a broken pipe only
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise  # no file of the user: a fault of this program
        show(f"perception: {without_credentials(str(error.filename))}: {error.strerror}", err=True)
        return 1


def main() -> None:
    """Run as the installed command."""
    open_closed_streams()
    if logging.lastResort is not None:  # logs of commands that configure no logging go there
        logging.lastResort.setFormatter(CleanFormatter())
    sys.exit(run())
