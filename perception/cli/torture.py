"""`perception torture`; what breaks graphs is imported when it runs."""

import json
import tempfile
from pathlib import Path

import click

from perception.cli.standard_streams import show
from perception.io.out_path import OutFile, OutFolder


@click.command(hidden=True)
@click.option("--minutes", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed: the same faults.")
@click.option("--report", metavar="FILE", type=OutFile(), help="Also write all trials to FILE as JSON.")
@click.option("--out", metavar="DIR", type=OutFolder(), help="Keep recordings and logs there.")
def torture(minutes: float, seed: int, report: Path | None, out: Path | None) -> int:
    """Run the demo graph on this machine and break it in every way, by seed.

    Processes are killed and stopped, strangers flood its endpoint, the disk is full. Exit code 1: an
    invariant broke; recordings and logs are then kept.
    """
    from dataclasses import asdict

    from perception.torture import campaign
    from perception.torture.table import as_text

    folder = out or Path(tempfile.mkdtemp(prefix="perception-torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = campaign.run(folder, minutes=minutes, seed=seed, progress=lambda text: show(text, err=True))
    show(*as_text(result.rows()).split("\n"))
    for text in result.skipped:
        show(f"skipped: {text}")
    for text in result.failures:
        show(f"broken: {text}")
    if report is not None:
        report.write_text(json.dumps(asdict(result) | {"rows": result.rows()}, indent=1), encoding="utf-8")
    kept = f"; seed {seed}, recordings and logs in {folder}" if result.failures or out else ""
    show(f"{len(result.trials)} faults, {result.states} states, {len(result.failures)} broken{kept}")
    if not result.failures and out is None:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    return 1 if result.failures else 0
