"""What is known of the clocks of other hosts is shown in nodes, panel and summary."""

import io
import json

import pytest
from rich.console import Console

from perception.cli import host_times
from perception.cli.panel import Board, node_table, panel_lines
from perception.cli.summary import Summary
from perception.cli.summary_tables import print_report
from perception.graph.fusion_loop import SILENT_CLOCK_MS, unsure, with_clocks
from perception.graph.liveness import Standing
from perception.messages import Health, HostTime, Message

KNOWN = HostTime(
    offset_ms=30_000.1234, drift_ppm=100.04, round_trip_ms=0.21, residual_ms=0.02, bound_ms=0.11, bursts=30
)
WORDS = "+30000.12 ms ±0.11, +100.0 ppm, round trip 0.21 ms"
HEALTH = Message(
    "health/fusion", Health(stamp_ns=1, node="fusion", hosts={"robot": KNOWN, "cart": HostTime()})
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, WORDS),
        ({"steps": 2}, f"{WORDS}, set 2 times"),
        ({"age_ms": 61_000.0}, f"{WORDS}, no answer for 61 s"),
        ({"offset_ms": None}, host_times.UNKNOWN),
    ],
)
def test_a_clock_in_words(changes: dict[str, float | None], words: str) -> None:
    fields = {name: getattr(KNOWN, name) for name in KNOWN.__struct_fields__} | changes
    assert host_times.words(HostTime(**fields)) == words


def test_nodes_and_panel_show_the_clocks_that_a_node_corrects() -> None:
    board = Board()
    board.add(HEALTH)
    screen = io.StringIO()
    Console(file=screen, width=200).print(node_table(board))
    assert f"clock of robot: {WORDS}" in screen.getvalue()
    assert f"clock of cart: {host_times.UNKNOWN}" in screen.getvalue()
    lines = [line.plain.rstrip() for line in panel_lines(board, {}, "title", width=120, height=20)]
    assert f"fusion <- clock of robot: {WORDS}" in lines


def test_a_fusion_names_the_clocks_that_it_does_not_follow() -> None:
    assert unsure({"robot": KNOWN}) == unsure({}) == ""
    assert unsure({"robot": KNOWN, "cart": HostTime()}) == "cart: not read before its clock is known"
    silent = HostTime(offset_ms=1.0, age_ms=SILENT_CLOCK_MS + 1)
    assert unsure({"robot": silent}) == "robot: its clock no longer answers"


def test_an_unsure_clock_makes_a_fusion_degraded_and_a_lost_one_stays_lost() -> None:
    hosts, lost = {"cart": HostTime()}, Standing("lost", "no state for 3.0 s")
    assert with_clocks(Standing("ok"), {"robot": KNOWN}) == Standing("ok")
    assert with_clocks(Standing("ok"), hosts) == Standing("degraded", unsure(hosts))
    assert with_clocks(lost, hosts) == Standing("lost", f"{unsure(hosts)}; no state for 3.0 s")


def test_the_summary_ends_with_the_clocks() -> None:
    summary = Summary(hop_ns=100_000_000, lateness_ns=0)
    summary.add(HEALTH)
    report = summary.report()
    out = io.StringIO()
    print_report(report, out)
    assert "clocks of other hosts" in out.getvalue()
    assert WORDS in out.getvalue()
    hosts = json.loads(json.dumps(report.as_dict()))["hosts"]
    assert hosts["fusion <- robot"]["offset_ms"] == KNOWN.offset_ms
    assert hosts["fusion <- cart"]["offset_ms"] is None
