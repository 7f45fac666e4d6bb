"""Figures of a run: ticks, punctuality, accuracy, latency, presence, drops.

Pure: it accumulates messages in bounded memory, without clock, socket or thread.
"""

import random
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from msgspec import structs

from perception.graph.liveness import FINISHED, RUNNING
from perception.messages import FusedState, Header, Health, HostTime, Label, Message
from perception.units.bounded import MAX_NAMES, REST, Recent, add_counts

_NS_PER_MS: Final = 1e6
_SPANS: Final = 256
"""Spans of ground truth kept: many more than overlap the states that have no label yet."""
_UNJUDGED: Final = 4096
"""States kept until their label arrives."""
_SAMPLES: Final = 1 << 17
"""Latencies kept per stage: 3.6 hours at 10 Hz are exact, a longer run is sampled uniformly."""


class Sample:
    """A uniform sample of a stream of numbers: all of them up to `capacity`.

    Beyond that each number is kept with equal probability (reservoir sampling, Vitter 1985, algorithm R).
    """

    def __init__(self, capacity: int = _SAMPLES, seed: int = 0) -> None:
        self.count = 0
        self._capacity = capacity
        self._values = array("f")
        self._random = random.Random(seed)

    def add(self, value: float) -> None:
        """Add one number."""
        self.count += 1
        if len(self._values) < self._capacity:
            self._values.append(value)
        elif (slot := self._random.randrange(self.count)) < self._capacity:
            self._values[slot] = value

    def percentiles(self) -> "Percentiles":
        """Return p50, p95, p99 and the number of numbers added."""
        if not self.count:
            return Percentiles(0, 0.0, 0.0, 0.0)
        p50, p95, p99 = np.percentile(np.asarray(self._values), (50, 95, 99)).tolist()
        return Percentiles(self.count, p50, p95, p99)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one latency stage, in milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Ticks:
    """Ticks that were due from the first state on, and how many were published."""

    due: int
    published: int
    on_time: int
    shed: int
    rate_hz: float
    """Published states per second of event time."""

    @property
    def on_time_share(self) -> float:
        """Share of due ticks that were on time; a tick without a state is late."""
        return self.on_time / self.due if self.due else 0.0


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Fused labels compared with the ground truth at the end of their window."""

    judged: int
    correct: int
    unjudged: int
    """States without any ground truth."""
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts: a row per true class, a column per fused label, both in the order of `classes`."""

    @property
    def share(self) -> float:
        """Share of correct labels among the states with ground truth."""
        return self.correct / self.judged if self.judged else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run; `as_dict` is their JSON form."""

    ticks: Ticks
    first_state_s: float | None
    accuracy: Accuracy | None
    latency_ms: dict[str, Percentiles]
    presence: dict[str, dict[str, float]]
    """Per modality: share of states in which it was present, held, absent."""
    conditions: dict[str, dict[str, float]]
    """Per modality: share of states by condition of its signal, without `ok` and what nobody judged."""
    drops: dict[str, dict[str, int]]
    """Per `node <- topic`: messages lost or dropped, by reason."""
    counts: dict[str, dict[str, int]]
    """Per node: refusals, sheds and repairs, by reason."""
    missing: dict[str, str] = field(default_factory=dict)
    """Nodes of the profile that did not run at the end, and why."""
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per `node <- host`: what was known of the clock of another host at the end."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(self)
        data["ticks"]["on_time_share"] = self.ticks.on_time_share
        if self.accuracy:
            data["accuracy"]["share"] = self.accuracy.share
        return data


class Summary:
    """Accumulates the messages of one run.

    A state is due `lateness` after the end of its window: the fusion waits no longer for late data. It is
    *on time* if it was sent before the next one was due: `sent_ns - stamp_ns <= lateness + hop`. A tick that
    was shed, lost or not computed is not on time.
    """

    def __init__(self, *, hop_ns: int, lateness_ns: int, started_ns: int | None = None) -> None:
        self._hop_ns = hop_ns
        self._on_time_ns = hop_ns + lateness_ns
        self._started_ns = started_ns
        self._first: FusedState | None = None
        self._last: FusedState | None = None
        self._published = self._on_time = self._shed = 0
        self._truth = _Truth()
        self._latency: Recent[str, Sample] = Recent()
        self._presence: Recent[str, Counter[str]] = Recent()
        self._conditions: Recent[str, Counter[str]] = Recent()
        self._drops: Recent[str, _Total] = Recent()
        self._counts: Recent[str, _Total] = Recent()
        self._hosts: Recent[str, HostTime] = Recent()
        self._missing: dict[str, str] = {}

    @property
    def states(self) -> int:
        """Number of states received."""
        return self._published

    def add(self, message: Message[Header]) -> None:
        """Add one message; other kinds than states, labels of the truth and health are ignored."""
        match message.header:
            case FusedState() as state:
                self._add_state(state)
            case Label(track="truth") as label:
                self._truth.add_label(label)
            case Health() as health:
                self._add_health(health)

    def add_nodes(self, processes: Mapping[str, str]) -> None:
        """Add the status of every process of the profile, at the end of the run."""
        works = (RUNNING, FINISHED)
        self._missing = {name: words for name, words in processes.items() if words not in works}

    def _add_state(self, state: FusedState) -> None:
        self._first = self._first or state
        self._last = state
        self._published += 1
        self._shed += state.shed
        self._on_time += state.sent_ns - state.stamp_ns <= self._on_time_ns
        self._truth.add_state(state.stamp_ns, state.fused.label)
        for name, modality in state.modalities.items():
            self._presence.renewed(name, Counter())[modality.presence] += 1
            self._conditions.renewed(name, Counter())[modality.condition] += 1
        for stage, milliseconds in stages(state):
            self._latency.renewed(stage, Sample()).add(milliseconds)

    def _add_health(self, health: Health) -> None:
        for topic, account in health.inputs.items():
            losses = dict(account.dropped)
            losses["lost"] = account.lost
            self._drops.renewed(f"{health.node} <- {topic}", _Total()).update(health.source, losses)
        self._counts.renewed(health.node, _Total()).update(health.source, health.counts)
        for host, known in health.hosts.items():
            self._hosts[f"{health.node} <- {host}"] = known

    def report(self, end_ns: int | None = None) -> Report:
        """Return the figures so far; ticks that were due by `end_ns` count even without a state."""
        kept = (self._latency, self._presence, self._conditions, self._drops, self._counts)
        forgotten = sum(names.forgotten for names in kept)
        rest = {REST: {"names forgotten": forgotten}} if forgotten else {}
        return Report(
            ticks=self._ticks(end_ns),
            first_state_s=self._first_state_s(),
            accuracy=self._truth.accuracy(),
            latency_ms={stage: sample.percentiles() for stage, sample in self._latency.items()},
            presence={name: _shares(counter) for name, counter in self._presence.items()},
            conditions={
                name: shares for name, counter in self._conditions.items() if (shares := _faults(counter))
            },
            drops=_nonzero(self._drops),
            counts=rest
            | {name: counts for name, total in self._counts.items() if (counts := total.counts())},
            missing=self._missing,
            hosts={name: structs.asdict(known) for name, known in self._hosts.items()},
        )

    def _ticks(self, end_ns: int | None) -> Ticks:
        if self._first is None or self._last is None:
            return Ticks(0, 0, 0, 0, 0.0)
        last = self._last.tick
        if end_ns is not None:
            last = max(last, (end_ns - self._on_time_ns) // self._hop_ns)
        due = max(last - self._first.tick + 1, self._published)
        rate_hz = self._published * 1e9 / (due * self._hop_ns)
        return Ticks(due, self._published, self._on_time, self._shed, rate_hz)

    def _first_state_s(self) -> float | None:
        if self._first is None or self._started_ns is None:
            return None
        return (self._first.sent_ns - self._started_ns) / 1e9


def stages(state: FusedState) -> Iterable[tuple[str, float]]:
    """Yield each latency stage of a state in milliseconds; an encoding that was reused has none."""
    latency = state.latency
    yield "receive", latency.receive_ms
    yield "align", latency.align_ms
    yield "queue", latency.queue_ms
    for name, milliseconds in latency.encoders_ms.items():
        if milliseconds > 0:
            yield f"encoder {name}", milliseconds
    yield "head", latency.head_ms
    yield "publish", latency.publish_ms
    yield "window end -> ready", latency.total_ms
    yield "window end -> sent", (state.sent_ns - state.stamp_ns) / _NS_PER_MS


@dataclass(slots=True)
class _Total:
    """Sum of counters that restart from zero with their process."""

    source: str = ""
    ended: Counter[str] = field(default_factory=Counter)
    current: dict[str, int] = field(default_factory=dict)

    def update(self, source: str, current: dict[str, int]) -> None:
        if source != self.source:
            add_counts(self.ended, self.current)
            self.source = source
        self.current = current

    def counts(self) -> dict[str, int]:
        total = self.ended + Counter(self.current)
        return {reason: total[reason] for reason in sorted(total)}


def _nonzero(totals: Mapping[str, _Total]) -> dict[str, dict[str, int]]:
    return {name: counts for name, total in totals.items() if (counts := total.counts())}


class _Truth:
    """Compares states with spans of ground truth; either may arrive first."""

    def __init__(self) -> None:
        self._spans: deque[Label] = deque(maxlen=_SPANS)
        self._waiting: deque[tuple[int, str]] = deque(maxlen=_UNJUDGED)
        self._states = 0
        self._confusion: Counter[tuple[str, str]] = Counter()

    def add_label(self, label: Label) -> None:
        self._spans.appendleft(label)
        self._waiting = deque((state for state in self._waiting if not self._judge(*state)), _UNJUDGED)

    def add_state(self, stamp_ns: int, fused: str) -> None:
        self._states += 1
        if not self._judge(stamp_ns, fused):
            self._waiting.append((stamp_ns, fused))

    def _judge(self, stamp_ns: int, fused: str) -> bool:
        for span in self._spans:
            if span.start_ns <= stamp_ns < span.end_ns:
                pair = span.name, fused
                if pair in self._confusion or len(self._confusion) < MAX_NAMES:
                    self._confusion[pair] += 1  # else it is among those that are not judged
                return True
        return False

    def accuracy(self) -> Accuracy | None:
        judged = self._confusion.total()
        if not judged:
            return None
        classes = tuple(sorted({name for pair in self._confusion for name in pair}))
        correct = sum(self._confusion[name, name] for name in classes)
        rows = tuple(tuple(self._confusion[truth, fused] for fused in classes) for truth in classes)
        return Accuracy(judged, correct, self._states - judged, classes, rows)


def _faults(counter: Counter[str]) -> dict[str, float]:
    total = counter.total()
    bad = ((name, count) for name, count in counter.most_common() if name not in ("", "ok"))
    return {name: count / total for name, count in bad}


def _shares(counter: Counter[str]) -> dict[str, float]:
    total = counter.total()
    return {presence: counter[presence] / total for presence in ("present", "held", "absent")}
