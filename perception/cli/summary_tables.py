"""The figures of a run as tables: with rules on a terminal, plain elsewhere."""

from collections.abc import Iterator, Mapping
from typing import Final, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perception.cli import host_times
from perception.cli.summary import Accuracy, Report
from perception.errors.credentials import harmless
from perception.messages import HostTime

PLAIN_WIDTH: Final = 100_000  # in a pipe nothing is cut or folded


def print_report(report: Report, file: TextIO) -> None:
    """Print all figures of a run."""
    terminal = file.isatty()
    console = Console(file=file, width=None if terminal else PLAIN_WIDTH, highlight=False)
    for line in headlines(report):
        console.print(Text(harmless(line)), soft_wrap=True)
    for title, table in _tables(report):
        table.box = box.SIMPLE_HEAD if terminal else None
        console.print(f"\n{title}:" if table.rows else f"\n{title}: none", style="bold", soft_wrap=True)
        if table.rows:
            console.print(table)


def headlines(report: Report) -> Iterator[str]:
    """Yield the figures that are one line each."""
    ticks = report.ticks
    if not ticks.published:
        yield "ticks: no state was published"
        return
    if report.first_state_s is not None:
        yield f"first state: {report.first_state_s:.1f} s after the start"
    yield (
        f"ticks: {ticks.due} due, {ticks.published} published ({ticks.rate_hz:.2f} Hz), {ticks.shed} shed; "
        f"{ticks.on_time} on time, before the next was due ({ticks.on_time_share:.2%})"
    )
    if report.accuracy:
        accuracy = report.accuracy
        yield (
            f"accuracy against the script's truth: {accuracy.share:.2%} "
            f"({accuracy.correct} of {accuracy.judged}; {accuracy.unjudged} states had no truth)"
        )


def _tables(report: Report) -> Iterator[tuple[str, Table]]:
    if report.accuracy:
        yield "confusion, truth in rows, fused label in columns", _confusion(report.accuracy)
    if report.latency_ms:
        table = _table("stage", "p50", "p95", "p99", "n")
        for stage, row in report.latency_ms.items():
            _add(table, stage, f"{row.p50:.2f}", f"{row.p95:.2f}", f"{row.p99:.2f}", str(row.count))
        yield "latency, ms", table
    if report.presence:
        table = _table("modality", "present", "held", "absent")
        for modality, shares in report.presence.items():
            _add(table, modality, *(f"{shares[key]:.1%}" for key in ("present", "held", "absent")))
        yield "presence, share of states", table
    if report.conditions:
        table = _table("modality", "conditions")
        table.columns[1].justify, table.columns[1].no_wrap = "left", False
        for modality, shares in report.conditions.items():
            _add(table, modality, ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
        yield "signals that were not ok, share of states", table
    yield "dropped or lost, by reason", _reasons(report.drops)
    if report.missing:
        table = _table("node", "status")
        table.columns[1].justify = "left"
        for name, words in report.missing.items():
            _add(table, name, words)
        yield "nodes that did not work at the end", table
    if report.hosts:
        table = _table("where", "offset, drift")
        table.columns[1].justify = "left"
        for name, known in report.hosts.items():
            _add(table, name, host_times.words(HostTime(**known)))
        yield "clocks of other hosts", table
    if report.counts:
        yield "refused, shed or repaired, by reason", _reasons(report.counts)


def _confusion(accuracy: Accuracy) -> Table:
    table = _table("", *accuracy.classes, "recall")
    for name, row in zip(accuracy.classes, accuracy.confusion, strict=True):
        right, total = row[accuracy.classes.index(name)], sum(row)
        _add(table, name, *map(str, row), f"{right / total:.1%}" if total else "-")
    return table


def _reasons(counts: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("where", "reasons")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for where, reasons in counts.items():
        _add(table, where, ", ".join(f"{reason} {count}" for reason, count in reasons.items()))
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(Text(harmless(column)), justify="right", no_wrap=True)
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(harmless(cell)) for cell in cells))
