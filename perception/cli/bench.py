"""`perception bench`; what measures is imported when it runs."""

import json
from pathlib import Path

import click

from perception.cli.standard_streams import show
from perception.errors import DISTRIBUTION
from perception.io.out_path import OutFile


@click.command()
@click.argument("kind", type=click.Choice(["transport", "features", "tick", "pipeline", "startup", "scale"]))
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Measure every case N times, by turns; medians are printed.",
)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0.5),
    default=2.0,
    show_default=True,
    help="Duration of one case in one round.",
)
@click.option(
    "--hz",
    metavar="RATE",
    type=click.FloatRange(1, 100),
    default=10.0,
    show_default=True,
    help="Ticks per second of tick and pipeline.",
)
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
    from perception.bench import features, report, startup, transport
    from perception.bench.rounds import interleave

    if kind == "transport":
        cases = transport.cases(peers=peers, seconds=seconds)
    elif kind == "features":
        cases = features.cases(peers=peers)
    elif kind == "tick":
        from perception.bench import tick, tick_device  # imported here only: they need torch

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
    failures = report.over_budget(kind, figures)
    if baseline is not None:
        failures += report.against(kind, figures, baseline)
    for line in failures:
        show(f"over budget: {line}", err=True)
    return 1 if failures else 0
