"""What the states of a scenario must say about a stream, as far as its script decides it. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from perception.features.window import CONTEXT_NS
from perception.simulate.faults import SLOW, Fault
from perception.simulate.scenario import START_NS, Scenario, Stream
from perception.units import MILLISECOND_NS, SECOND_NS

Expected = Literal["present", "absent", ""]
"""Empty: the script does not decide it."""
MARGIN_NS: Final = 300 * MILLISECOND_NS
"""Uncertainty of when a fault shows in the windows: a hop and a few periods."""
_ABSENT: Final = frozenset({"death", "restart", "outage", "cut", "suspend", "malformed", "leap"})
"""Kinds during which nothing usable arrives."""
STEP_FOUND_NS: Final = 4 * SECOND_NS
"""A step of a host's clock is found within this time."""
_MOVES: Final = SLOW | {"host clock", "late", "cut", "ahead", "behind", "leap", "drift"}
"""Kinds that move stamps or arrivals: what one of them does, another may undo."""
_HARMLESS: Final = frozenset({"duplicate", "flood", "overload"})


class Span(NamedTuple):
    """What is expected of windows that end in `[start_ns, stop_ns)`."""

    start_ns: int
    stop_ns: int
    expected: Expected
    condition: str = ""
    """Of a lie that no other lie hides; empty for other faults."""


class Truth:
    """What is expected of one stream in windows of rising time."""

    def __init__(self, scenario: Scenario, stream: Stream) -> None:
        self._spans = sorted(_spans(scenario, stream))
        self._open: list[Span] = []
        self._next = 0

    def at(self, end_ns: int) -> tuple[Expected, str]:
        """Return the expected presence and condition of the window that ends at a time.

        Times must not fall. The condition is empty if the script does not decide it.
        """
        spans = self._spans
        while self._next < len(spans) and spans[self._next].start_ns <= end_ns:
            self._open.append(spans[self._next])
            self._next += 1
        if self._open:
            self._open = [span for span in self._open if end_ns < span.stop_ns]
        if not self._open:
            return "present", ""
        if len(self._open) == 1 and (only := self._open[0]).condition:
            return only.expected or "present", only.condition
        return "absent" if any(span.expected for span in self._open) else "", ""


def recovery_ns(scenario: Scenario, stream: Stream) -> int:
    """Return how long after the end of a fault a stream may be absent."""
    hop_ns = round(scenario.fusion.hop_ms * MILLISECOND_NS)
    usual_ns = 2 * stream.period_ns + hop_ns + MARGIN_NS
    if stream.kind != "microphone":
        return usual_ns
    return usual_ns + _length_ns(scenario, stream) + CONTEXT_NS


def _spans(scenario: Scenario, stream: Stream) -> Iterator[Span]:
    recovery = recovery_ns(scenario, stream)
    lateness_ns = round(scenario.fusion.lateness_ms * MILLISECOND_NS)
    hop_ns = round(scenario.fusion.hop_ms * MILLISECOND_NS)
    yield Span(0, START_NS + recovery, "")
    for fault in scenario.faults_at("fusion"):
        before_ns = lateness_ns + 2 * hop_ns + MARGIN_NS
        yield _disturbed(fault, before_ns, recovery)
    faults = scenario.faults_of(stream)
    others = [*faults, *scenario.faults_at("fusion")]
    for fault in faults:
        if fault.kind in _HARMLESS or (stream.kind == "camera" and fault.kind == "drift"):
            continue
        if fault.kind == "host clock":
            for edge_ns in (START_NS + fault.start_ns, START_NS + fault.stop_ns):
                yield Span(edge_ns - MARGIN_NS, edge_ns + STEP_FOUND_NS + recovery, "")
            continue
        moved_ns = round(fault.amount * SECOND_NS) if fault.kind in ("late", "ahead") else 0
        reaction_ns = _reaction_ns(scenario, stream) + lateness_ns * (fault.kind in ("late", "behind"))
        before_ns = MARGIN_NS + lateness_ns * (fault.kind == "cut")
        start_ns, stop_ns = START_NS + fault.start_ns + reaction_ns, START_NS + fault.stop_ns - before_ns
        if start_ns >= stop_ns or _is_moved(fault, others, recovery):
            yield _disturbed(fault, MARGIN_NS, recovery + moved_ns)
        elif fault.kind == "lie":
            absent = fault.condition in scenario.fusion.inputs[stream.topic.replace("/", "_")].absent_when
            yield Span(START_NS + fault.start_ns - MARGIN_NS, start_ns, "")
            yield Span(start_ns, stop_ns, "absent" if absent else "", fault.condition)
            yield Span(stop_ns, START_NS + fault.stop_ns + recovery, "")
        else:
            yield _disturbed(fault, MARGIN_NS, recovery + moved_ns)
            if _makes_absent(fault, stream, scenario):
                yield Span(start_ns, stop_ns, "absent")


def _disturbed(fault: Fault, before_ns: int, after_ns: int) -> Span:
    return Span(START_NS + fault.start_ns - before_ns, START_NS + fault.stop_ns + after_ns, "")


def _reaction_ns(scenario: Scenario, stream: Stream) -> int:
    """Return how long after its last data a stream may be present."""
    usual_ns = stream.period_ns + stream.jitter_ns + MARGIN_NS
    return usual_ns + (_max_age_ns(scenario, stream) if stream.kind == "camera" else 0)


def _makes_absent(fault: Fault, stream: Stream, scenario: Scenario) -> bool:
    if fault.kind in _ABSENT:
        return True
    if fault.kind not in ("late", "behind"):
        return False
    usable_ns = scenario.fusion.lateness_ms * MILLISECOND_NS + MARGIN_NS
    if stream.kind == "camera":
        usable_ns += _max_age_ns(scenario, stream)
    return fault.amount * SECOND_NS > usable_ns


def _is_moved(fault: Fault, others: Iterable[Fault], after_ns: int) -> bool:
    """Return whether another fault moves stamps or arrivals, or hides a lie, about the time of this one."""
    return any(
        other is not fault
        and (other.kind in _MOVES or other.kind == fault.kind == "lie")
        and other.start_ns - after_ns < fault.stop_ns
        and fault.start_ns < other.stop_ns + after_ns + 3 * SECOND_NS
        for other in others
    )


def _max_age_ns(scenario: Scenario, stream: Stream) -> int:
    return round(scenario.fusion.inputs[stream.topic.replace("/", "_")].max_age_ms * MILLISECOND_NS)


def _length_ns(scenario: Scenario, stream: Stream) -> int:
    return round(scenario.fusion.inputs[stream.topic.replace("/", "_")].length_ms * MILLISECOND_NS)
