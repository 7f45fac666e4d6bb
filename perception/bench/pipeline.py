"""Time from capture to state in a whole graph of processes, compared with its models alone.

The time counts from the end of a window, when the last of its data is captured, until its state is sent. A
state holds how long its window waited for data. The time without that wait and without the models is the
overhead of the pipeline. It is reported in two ways: minus the model time of the same tick (`rest`), and
minus the median or the 95th percentile of the models alone (`over_limit_p50`, `over_limit_p95`).
"""

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from perception.bench.child import child
from perception.bench.rounds import Values
from perception.bench.tick import PROFILES, TickBench, anywhere
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.messages import FusedState
from perception.profile import load

_CAPTURE: Final = ("camera.front.rate_hz=30", "text.script.source=scripted")
_PATIENCE_S: Final = 120.0
_LEAST: Final = 2
"""Fewest ticks that have quantiles."""
_CLOCKED: Final = ("camera", "microphone")
_NS_PER_MS: Final = 1e6


def cases(
    *, seconds: float, hz: float = 10.0, profiles: Sequence[str] = PROFILES
) -> dict[str, Callable[[], Values]]:
    """Return the measurements by name: the graph of each profile, and its models alone."""
    found: dict[str, Callable[[], Values]] = {}
    for name in profiles:
        options = (*anywhere(name), *_CAPTURE, f"fusion.hop_ms={1e3 / hz}")
        bench = _Pipeline(name, options, seconds, hop_s=1 / hz)
        found[f"{name} limit: models alone"] = bench.models_alone
        found[name] = bench.states
    return found


class _Pipeline:
    """The graph of one profile; the models alone are run before it, with no other process."""

    def __init__(self, name: str, options: tuple[str, ...], seconds: float, *, hop_s: float) -> None:
        self._name = name
        self._options = options
        self._seconds = seconds
        self._hop_s = hop_s
        self._limit: dict[str, float] = {}

    def models_alone(self) -> Values:
        """Return the time of encoders and head in milliseconds, run as often as in the graph."""
        bench = TickBench(
            load(self._name, self._options), self._seconds
        )  # as many pictures as the graph receives
        ticks = max(_LEAST, round(self._seconds / self._hop_s))
        spent_ms = [spent_us / 1e3 for spent_us, _ in bench.models(ticks, hop_s=self._hop_s)]
        self._limit = {"p50_ms": statistics.median(spent_ms), "p95_ms": _p95(spent_ms)}
        return self._limit

    def states(self) -> Values:
        """Return the delays of states in milliseconds, and their rate."""
        with _graph(self._name, self._options) as inbox:
            states = list(_states(inbox, self._seconds))
        sent_ms = [(state.sent_ns - state.stamp_ns) / _NS_PER_MS for state in states]
        align_ms = [state.latency.align_ms for state in states]
        models_ms = [sum(s.latency.encoders_ms.values()) + s.latency.head_ms for s in states]
        rest_ms = [
            sent - align - models for sent, align, models in zip(sent_ms, align_ms, models_ms, strict=True)
        ]
        worked_ms = [sent - align for sent, align in zip(sent_ms, align_ms, strict=True)]
        span_s = (states[-1].stamp_ns - states[0].stamp_ns) / 1e9
        return {
            "p50_ms": statistics.median(sent_ms),
            "p95_ms": _p95(sent_ms),
            "align_p50_ms": statistics.median(align_ms),
            "align_p95_ms": _p95(align_ms),
            "models_p50_ms": statistics.median(models_ms),
            "rest_p95_ms": _p95(rest_ms),
            "over_limit_p50_p95_ms": _p95(worked_ms) - self._limit["p50_ms"],
            "over_limit_p95_p95_ms": _p95(worked_ms) - self._limit["p95_ms"],
            "rate_hz": (len(states) - 1) / span_s,
            "shed": float(sum(state.shed for state in states)),
        }


def _states(inbox: Subscriber, seconds: float) -> Iterator[FusedState]:
    """Yield the states of so many seconds, at least two, from the first with camera and microphone."""
    deadline_s, end_s, count = time.monotonic() + _PATIENCE_S, math.inf, 0
    while (left_s := (deadline_s if count < 2 else end_s) - time.monotonic()) > 0:
        message = inbox.receive(left_s)
        if message is None or not isinstance(message.header, FusedState):
            continue
        state = message.header
        if not count:
            if any(state.modalities[name].presence == "absent" for name in _CLOCKED):
                continue
            end_s = time.monotonic() + seconds
            deadline_s = end_s + _PATIENCE_S
        count += 1
        yield state
    if count < 2:
        raise PerceptionError(f"no whole state within {_PATIENCE_S:g} s; try perception doctor demo")


@contextmanager
def _graph(name: str, options: tuple[str, ...]) -> Iterator[Subscriber]:
    """Start a profile's graph in a domain of its own."""
    domain = f"bench-{name}"
    arguments = [part for option in options for part in ("--set", option)]
    command = [sys.executable, "-P", "-m", "perception", "up", name, "--domain", domain, *arguments]
    with (
        Subscriber("state/fused", runtime=Runtime(domain), clock=HostClock().now_ns) as inbox,
        child(command, stdout=subprocess.DEVNULL),
    ):
        yield inbox


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[18]
