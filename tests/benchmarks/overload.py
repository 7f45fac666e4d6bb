"""A fusion at twice its load for half an hour: does anything grow, is all counted, is presence true?

    python -m tests.benchmarks.overload --minutes 30 --report overload.json

Real devices, sockets and the real fusion process, whose camera encoder sleeps `--factor` hops, so the load
does not depend on the machine. Exit code 1: age of states not flat within 10 %, memory grows, counts do not
add up, or presence is wrong for a reader of states alone.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.fusion.compute import Compute
from perception.graph.fusion_process import FusionProcess
from perception.messages import PROCESS, FusedState, Health
from perception.profile import load
from tests.live import Slow

HOP_MS = 100.0
WARM_S = 60.0
DEVICES = """
domain = "overload"
[camera.front]
source = "scripted"
rate_hz = 20
width = 160
height = 120
[microphone.main]
source = "scripted"
[text.script]
source = "scripted"
"""
FUSION = f"""
[fusion]
hop_ms = {HOP_MS}
lateness_ms = 120
inputs = {{ camera = {{ topic = "camera/front" }}, microphone = {{ topic = "microphone/main" }}, text = {{ topic = "text/*" }} }}
head = {{ weights = "random", classes = ["a", "b"] }}
[fusion.encoders]
motion = {{ input = "camera", kind = "motion" }}
level = {{ input = "microphone", kind = "level" }}
intent = {{ input = "text", kind = "tfidf", options = {{ intents = {{ a = ["come here"], b = ["stop"] }} }} }}
"""  # noqa: E501


class OverloadedFusion(FusionProcess):
    """Its camera encoder takes so many seconds."""

    slow_s = 0.0

    def _compute(self) -> Compute:
        compute = super()._compute()
        slow = Slow(compute.engine, "motion", self.slow_s)
        compute.engine.encoders["motion"] = slow  # type: ignore[assignment]
        return compute


@dataclass
class Observed:
    """What a reader of states alone received, and the memory of the fusion."""

    ages: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, ms) from the end of a window to its receipt."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, MiB)."""
    states: int = 0
    shed: int = 0
    uncounted: int = 0
    """Ticks without a state that were not shed."""
    wrong_presence: int = 0
    news: int = 0
    """Frames and commands that were new in a state."""


class Reader:
    """Compares each state with the one before."""

    def __init__(self) -> None:
        self.seen = Observed()
        self._last: FusedState | None = None
        self._used: dict[str, object] = {}

    def add(self, state: FusedState, age_ms: float, at_s: float) -> None:
        seen, last = self.seen, self._last
        seen.ages.append((at_s, age_ms))
        seen.states += 1
        if last is not None:
            seen.shed += state.shed
            seen.uncounted += abs(state.tick - last.tick - 1 - state.shed) + (state.seq != last.seq + 1)
        for name in ("camera", "text"):
            part = state.modalities[name]
            if part.presence != "absent":
                now = (part.topic, part.seqs)
                is_new = now != self._used.get(name)
                seen.news += is_new
                seen.wrong_presence += last is not None and (part.presence == "present") != is_new
                self._used[name] = now
        self._last = state


def slope_is_zero(points: Sequence[tuple[float, float]], blocks: int = 20) -> tuple[bool, float, float]:
    """Return whether a slope is within 3 standard errors of 0, the slope and its error, per second.

    Neighbouring samples are not independent, so means of blocks are compared.
    """
    size = max(1, len(points) // blocks)
    means = [
        tuple(map(statistics.fmean, zip(*points[at : at + size], strict=True)))
        for at in range(0, len(points) - size + 1, size)
    ]
    xs, ys = zip(*means, strict=True)
    slope, base = statistics.linear_regression(xs, ys)
    residual = sum((y - base - slope * x) ** 2 for x, y in means) / max(1, len(means) - 2)
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    error = math.sqrt(residual / spread) if spread else math.inf
    return abs(slope) <= 3 * error or abs(slope) < 1e-4, slope, error


def p99(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def verdict(seen: Observed, health: Health | None) -> dict[str, object]:
    """Return the figures, and in `failures` what does not hold."""
    begun_s, end_s = seen.ages[0][0], seen.ages[-1][0]
    third_s = (end_s - begun_s) / 3
    thirds = [
        p99([age for at_s, age in seen.ages if begun_s + k * third_s <= at_s <= begun_s + (k + 1) * third_s])
        for k in range(3)
    ]
    flat, slope, error = slope_is_zero(seen.memory)
    failures = []
    if max(thirds) > 1.1 * min(thirds):
        failures.append("age is not flat within 10 %")
    if not flat:
        failures.append("memory grows")
    if seen.uncounted:
        failures.append(f"{seen.uncounted} ticks are not accounted for")
    if seen.wrong_presence:
        failures.append(f"presence wrong {seen.wrong_presence} times")
    for topic, one in (health.inputs if health else {}).items():
        if one.received != one.consumed + one.queued + sum(one.dropped.values()):
            failures.append(f"{topic}: {one}")
    return {
        "minutes": (end_s - begun_s) / 60,
        "states": seen.states,
        "shed": seen.shed,
        "shed share": seen.shed / (seen.shed + seen.states),
        "age p99 ms by third": thirds,
        "memory slope KiB/min": slope * 1024 * 60,
        "its standard error": error * 1024 * 60,
        "uncounted": seen.uncounted,
        "new data": seen.news,
        "wrong presence": seen.wrong_presence,
        "failures": failures,
    }


def run(minutes: float, factor: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERCEPTION_RUNTIME_DIR"] = folder
        devices, fusion = Path(folder) / "devices.toml", Path(folder) / "fusion.toml"
        devices.write_text(DEVICES)
        fusion.write_text(DEVICES + FUSION)
        again = (sys.executable, "-m", "tests.benchmarks.overload", "--fusion", str(fusion))
        commands = (
            (sys.executable, "-m", "perception", "up", str(devices)),
            (*again, "--factor", str(factor)),
        )
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        try:
            return _observe(minutes)
        finally:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait(30)


def _observe(minutes: float) -> dict[str, object]:
    reader, health, clock = Reader(), None, HostClock()
    end_s, next_s = math.inf, 0.0
    with (
        Subscriber("state/fused", runtime=Runtime("overload"), clock=clock.now_ns) as states,
        Subscriber("health/fusion", runtime=Runtime("overload"), clock=clock.now_ns) as healths,
    ):
        while (now_s := time.monotonic()) < end_s:
            message = states.receive(0.5)
            if (newer := healths.receive(0)) is not None and isinstance(newer.header, Health):
                health = newer.header
            if message is None or not isinstance(message.header, FusedState):
                continue
            if end_s == math.inf:
                begun_s, end_s = now_s, now_s + WARM_S + minutes * 60
            if now_s < begun_s + WARM_S:
                continue
            reader.add(message.header, (message.received_ns - message.header.stamp_ns) / 1e6, now_s)
            if health is not None and now_s > next_s:
                next_s = now_s + 2.0
                pages = Path(f"/proc/{int(health.device[PROCESS])}/statm").read_text().split()[1]
                reader.seen.memory.append((now_s, int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20))
        assert states.health()["state/fused"].lost == 0
    return verdict(reader.seen, health)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--factor", type=float, default=2.0, help="compute time in hops")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--fusion", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fusion:
        stopped = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: stopped.set())
        OverloadedFusion.slow_s = options.factor * HOP_MS / 1e3
        OverloadedFusion(load(options.fusion), "fusion", stopped).run()
        return 0
    figures = run(options.minutes, options.factor)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.report:
        options.report.write_text(text)
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
