"""The `perception` command. Each subcommand imports what it needs when it runs, so that all start fast."""

import io
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from perception.bus.domains import JOINED_DOMAIN
from perception.cli.guide import guide
from perception.cli.help import Group
from perception.cli.replay import fuse, replay, verify
from perception.cli.search import search
from perception.cli.session import record, session
from perception.cli.standard_streams import open_closed_streams, show
from perception.cli.swap import swap
from perception.cli.training import COMMANDS as TRAINING_COMMANDS
from perception.errors import DISTRIBUTION, INTERRUPTED, PerceptionError
from perception.errors.credentials import CleanFormatter, without_credentials
from perception.io.out_path import OutFile, OutFolder

_QUIET_S: Final = 2.0
_NODES_LISTEN_S: Final = 2.5
"""Health comes once a second, and a rate needs two."""

_domain = click.option("--domain", metavar="NAME", help=JOINED_DOMAIN)
_set = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a profile key, e.g. fusion.hop_ms=200.",
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def cli() -> None:
    """Real-time fusion of camera, microphone and text.

    Try:  perception up demo
    """


@cli.command()
@click.argument("profile")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop so long after the first state (without fusion: message).",
)
@_set
@click.option("--domain", metavar="NAME", help="Default: $PERCEPTION_DOMAIN, else the profile's own.")
@click.option("--json", "json_file", type=OutFile(), help="Write the final summary here as JSON.")
def up(
    profile: str,
    seconds: float | None,
    overrides: tuple[str, ...],
    domain: str | None,
    json_file: Path | None,
) -> int:
    """Start the nodes of PROFILE (a name such as demo, or a .toml file) and watch them until Ctrl-C."""
    from perception.cli.up import placed, run

    return run(profile, placed(overrides, domain), seconds=seconds, json_file=json_file)


@cli.command()
@click.argument("topic")
@click.option("--count", type=click.IntRange(min=1), help="End after this many messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per message.")
@click.option("--hz", is_flag=True, help="Show rate and jitter once a second instead of the messages.")
@_domain
def echo(topic: str, count: int | None, as_json: bool, hz: bool, domain: str | None) -> None:
    """Print the messages of TOPIC, e.g. state/fused or 'camera/*'."""
    from perception.bus import domains
    from perception.bus.host import HostClock
    from perception.bus.subscriber import Subscriber
    from perception.cli import message_text as form

    runtime, clock = domains.find(domain), HostClock()
    rates = form.Rates()
    with Subscriber(topic, runtime=runtime, clock=clock.now_ns) as subscriber:
        if not (message := subscriber.receive(_QUIET_S)):
            where = f"published in domain '{runtime.domain}'" if runtime else domains.NONE_UP
            published = f": {', '.join(runtime.topics()) or 'nothing'}" if runtime else ""
            show(f"perception: waiting for {topic}; {where}{published}", err=True)
            message = subscriber.receive()
        received = 0
        while message:
            received += 1
            if hz:
                for line in rates.add(message):
                    show(line)
            else:
                click.echo(form.as_json(message)) if as_json else show(form.as_line(message, clock.now_ns()))
            if received == count:
                return
            message = subscriber.receive()


@cli.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--name", default="say", show_default=True, help="Publishes on text/NAME.")
@click.option("--language", default="", help="BCP 47 tag, e.g. en.")
@_domain
def say(words: tuple[str, ...], name: str, language: str, domain: str | None) -> None:
    """Publish one line of text, as if typed into the graph."""
    from perception.bus.api import publish
    from perception.bus.domains import joined

    topic = f"text/{name}"
    if not publish(topic, domain=joined(domain).domain, text=" ".join(words), language=language):
        raise PerceptionError(f"nobody listens to {topic}; start a graph with that input, or choose --name")


@cli.command()
@_domain
def nodes(domain: str | None) -> None:
    """Show the live nodes: status, rates, drops."""
    import time

    from rich.console import Console

    from perception.bus.domains import joined
    from perception.bus.host import HostClock
    from perception.bus.subscriber import Subscriber
    from perception.cli.panel import Board, node_table
    from perception.cli.summary_tables import PLAIN_WIDTH

    runtime, board = joined(domain), Board()
    published = runtime.topics()
    if not any(topic.startswith("health/") for topic in published):
        raise PerceptionError(
            f"no node is alive in domain '{runtime.domain}'; published: {', '.join(published) or 'nothing'}"
        )
    with Subscriber("health/*", runtime=runtime, clock=HostClock().now_ns) as subscriber:
        deadline_s = time.monotonic() + _NODES_LISTEN_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            if message := subscriber.receive(left_s):
                board.add(message)
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(node_table(board))


@cli.command()
@click.argument("profile", required=False)
@_set
def doctor(profile: str | None, overrides: tuple[str, ...]) -> int:
    """Check this machine, and what PROFILE needs of it: packages, devices, weights, GPU, ports, clock."""
    from perception.cli.doctor import examine, print_findings

    return print_findings(examine(profile, overrides), sys.stdout)


@cli.command()
@click.option("--out", type=OutFolder(), help="Write schemas and vectors here.")
def schema(out: Path | None) -> None:
    """Print the JSON Schema of every message; with --out write them, and golden byte vectors, to files."""
    import json

    from perception.bus.schema import json_schemas, write

    if out is None:
        click.echo(json.dumps(json_schemas(), indent=1))
    else:
        for file in write(out):
            show(str(file))


@cli.group()
def keys() -> None:
    """Keys for graphs that span hosts: encryption and authentication of tcp endpoints."""


@keys.command()
@click.argument("folder", type=OutFolder(), default="keys")
def new(folder: Path) -> None:
    """Make a new pair of keys in FOLDER (default: keys); copy that folder to every host of the graph."""
    from perception.bus.keys import new_keys

    show(f"{new_keys(folder)}: keys made; every host needs a copy, nobody else may have one")


@cli.command()
@click.argument("kind", type=click.Choice(["transport", "features", "tick", "pipeline", "startup", "scale"]))
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Per case.")
@click.option(
    "--hz", type=click.FloatRange(1, 100), default=10.0, show_default=True, help="Of tick and pipeline."
)
@click.option("--device", default="cpu", show_default=True, help="Of tick: cpu or cuda.")
@click.option(
    "--peers", is_flag=True, help=f"Beside others, where installed: pip install '{DISTRIBUTION}[bench]'."
)
@click.option("--json", "json_file", type=OutFile(), help="Write the figures here.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Fail if twice as slow as this --json.")
def bench(
    kind: str,
    rounds: int,
    seconds: float,
    hz: float,
    device: str,
    peers: bool,
    json_file: Path | None,
    baseline: Path | None,
) -> int:
    """Measure this machine: rounds interleaved, beside the physical limit; fails over budget."""
    import json

    from perception.bench import features, report, startup, transport
    from perception.bench.rounds import interleave

    if kind == "transport":
        cases = transport.cases(peers=peers, seconds=seconds)
    elif kind == "features":
        cases = features.cases(peers=peers)
    elif kind == "tick":
        from perception.bench import tick, tick_device  # not before they are asked for: they need torch

        on_cpu = device == "cpu"
        cases = tick.cases(seconds=seconds, hz=hz) if on_cpu else tick_device.cases(device, seconds)
    elif kind == "pipeline":
        from perception.bench import pipeline

        cases = pipeline.cases(seconds=seconds, hz=hz)
    elif kind == "scale":
        from perception.bench import scale

        cases = scale.cases(seconds=seconds)
    else:
        cases = startup.cases()
    figures = interleave(cases, rounds, lambda text: show(text, err=True))
    show(*report.as_text(figures).split("\n"))
    for line in report.straight_lines(kind, figures):
        show(line)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(kind, figures), indent=1) + "\n", encoding="utf-8")
    complaints = report.over_budget(kind, figures)
    if baseline is not None:
        complaints += report.against(kind, figures, baseline)
    for line in complaints:
        show(f"over budget: {line}", err=True)
    return 1 if complaints else 0


session.add_command(verify)
session.add_command(fuse)
for command in (record, replay, session, swap, search, guide, *TRAINING_COMMANDS):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; an error for people is one line on stderr."""
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
    except SystemExit:  # what click makes of a broken pipe, and of nothing else in this mode
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise  # nothing of the user's: a fault of ours
        show(f"perception: {without_credentials(str(error.filename))}: {error.strerror}", err=True)
        return 1


def main() -> None:
    """Run as the installed command."""
    open_closed_streams()
    if logging.lastResort is not None:  # what a command does not set up itself goes there
        logging.lastResort.setFormatter(CleanFormatter())
    sys.exit(run())
