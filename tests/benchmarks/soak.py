"""A graph for minutes: does it hold its rate, and does anything grow?

    python -m tests.benchmarks.soak robot --minutes 5 --set fusion.weights=random \
        --set camera.front.source=scripted --set microphone.main.source=scripted

One line a minute: rate, latency, sheds, messages queued in the fusion process, memory and open files of
each process; at the end what has grown since the second minute, while caches filled in the first.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import psutil

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.messages import FusedState, Header, Health, Message
from perception.profile import load


@dataclass
class Minute:
    """What one minute brought."""

    begun_s: float
    stamps_ns: list[int] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    shed: int = 0
    queued: int = 0

    def take(self, message: Message[Header]) -> None:
        match message.header:
            case FusedState() as state:
                self.stamps_ns.append(state.stamp_ns)
                self.total_ms.append((state.sent_ns - state.stamp_ns) / 1e6)
                self.shed += state.shed
            case Health(node="fusion") as health:
                self.queued = max(self.queued, *(item.queued for item in health.inputs.values()), 0)

    def line(self, processes: list[psutil.Process]) -> str:
        span_s = (self.stamps_ns[-1] - self.stamps_ns[0]) / 1e9
        quantiles = statistics.quantiles(self.total_ms, n=100)
        held = ", ".join(f"{name} {mib:.0f}/{files}" for name, (mib, files) in held_by(processes).items())
        return (
            f"{(len(self.stamps_ns) - 1) / span_s:6.3f} Hz  end->sent p50 {quantiles[49]:6.1f} "
            f"p95 {quantiles[94]:6.1f} p99 {quantiles[98]:6.1f} ms  shed {self.shed}  "
            f"queued {self.queued}  MiB/files: {held}"
        )


def held_by(processes: list[psutil.Process]) -> dict[str, tuple[float, int]]:
    """Return by node its resident memory in MiB and its open files."""
    return {node_of(one): (one.memory_info().rss / 2**20, one.num_fds()) for one in processes}


def node_of(process: psutil.Process) -> str:
    words = process.cmdline()
    modules = [word.rpartition(".")[2] for word in words if word.startswith("perception.nodes.")]
    return modules[0] if modules else "launcher"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    profile = load(arguments.profile, tuple(arguments.overrides))
    options = [part for override in arguments.overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "perception", "up", arguments.profile, *options]
    graph = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with Subscriber(
            "state/*", "health/*", runtime=Runtime(profile.domain), clock=HostClock().now_ns
        ) as inbox:
            while not isinstance(getattr(inbox.receive(120.0), "header", None), FusedState):
                if graph.poll() is not None:
                    sys.exit(graph.returncode)
            launcher = psutil.Process(graph.pid)
            processes = [launcher, *launcher.children(recursive=True)]
            begun = held_by(processes)
            for number in range(arguments.minutes):
                minute = Minute(time.monotonic())
                while time.monotonic() < minute.begun_s + 60:
                    if (message := inbox.receive(1.0)) is not None:
                        minute.take(message)
                print(minute.line(processes), flush=True)
                if number == 0:
                    begun = held_by(processes)
            for name, (mib, files) in held_by(processes).items():
                print(f"{name}: {mib - begun[name][0]:+.1f} MiB, {files - begun[name][1]:+d} files")
    finally:
        graph.terminate()
        graph.wait(30)


if __name__ == "__main__":
    main()
