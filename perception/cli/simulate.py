"""`perception simulate`."""

import json
from pathlib import Path

import click

from perception.cli.options import setting
from perception.cli.standard_streams import show
from perception.io.out_path import OutFile

_SHOWN_S = 30.0


@click.command()
@setting("--hours", "H", click.FloatRange(min=0, min_open=True), 1.0, "Robot-hours to simulate.")
@setting("--seed", "S", click.IntRange(min=0), 1, "Seed of the first scenario; the next ones follow it.")
@click.option(
    "--scenarios", metavar="N", type=click.IntRange(min=1), help="Simulate N scenarios instead of hours."
)
@click.option(
    "--report", "report_file", metavar="FILE", type=OutFile(), help="Also write the report as JSON."
)
def simulate(hours: float, seed: int, scenarios: int | None, report_file: Path | None) -> int:
    """Simulate graphs under faults on a virtual clock, and check that their states are true.

    Each scenario follows from its seed: streams, faults, restarts. The real fusion loop, journal, session
    writer and verify run in it. A failure is cut to the fewest faults, and the exit code is 1.
    """
    import torch

    from perception.simulate.campaign import Report, campaign, describe

    torch.set_num_threads(1)
    shown_s, failures, latest = 0.0, 0, Report(seed)

    def write() -> None:
        if report_file is not None:
            report_file.write_text(json.dumps(latest.as_dict(), indent=1) + "\n", encoding="utf-8")

    def progress(report: Report) -> None:
        nonlocal shown_s, failures, latest
        latest = report
        for failure in report.failures[failures:]:
            failures += 1
            show(*describe(failure), err=True)
        if report.wall_s - shown_s >= _SHOWN_S:
            shown_s = report.wall_s
            show(f"{report.hours:.1f} robot-hours, {report.speed:.0f} times real time", err=True)
            write()

    try:
        campaign(hours, seed, scenarios=scenarios, progress=progress)
    except KeyboardInterrupt:
        show("stopped; so far:", err=True)
    show(*latest.lines())
    write()
    return 1 if latest.failures else 0
