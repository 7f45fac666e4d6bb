"""Runs capture nodes as processes and gathers what they publish, for the capture benchmarks."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.messages import AudioBlock, CameraFrame, Header, Health, Message


@dataclass
class Run:
    """What was received while the nodes ran."""

    frames: list[Message[CameraFrame]] = field(default_factory=list)
    blocks: list[Message[AudioBlock]] = field(default_factory=list)
    health: dict[str, Health] = field(default_factory=dict)
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    def take_all(self, messages: Iterable[Message[Header]]) -> None:
        """Sort in messages until there are no more."""
        for message in messages:
            self.take(message)

    def take(self, message: Message[Header]) -> None:
        """Sort in one message; a frame's pixels are not kept."""
        header = message.header
        if isinstance(header, CameraFrame):
            self.frames.append(Message(message.topic, header, b"", message.received_ns))
        elif isinstance(header, AudioBlock):
            kept = bytes(message.payload)
            self.blocks.append(Message(message.topic, header, kept, message.received_ns))
        elif isinstance(header, Health):
            self.health[header.node] = header


def run_nodes(
    profile: Path,
    nodes: Sequence[tuple[str, str]],
    *,
    domain: str,
    origin_ns: int,
    seconds: float | None = None,
) -> Run:
    """Run `(kind, name)` nodes until all end, or for `seconds`, and return what came."""
    clock = HostClock()
    run = Run()
    environment = os.environ | {"PERCEPTION_ORIGIN_NS": str(origin_ns), "OMP_NUM_THREADS": "1"}
    with Subscriber(
        "camera/*", "microphone/*", "health/*", runtime=Runtime(domain), clock=clock.now_ns
    ) as bus:
        reader = threading.Thread(target=run.take_all, args=(bus,))
        reader.start()
        processes = {
            f"{kind}-{name}": subprocess.Popen(
                (sys.executable, "-P", "-m", f"perception.nodes.{kind}", str(profile), "--name", name),
                env=environment,
            )
            for kind, name in nodes
        }
        end = time.monotonic() + (seconds or 3600)
        while time.monotonic() < end and any(process.poll() is None for process in processes.values()):
            for name, process in processes.items():
                if process.poll() is None:
                    run.peak_rss_mb[name] = peak_rss_mb(process.pid) or run.peak_rss_mb.get(name, 0.0)
            time.sleep(0.1)
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        run.exit_codes = [process.wait(5) for process in processes.values()]
        time.sleep(0.3)
        run.lost = {topic: health.lost for topic, health in bus.health().items()}
    reader.join()
    return run


def peak_rss_mb(pid: int) -> float:
    """Return a process's peak memory so far, 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def percentiles(values: Sequence[float]) -> str:
    """Return `p50 p95 max` of some milliseconds, one decimal."""
    if not values:
        return "none"
    return " / ".join(f"{np.percentile(values, q):.1f}" for q in (50, 95, 100))


def frame_ages_ms(run: Run) -> list[float]:
    """Return received minus stamp of each frame."""
    return [(frame.received_ns - frame.header.stamp_ns) / 1e6 for frame in run.frames]


def block_ages_ms(run: Run) -> list[float]:
    """Return received minus the moment the block's last sample was converted."""
    return [
        (block.received_ns - block.header.stamp_ns) / 1e6 - block.header.samples / block.header.rate_hz * 1e3
        for block in run.blocks
    ]
