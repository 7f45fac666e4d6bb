"""`perception bench`; what measures is imported when it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from perception.cli.options import setting
from perception.cli.standard_streams import show
from perception.errors import DISTRIBUTION
from perception.io.out_path import OutFile

if TYPE_CHECKING:
    from perception.bench.rounds import Values


@click.command()
@click.argument(
    "kind", type=click.Choice(["transport", "features", "tick", "pipeline", "startup", "scale", "nodes"])
)
@setting(
    "--rounds", "N", click.IntRange(min=1), 5, "Measure every case N times, by turns; medians are printed."
)
@setting("--seconds", "S", click.FloatRange(min=0.5), 2.0, "Duration of one case in one round.")
@setting("--hz", "RATE", click.FloatRange(1, 100), 10.0, "Ticks per second of tick and pipeline.")
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu or cuda, for tick.")
@click.option(
    "--peers",
    is_flag=True,
    help=f"Also measure other libraries; pip install '{DISTRIBUTION}[bench]' installs them.",
)
@click.option("--json", "json_file", metavar="FILE", type=OutFile(), help="Also write the figures to FILE.")
@click.option(
    "--baseline",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Fail if a case takes twice the time in FILE, which --json wrote.",
)
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
    """Measure what this machine can do, beside the physical limit.

    The exit code is 1 if a case is over its budget or over --baseline.
    """
    from perception.bench import report
    from perception.bench.rounds import interleave

    cases = _cases(kind, seconds, hz, device, peers=peers)
    figures = interleave(cases, rounds, lambda text: show(text, err=True))
    show(*report.as_text(figures).split("\n"))
    for line in report.straight_lines(kind, figures):
        show(line)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(kind, figures), indent=1) + "\n", encoding="utf-8")
    failures = report.over_budget(kind, figures)
    if baseline is not None:
        failures += report.against(kind, figures, baseline)
    for line in failures:
        show(f"over budget: {line}", err=True)
    return 1 if failures else 0


def _cases(
    kind: str, seconds: float, hz: float, device: str, *, peers: bool
) -> "dict[str, Callable[[], Values]]":
    """Return what to measure, by name; each kind imports what it needs: only some need torch."""
    match kind:
        case "transport":
            from perception.bench import transport

            return transport.cases(peers=peers, seconds=seconds)
        case "features":
            from perception.bench import features

            return features.cases(peers=peers)
        case "tick" if device == "cpu":
            from perception.bench import tick

            return tick.cases(seconds=seconds, hz=hz)
        case "tick":
            from perception.bench import tick_device

            return tick_device.cases(device, seconds)
        case "pipeline":
            from perception.bench import pipeline

            return pipeline.cases(seconds=seconds, hz=hz)
        case "scale":
            from perception.bench import scale

            return scale.cases(seconds=seconds)
        case "nodes":
            from perception.bench import nodes

            return nodes.cases(seconds=seconds)
        case _:
            from perception.bench import startup

            return startup.cases()
