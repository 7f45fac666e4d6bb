"""Whether a fusion works as it should: inputs, refusals, shed windows, states, speed of the models. Pure.

Rules. One thread owns a judge: that of the fusion loop. `add` gets the states in their order, `judge` the
counters, at least every second. A fault is reported from the first call that finds it until it has not
occurred for 3 s, or, for what lasts (a dead input, no state), as long as it lasts.
"""

from collections import Counter, deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from perception.fusion.conditions import Conditions
from perception.graph.liveness import SILENT_S, Standing
from perception.messages import FusedState
from perception.profile import FusionConfig
from perception.topics import kind_of
from perception.units import MILLISECOND_NS, SECOND_NS

SPAN_NS: Final = 3 * SECOND_NS
"""Refusals, shed windows and encoder times of this last time are judged."""
SHED_SHARE: Final = 0.1
"""More windows shed than this share is a fault; a single one is not."""
ABSENT_NS: Final = SECOND_NS // 4
"""An input that is absent for less than this is no fault: one late block."""
START_NS: Final = 3 * SECOND_NS
"""Time for devices to deliver their first data."""
STOPPED_NS: Final = SECOND_NS
"""A judge that is called four times a second and then not for longer was stopped with its process."""
_NO_FAULT: Final = frozenset({"late", "resync", "no such input", "topics forgotten", "skipped", "dropped"})
"""Counters of the core that count no refused stamp."""


class Figures(NamedTuple):
    """Counters of a fusion at one time."""

    at_ns: int
    counts: Mapping[str, Mapping[str, int]]
    """Of the core: by topic and reason."""
    newest_ns: Mapping[str, int]
    """Newest stamp by topic."""
    shed: int
    published: int


class FusionJudge:
    """Judges the health of a fusion.

    Args:
        config: of the fusion.
        started_ns: host time at which it began.
    """

    def __init__(self, config: FusionConfig, started_ns: int) -> None:
        self._hop_ns = config.hop_ms * MILLISECOND_NS
        self._wait_ns = 2 * self._hop_ns + config.lateness_ms * MILLISECOND_NS
        self._clocked = {name for name, one in config.inputs.items() if kind_of(one.topic) != "text"}
        self._conditions = {name: Conditions(one) for name, one in config.inputs.items()}
        self._started_ns = started_ns
        self._published = 0
        self._published_ns = started_ns
        """When a state was published last, as far as `judge` has seen."""
        self._absent: dict[str, tuple[int, str, str]] = {}
        """By input: end of the first window of this absence, topic, reason."""
        self._suspect: dict[str, str] = {}
        """By topic: condition of the newest data."""
        self._stamp_ns = 0
        self._took_ms: deque[tuple[int, Mapping[str, float], float]] = deque()
        """Of each state of the last SPAN_NS: window end, time of each encoder and of the head."""
        self._before: deque[Figures] = deque()
        """Of the last SPAN_NS, and the last ones before that."""

    def add(self, state: FusedState) -> None:
        """Add a state that was computed."""
        self._stamp_ns = state.stamp_ns
        self._took_ms.append((state.stamp_ns, state.latency.encoders_ms, state.latency.head_ms))
        while self._took_ms[0][0] < state.stamp_ns - SPAN_NS:
            self._took_ms.popleft()
        absent = {}
        for name in self._clocked & state.modalities.keys():
            one = state.modalities[name]
            if one.presence == "absent":
                since_ns = self._absent.get(name, (state.stamp_ns,))[0]
                absent[name] = since_ns, one.topic, one.condition or one.reason
        self._absent = absent
        self._suspect = {
            one.topic: one.condition
            for name, one in state.modalities.items()
            if one.presence != "absent" and self._conditions[name].is_suspect(one.condition)
        }

    def judge(self, now: Figures) -> Standing:
        """Return how the fusion stands; the reason names what is wrong, with its figure."""
        if now.published != self._published:
            self._published, self._published_ns = now.published, now.at_ns
        elif self._before and (stopped_ns := now.at_ns - self._before[-1].at_ns) > STOPPED_NS:
            self._published_ns += stopped_ns  # while a process is stopped or its host sleeps, no model hangs
        self._before.append(now)
        while len(self._before) > 1 and self._before[1].at_ns <= now.at_ns - SPAN_NS:
            self._before.popleft()
        stateless_ns = self.stateless_ns(now.at_ns)
        faults = [*self._inputs(now), *self._refused(now), *self._shed(now), *self._slow()]
        if stateless_ns > self._wait_ns + (0 if self._published else START_NS):
            faults.insert(0, f"no state for {stateless_ns / SECOND_NS:.1f} s")
        if stateless_ns > max(SILENT_S * SECOND_NS, 2 * self._wait_ns):
            return Standing("lost", "; ".join(faults))
        return Standing("degraded" if faults else "ok", "; ".join(faults))

    def stateless_ns(self, now_ns: int) -> int:
        """Return for how long no state was published while this process ran."""
        return now_ns - self._published_ns

    def _inputs(self, now: Figures) -> list[str]:
        """Return the dead and the suspect inputs."""
        faults = []
        started = now.at_ns - self._started_ns > START_NS
        for since_ns, topic, reason in self._absent.values() if started else ():
            if (newest_ns := now.newest_ns.get(topic)) is None:
                faults.append(f"{topic}: no data since the start")
            elif self._stamp_ns - since_ns >= ABSENT_NS:
                age_s = (now.at_ns - newest_ns) / SECOND_NS
                faults.append(f"{topic}: absent: {reason}, newest data {age_s:.1f} s old")
        return faults + [f"{topic}: suspect: {condition}" for topic, condition in self._suspect.items()]

    def _refused(self, now: Figures) -> list[str]:
        """Return the topics of which messages were refused, and why."""
        before = self._before[0]
        faults = []
        for topic, reasons in now.counts.items():
            if reasons == (counted := before.counts.get(topic, {})):
                continue
            grown = Counter(reasons) - Counter(counted)
            words = [f"{reason} {count}" for reason, count in grown.items() if reason not in _NO_FAULT]
            if words:
                over_s = max(1.0, (now.at_ns - before.at_ns) / SECOND_NS)
                faults.append(f"{topic}: refused in {over_s:.0f} s: {', '.join(words)}")
        return faults

    def _shed(self, now: Figures) -> list[str]:
        """Return the share of windows that were shed, if it is too large."""
        before = self._before[0]
        shed, published = now.shed - before.shed, now.published - before.published
        share = shed / max(1, shed + published)
        return [f"{share:.0%} of windows shed"] if shed > 1 and share > SHED_SHARE else []

    def _slow(self) -> list[str]:
        """Return the slowest encoder, if the models take longer than a hop."""
        if not self._took_ms:
            return []
        total: Counter[str] = Counter()
        for _, encoders_ms, head_ms in self._took_ms:
            for name, took_ms in encoders_ms.items():
                total[f"encoder {name}"] += took_ms  # type: ignore[assignment]
            total["the head"] += head_ms  # type: ignore[assignment]
        count, hop_ms = len(self._took_ms), self._hop_ns / MILLISECOND_NS
        mean_ms = sum(total.values()) / count
        if mean_ms <= hop_ms:
            return []
        name, most_ms = max(total.items(), key=lambda item: item[1])
        return [f"models take {mean_ms:.0f} ms of a hop of {hop_ms:.0f} ms, {name} {most_ms / count:.0f} ms"]
