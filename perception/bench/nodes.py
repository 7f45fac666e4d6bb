"""What each node of the demo takes: CPU, memory and its growth, rate, age, start-up, log volume.

The whole demo runs once, with a recorder. Each node is measured from its own process and from what it
publishes. The case `limit` holds what the figures are compared with: a fixed piece of work and the smallest
process on this machine, and the periods and bounds that hold on any.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from perception.bench.child import child
from perception.bench.rounds import Values
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.messages import PROCESS, Header, Health, Message, reached_ns
from perception.topics import TOPICS

_PROFILE: Final = "demo"
NODES: Final = {
    "camera-front": "camera/front",
    "microphone-main": "microphone/main",
    "text-script": "text/script",
    "fusion": "state/fused",
    "recorder": "health/recorder",
    "supervisor": "health/supervisor",
}
"""Main topic of each node."""
_SPARSE: Final = "text-script"
"""It publishes when there is a line; it has started when it reports."""
_PERIODS_MS: Final = {"camera-front": 50.0, "microphone-main": 32.0, "fusion": 100.0}
"""Of the demo's profile; the others publish a health message a second."""
_PATIENCE_S: Final = 120.0
_SETTLE_S: Final = 3.0
_PAUSE_S: Final = 0.5
_EVERY: Final = {kind: replace(row, policy="queue", depth=4096) for kind, row in TOPICS.items()}


def cases(seconds: float, domain: str = "bench") -> dict[str, Callable[[], Values]]:
    """Return the measurements by name. The first node's case runs the demo for `seconds`, for all of them."""
    measured: dict[str, Values] = {}

    def measure(name: str) -> Callable[[], Values]:
        def figures() -> Values:
            if name not in measured:
                measured.update(_Run(domain).measure(seconds))
            return measured.pop(name)

        return figures

    return {"limit": _limit, **{name: measure(name) for name in NODES}}


@dataclass(slots=True)
class _Samples:
    """What was observed of one node."""

    first_s: float | None = None
    """Since the start of the graph, to the first message of its topic."""
    ages_ms: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, MiB)."""
    log_bytes: int = 0


class _Run:
    """One run of the demo."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._nodes: dict[str, _Samples] = {name: _Samples() for name in NODES}
        self._pids: dict[str, int] = {}
        self._by_topic = {topic: name for name, topic in NODES.items()}
        self._measuring = False

    def measure(self, seconds: float) -> dict[str, Values]:
        """Start the graph, wait until all nodes work, and measure for `seconds`."""
        with tempfile.TemporaryDirectory() as folder:
            command = (sys.executable, "-P", "-m", "perception", "up", _PROFILE, "--domain", self._domain)
            record = ("--set", "record=true", "--set", f'recorder.out="{folder}/bench.mcap"')
            with (
                Subscriber(*("state/*", "health/*", "camera/*", "microphone/*", "text/*"),
                    runtime=Runtime(self._domain), clock=HostClock().now_ns, policies=_EVERY) as subscriber,
                child((*command, *record), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
            ):  # fmt: skip
                assert process.stdout is not None
                reader = threading.Thread(target=self._read_log, args=(process.stdout,), daemon=True)
                reader.start()
                begun_s = time.monotonic()
                self._observe(subscriber, begun_s, begun_s + _PATIENCE_S, until=self._complete)
                if not self._complete():
                    missing = ", ".join(name for name in NODES if not self._working(name))
                    raise PerceptionError(f"{missing}: no sign of life; try perception doctor {_PROFILE}")
                self._observe(subscriber, begun_s, time.monotonic() + _SETTLE_S)
                before = {name: _cpu_s(pid) for name, pid in self._pids.items()}
                counted = _published(subscriber)
                self._measuring, started_s = True, time.monotonic()
                self._observe(subscriber, begun_s, started_s + seconds)
                took_s = time.monotonic() - started_s
                after = _published(subscriber)
                return {
                    name: self._figures(
                        name, _cpu_s(self._pids[name]) - before[name],
                        after[topic] - counted[topic], took_s,
                    )
                    for name, topic in NODES.items()
                }  # fmt: skip

    def _complete(self) -> bool:
        return all(map(self._working, NODES))

    def _working(self, name: str) -> bool:
        return self._nodes[name].first_s is not None and name in self._pids

    def _observe(
        self, subscriber: Subscriber, begun_s: float, end_s: float, until: Callable[[], bool] = lambda: False
    ) -> None:
        next_s = 0.0
        while (now_s := time.monotonic()) < end_s and not until():
            if (message := subscriber.receive(min(0.1, end_s - now_s))) is not None:
                self._add(message, now_s - begun_s)
            if self._measuring and now_s >= next_s:
                next_s = now_s + _PAUSE_S
                for name, pid in self._pids.items():
                    self._nodes[name].memory.append((now_s, _memory_mib(pid)))

    def _add(self, message: Message[Header], at_s: float) -> None:
        header = message.header
        if isinstance(header, Health) and (pid := int(header.device.get(PROCESS, 0))):
            self._pids[header.node] = pid
            if header.node == _SPARSE:  # its first line may be due much later
                self._nodes[_SPARSE].first_s = self._nodes[_SPARSE].first_s or at_s
        if (name := self._by_topic.get(message.topic)) is not None:
            node = self._nodes[name]
            node.first_s = node.first_s or at_s
            if self._measuring:
                node.ages_ms.append((message.received_ns - reached_ns(header)) / 1e6)

    def _read_log(self, lines: IO[bytes]) -> None:
        """Count what each node writes; the supervisor's are the lines of no node."""
        with suppress(ValueError):
            for line in lines:
                name, mark, _ = line.decode(errors="replace").partition(" | ")
                node = self._nodes.get(name.strip() if mark else "supervisor")
                if node is not None and self._measuring:
                    node.log_bytes += len(line)

    def _figures(self, name: str, cpu_s: float, published: int, took_s: float) -> Values:
        node = self._nodes[name]
        times, memory = zip(*node.memory, strict=True)
        figures = {
            "cpu_percent": cpu_s / took_s * 100,
            "mebibytes": statistics.median(memory),
            "growth_kib_s": max(0.0, statistics.linear_regression(times, memory).slope * 1024),
            "log_bytes_s": node.log_bytes / took_s,
            "start_s": node.first_s or 0.0,
        }
        if node.ages_ms:
            figures["age_p99_ms"] = sorted(node.ages_ms)[len(node.ages_ms) * 99 // 100]
        if name != _SPARSE:
            figures["period_ms"] = took_s * 1e3 / max(published, 1)
            figures["period_ratio"] = figures["period_ms"] / _PERIODS_MS.get(name, 1000.0)
            figures["cpu_ms"] = cpu_s * 1e3 / max(published, 1)
        return figures


def _published(subscriber: Subscriber) -> defaultdict[str, int]:
    """Return how many messages of each topic were published, received here or not."""
    counts: defaultdict[str, int] = defaultdict(int)
    for topic, one in subscriber.health().items():
        counts[topic] = one.received + one.lost
    return counts


def _limit() -> Values:
    """Return what figures are compared with: measured here where machines differ."""
    script = (
        "import cv2, numpy as np, resource, time\n"
        "image = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)\n"
        "cv2.setNumThreads(1)\n"
        "begun = time.process_time()\n"
        "for _ in range(50): cv2.imdecode(cv2.imencode('.jpg', image)[1], 1)\n"
        "print((time.process_time() - begun) * 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    begun_s = time.monotonic()
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    cpu_ms, mebibytes = map(float, done.stdout.split())
    return {
        "cpu_ms": cpu_ms,
        "mebibytes": mebibytes,
        "start_s": time.monotonic() - begun_s,
        "cpu_percent": 1.0,
        "growth_kib_s": 1.0,
        "log_bytes_s": 1.0,
        "age_p99_ms": 1.0,
        "period_ratio": 1.0,
    }


def _cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of a process, user and system."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> float:
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    return 0.0
