"""How evenly a session is published at rate 1: a real replayer process, and a subscriber that checks it all.

    python -m tests.benchmarks.replay_jitter --messages 15000

The session is the scripted devices' at high rates, so that so many messages fit into some minutes. Jitter is
how far each message's time of sending lies from where the recording has it, the median taken off.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.devices.scripted import messages
from perception.messages import Header, Message
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from perception.session import SessionWriter, read
from perception.session.recorder import EVERY_MESSAGE

CAMERA = CameraConfig(source="scripted", width=320, height=240, rate_hz=60)
MICROPHONE = MicrophoneConfig(source="scripted", block_ms=16)
PER_SECOND = 60 + 62.5


def write(file: Path, count: int) -> None:
    """A session of at least so many messages."""
    with SessionWriter(file) as writer:
        for message in messages(ScriptConfig(seed=5), CAMERA, MICROPHONE, count / PER_SECOND + 1):
            writer.write(message)


def listen(file: Path, domain: str) -> list[Message[Header]]:
    """Replay the file in a process of its own and return all that came."""
    runtime, clock = Runtime(domain), HostClock().now_ns
    received: list[Message[Header]] = []
    topics = ("camera/*", "microphone/*", "text/*", "label/*")
    with Subscriber(*topics, runtime=runtime, clock=clock, policies=EVERY_MESSAGE) as subscriber:
        command = [sys.executable, "-m", "perception", "replay", str(file), "--domain", domain]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while (message := subscriber.receive(0.5)) is not None or process.poll() is None:
            if message is not None:
                received.append(message)
    return received


def sequence(stream: list[Message[Header]]) -> dict[str, list[int]]:
    """Stamps by topic, from the first on."""
    first_ns = stream[0].header.stamp_ns
    stamps: dict[str, list[int]] = defaultdict(list)
    for message in stream:
        stamps[message.topic].append(message.header.stamp_ns - first_ns)
    return stamps


@click.command()
@click.option("--messages", "count", default=15_000)
def main(count: int) -> None:
    """Print losses and jitter."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["PERCEPTION_RUNTIME_DIR"] = name
        file = Path(name) / "even.mcap"
        write(file, count)
        recorded = list(read(file))
        begun_s = time.monotonic()
        received = listen(file, "jitter")
        took_s = time.monotonic() - begun_s
    same = sequence(recorded) == sequence(received)
    click.echo(
        f"{len(recorded)} recorded, {len(received)} received in {took_s:.1f} s; equal and in order: {same}"
    )
    arrivals = {(m.topic, m.header.seq): m.received_ns for m in recorded}
    off = np.array([m.header.sent_ns - arrivals[m.topic, m.header.seq] for m in received]) / 1e6
    jitter = np.abs(off - np.median(off))
    p50, p99, worst = np.percentile(jitter, [50, 99, 100])
    load = os.getloadavg()[0]
    click.echo(f"publish jitter p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {worst:.3f} ms at load {load:.1f}")


if __name__ == "__main__":
    main()
