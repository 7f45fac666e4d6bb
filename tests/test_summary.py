"""The figures a run ends with."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from perception.cli.message_text import Rates
from perception.cli.panel import Board
from perception.cli.summary import Sample, Summary
from perception.cli.summary_tables import print_report
from perception.messages import (
    Fused,
    FusedState,
    Header,
    Health,
    InputHealth,
    Label,
    Latency,
    Message,
    ModalityState,
    ModelInfo,
    Presence,
)
from perception.units.bounded import MAX_NAMES

HOP_NS = 100_000_000
LATENESS_NS = 60_000_000
MS = 1_000_000


def state(
    tick: int,
    *,
    label: str = "idle",
    after_ms: float = 80,
    shed: int = 0,
    latency: Latency | None = None,
    camera: Presence = "present",
) -> Message[Header]:
    stamp_ns = tick * HOP_NS
    header = FusedState(
        stamp_ns=stamp_ns,
        sent_ns=stamp_ns + int(after_ms * MS),
        tick=tick,
        shed=shed,
        fused=Fused(classes=(label,), probabilities=(1.0,), label=label, confidence=1.0, entropy=0.0),
        modalities={"camera": ModalityState(topic="camera/front", presence=camera)},
        model=ModelInfo(config_hash="c", weights_hash="w"),
        latency=latency or Latency(),
    )
    return Message("state/fused", header)


def truth(name: str, first_tick: int, end_tick: int) -> Message[Header]:
    start_ns, end_ns = first_tick * HOP_NS, end_tick * HOP_NS
    return Message("label/truth", Label(stamp_ns=start_ns, start_ns=start_ns, end_ns=end_ns, name=name))


def health(source: str, dropped: dict[str, int], lost: int = 0) -> Message[Header]:
    account = InputHealth(received=100, dropped=dropped, lost=lost)
    header = Health(stamp_ns=0, source=source, node="fusion", inputs={"camera/front": account})
    return Message("health/fusion", header)


def summarise(*messages: Message[Header]) -> Summary:
    summary = Summary(hop_ns=HOP_NS, lateness_ns=LATENESS_NS)
    for message in messages:
        summary.add(message)
    return summary


def test_a_state_is_on_time_when_it_was_sent_before_the_next_one_was_due() -> None:
    ticks = summarise(state(10, after_ms=160), state(11, after_ms=160.1), state(12)).report().ticks
    assert (ticks.due, ticks.published, ticks.on_time) == (3, 3, 2)
    assert ticks.on_time_share == pytest.approx(2 / 3)


def test_a_tick_that_never_came_is_not_on_time() -> None:
    ticks = summarise(state(10), state(14, shed=3)).report().ticks
    assert (ticks.due, ticks.published, ticks.on_time, ticks.shed) == (5, 2, 2, 3)
    assert ticks.rate_hz == pytest.approx(4.0)


def test_a_fusion_that_stopped_owes_the_ticks_up_to_the_end_of_the_run() -> None:
    summary = summarise(state(10), state(11))
    patience_ns = HOP_NS + LATENESS_NS
    assert summary.report(end_ns=20 * HOP_NS + patience_ns).ticks.due == 11
    assert summary.report(end_ns=11 * HOP_NS + MS).ticks.due == 2


def test_without_states_there_is_a_report_all_the_same() -> None:
    report = summarise().report(end_ns=HOP_NS)
    assert (report.ticks.due, report.ticks.on_time_share, report.accuracy) == (0, 0.0, None)


def test_start_up_is_measured_to_the_first_state_sent() -> None:
    summary = Summary(hop_ns=HOP_NS, lateness_ns=LATENESS_NS, started_ns=8 * HOP_NS)
    summary.add(state(10, after_ms=50))
    assert summary.report().first_state_s == pytest.approx(0.25)


def test_labels_are_judged_by_the_truth_at_the_end_of_their_window() -> None:
    accuracy = (
        summarise(
            truth("clap", 10, 12),
            state(9, label="clap"),
            state(10, label="clap"),
            state(11, label="idle"),
            state(12, label="clap"),
            truth("idle", 12, 14),
        )
        .report()
        .accuracy
    )
    assert accuracy is not None
    assert (accuracy.judged, accuracy.correct, accuracy.unjudged) == (3, 1, 1)
    assert accuracy.classes == ("clap", "idle")
    assert accuracy.confusion == ((1, 1), (1, 0))


@given(st.permutations([state(10, label="clap"), state(11, label="idle"), truth("clap", 10, 12)]))
def test_truth_may_come_before_or_after_the_states_it_judges(messages: list[Message[Header]]) -> None:
    accuracy = summarise(*messages).report().accuracy
    assert accuracy is not None
    assert (accuracy.judged, accuracy.correct, accuracy.unjudged) == (2, 1, 0)


def test_latency_of_an_encoder_counts_only_the_runs_it_made() -> None:
    latencies = (Latency(encoders_ms={"bert": 20.0}), Latency(encoders_ms={"bert": 0.0}))
    report = summarise(*(state(tick, latency=latency) for tick, latency in enumerate(latencies))).report()
    assert report.latency_ms["encoder bert"].count == 1
    assert report.latency_ms["encoder bert"].p50 == 20.0
    assert report.latency_ms["window end -> sent"].p99 == pytest.approx(80)


def test_presence_is_a_share_of_the_states() -> None:
    report = summarise(state(1), state(2, camera="held"), state(3, camera="absent"), state(4)).report()
    assert report.presence["camera"] == {"present": 0.5, "held": 0.25, "absent": 0.25}


def test_conditions_that_are_not_ok_are_shares_of_the_states() -> None:
    conditions = ("ok", "black", "black", "blurred")
    states = [state(number) for number in range(4)]
    for number, (message, condition) in enumerate(zip(states, conditions, strict=True)):
        assert isinstance(message.header, FusedState)
        camera = structs.replace(message.header.modalities["camera"], condition=condition)
        header = structs.replace(message.header, modalities={"camera": camera})
        states[number] = structs.replace(message, header=header)
    report = summarise(*states).report()
    assert report.conditions == {"camera": {"black": 0.5, "blurred": 0.25}}
    printed = io.StringIO()
    print_report(report, printed)
    assert "black 50.0%, blurred 25.0%" in printed.getvalue()
    assert summarise(state(1)).report().conditions == {}


def test_drops_add_up_over_restarts_of_a_node() -> None:
    report = summarise(
        health("fusion#1", {"stale": 3}),
        health("fusion#1", {"stale": 5}, lost=1),
        health("fusion#2", {"stale": 2}),
    ).report()
    assert report.drops == {"fusion <- camera/front": {"lost": 1, "stale": 7}}


def test_a_report_is_plain_json() -> None:
    report = summarise(truth("idle", 0, 9), state(1), health("fusion#1", {})).report()
    data = json.loads(json.dumps(report.as_dict()))
    assert data["ticks"]["on_time_share"] == 1.0
    assert data["accuracy"]["share"] == 1.0
    assert data["latency_ms"]["head"] == {"count": 1, "p50": 0.0, "p95": 0.0, "p99": 0.0}


def test_percentiles_are_exact_up_to_the_capacity_and_fair_beyond_it() -> None:
    exact, sampled = Sample(capacity=1000), Sample(capacity=1000)
    for value in range(1000):
        exact.add(value)
    for value in np.linspace(0, 1000, 20_000):
        sampled.add(float(value))
    assert exact.percentiles().p95 == pytest.approx(949.05)
    assert sampled.percentiles().count == 20_000
    assert sampled.percentiles().p50 == pytest.approx(500, abs=50)


def test_a_flood_of_foreign_names_is_bounded_and_counted() -> None:
    """Names of nodes, topics, reasons and classes come from whoever publishes."""
    summary, board, rates = Summary(hop_ns=HOP_NS, lateness_ns=LATENESS_NS), Board(), Rates()
    flood, lines = 2 * MAX_NAMES, list[str]()
    summary.add(truth("right", 0, flood))
    for number in range(flood):
        name = f"n{number}"
        inputs = {f"text/{name}": InputHealth(lost=1)}
        header = Health(stamp_ns=number, source=name, node=name, inputs=inputs, outputs={f"text/{name}": 1})
        own = Health(stamp_ns=0, source=name, node="fusion", counts={name: 1})
        messages = [
            state(number, label=name),
            Message(f"health/{name}", header),
            Message("health/fusion", own),
        ]
        for one in messages:
            summary.add(one)
            board.add(one)
        lines += rates.add(Message(f"text/{name}", header))
    report = summary.report()
    assert len(report.drops) == MAX_NAMES
    assert report.counts["*"] == {"names forgotten": flood - MAX_NAMES + flood + 1 - MAX_NAMES}
    assert sum(report.counts["fusion"].values()) == flood
    assert len(report.counts["fusion"]) <= MAX_NAMES + 2
    assert report.accuracy is not None
    assert len(report.accuracy.classes) == MAX_NAMES + 1
    assert report.accuracy.judged + report.accuracy.unjudged == flood
    assert len(board.nodes) == len(board.rates_hz()) == MAX_NAMES
    assert board.losses()["*"] == f"{2 * flood - 2 * MAX_NAMES + 1} names of nodes and outputs forgotten"
    assert lines == ["more than 1024 topics: only the newest are measured"]
