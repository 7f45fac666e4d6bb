"""Publish -> receive latency between two processes at 60 Hz, and what a message costs in CPU.

Run: python tests/benchmarks/bus_latency.py [--seconds 5] [--rate 60]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import CameraFrame, Header, TextCommand

SENDER = "import sys; from tests.benchmarks.bus_latency import send; send(*sys.argv[1:])"


def payload_of(case: str) -> tuple[str, Header, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Return topic, header and payload of a case: `state` is 2 kB of text, `WxH` a raw BGR frame."""
    if case == "state":
        return "text/bench", TextCommand(stamp_ns=1, text="x" * 2000), np.empty(0, np.uint8)
    width, height = map(int, case.split("x"))
    frame = CameraFrame(stamp_ns=1, width=width, height=height, encoding="bgr8")
    return "camera/bench", frame, np.zeros((height, width, 3), np.uint8)


def cpu_s() -> float:
    """Return the CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def send(base: str, case: str, seconds: str, rate_hz: str) -> None:
    """Publish at an even rate; print CPU microseconds per message."""
    topic, header, payload = payload_of(case)
    count, period_s = int(float(seconds) * float(rate_hz)), 1 / float(rate_hz)
    clock = HostClock(Path(base)).now_ns
    with Publisher(topic, source="bench", runtime=Runtime(base=Path(base)), clock=clock) as publisher:
        assert publisher.wait_for_subscriber(30)
        used_s, due_s = cpu_s(), time.monotonic()
        for _ in range(count):
            due_s += period_s
            time.sleep(max(due_s - time.monotonic(), 0))
            publisher.send(header, payload)
        print((cpu_s() - used_s) / count * 1e6)


def measure(case: str, seconds: float, rate_hz: float) -> str:
    """Return one line of figures for a case."""
    topic, _, _ = payload_of(case)
    latencies_us: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        base = Path(folder)
        clock = HostClock(base).now_ns
        with Subscriber(topic, runtime=Runtime(base=base), clock=clock) as subscriber:
            command = [sys.executable, "-c", SENDER, folder, case, str(seconds), str(rate_hz)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
                used_s = 0.0
                while (message := subscriber.receive(30 if not latencies_us else 1)) is not None:
                    latencies_us.append((clock() - message.header.sent_ns) / 1e3)
                    used_s = used_s or cpu_s()
                used_s = cpu_s() - used_s
                assert sender.stdout is not None
                sender_us = float(sender.stdout.read())
            health = subscriber.health()[topic]
    p50, p99 = np.percentile(latencies_us, [50, 99])
    receiver_us = used_s / len(latencies_us) * 1e6
    return (
        f"{case:>10}: p50 {p50:6.0f} us  p99 {p99:6.0f} us  CPU per message: sender {sender_us:.0f} us, "
        f"receiver {receiver_us:.0f} us  (received {health.received}, lost {health.lost}, "
        f"dropped {sum(health.dropped.values())})"
    )


def main() -> None:
    """Measure state messages and raw frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float, default=60)
    options = parser.parse_args()
    for case in ("state", "640x480", "1920x1080"):
        print(measure(case, options.seconds, options.rate))


if __name__ == "__main__":
    main()
