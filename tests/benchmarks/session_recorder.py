"""The recorder under load: three 1080p JPEG cameras at 30 Hz and three microphones, all on this machine.

Counts lost messages against what the publishers sent, and gives the recorder's CPU share and memory and
the cost of writing against a plain copy of the file.

    python -m tests.benchmarks.session_recorder --seconds 60
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import psutil

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.messages import AudioBlock, CameraFrame, Header
from perception.session import Session

CAMERAS, MICROPHONES = 3, 3
WIDTH, HEIGHT, RATE_HZ = 1920, 1080, 30
SOUND_HZ, BLOCK = 48_000, 960


def jpegs() -> list[bytes]:
    """Return ten 1080p pictures of soft shapes and grain, as cameras have them, of some 400 kB each."""
    rng = np.random.default_rng(1)
    pictures = []
    for _ in range(10):
        coarse = rng.integers(0, 256, (34, 60, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        grainy = image + rng.normal(0, 6, image.shape)
        ok, data = cv2.imencode(".jpg", grainy.clip(0, 255).astype(np.uint8), (cv2.IMWRITE_JPEG_QUALITY, 85))
        assert ok
        pictures.append(data.tobytes())
    return pictures


class Source(threading.Thread):
    """Publishes one topic at its rate until stopped."""

    def __init__(self, topic: str, runtime: Runtime, clock: HostClock, payloads: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.out = Publisher(topic, source="load", runtime=runtime, clock=clock.now_ns)
        self._clock = clock
        self._payloads = payloads
        self.stopped = threading.Event()

    def run(self) -> None:
        """Send until stopped, at the points of a fixed grid of time."""
        camera = self.out.topic.startswith("camera")
        period_s = 1 / RATE_HZ if camera else BLOCK / SOUND_HZ
        start_s, number = time.monotonic(), 0
        while not self.stopped.wait(max(0.0, start_s + number * period_s - time.monotonic())):
            self.out.send(self._header(number, camera), self._payloads[number % len(self._payloads)])
            number += 1

    def _header(self, number: int, camera: bool) -> Header:
        stamp_ns = self._clock.now_ns()
        if camera:
            return CameraFrame(stamp_ns=stamp_ns, width=WIDTH, height=HEIGHT, encoding="jpeg")
        return AudioBlock(
            stamp_ns=stamp_ns, sample_index=number * BLOCK, samples=BLOCK, rate_hz=SOUND_HZ, channels=1
        )


def sources(runtime: Runtime, clock: HostClock) -> list[Source]:
    """Return all publishers, not started."""
    pictures = jpegs()
    click.echo(f"pictures of {np.mean([len(one) for one in pictures]) / 1e3:.0f} kB")
    sound = [np.random.default_rng(2).integers(-3000, 3000, BLOCK).astype("<i2").tobytes()]
    return [
        *(Source(f"camera/c{n}", runtime, clock, pictures) for n in range(CAMERAS)),
        *(Source(f"microphone/m{n}", runtime, clock, sound) for n in range(MICROPHONES)),
    ]


def start(folder: Path, domain: str, out: Path) -> "subprocess.Popen[bytes]":
    """Start a recorder process and wait until it records."""
    profile = folder / "profile.toml"
    profile.write_text(f'domain = "{domain}"\n[recorder]\nout = {json.dumps(str(out))}\n')
    process = subprocess.Popen([sys.executable, "-P", "-m", "perception.nodes.recorder", str(profile)])
    while not out.exists():
        assert process.poll() is None, "the recorder did not start"
        time.sleep(0.01)
    return process


def load(folder: Path, domain: str, seconds: float) -> None:
    """Record for a while and account for every message."""
    runtime, clock, out = Runtime(domain), HostClock(), folder / "load.mcap"
    everyone = sources(runtime, clock)
    recorder = start(folder, domain, out)
    for source in everyone:
        source.out.wait_for_subscriber(5.0)
    time.sleep(0.5)
    process, memory_mb = psutil.Process(recorder.pid), []
    for source in everyone:
        source.start()
    before, started_s = process.cpu_times(), time.monotonic()
    while time.monotonic() < started_s + seconds:
        time.sleep(1.0)
        memory_mb.append(process.memory_info().rss / 1e6)
    for source in everyone:
        source.stopped.set()
        source.join()
    time.sleep(1.0)
    after, elapsed_s = process.cpu_times(), time.monotonic() - started_s
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(10) == 0
    cpu_s = after.user + after.system - before.user - before.system
    with Session(out) as session:
        counts = session.counts
        lost = {
            source.out.topic: source.out.published - counts.get(source.out.topic, 0) for source in everyone
        }
        recorded: dict[str, Any] = session.metadata["recorded"]
    size = out.stat().st_size
    click.echo(f"sent {sum(source.out.published for source in everyone)}, lost {lost}")
    click.echo(f"recorder's own account of losses: {losses(recorded)}")
    click.echo(
        f"{size / 1e6:.0f} MB, {size / elapsed_s / 1e6:.1f} MB/s; recorder's CPU {cpu_s / elapsed_s:.1%}"
    )
    quarter = max(len(memory_mb) // 4, 1)
    click.echo(
        f"memory MB: first quarter max {max(memory_mb[:quarter]):.0f}, last quarter max "
        f"{max(memory_mb[-quarter:]):.0f}, max {max(memory_mb):.0f}"
    )
    copy_s = copy(out, folder / "copy.mcap")
    click.echo(
        f"plain copy: {copy_s:.2f} s of CPU; recorder {cpu_s:.2f} s of CPU: ratio {cpu_s / copy_s:.1f}"
    )
    for source in everyone:
        source.out.close()


def losses(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return topics of which the recorder says it lost something."""
    inputs = recorded["inputs"].items()
    return {topic: account for topic, account in inputs if account["lost"] or account["dropped"]}


def copy(source: Path, target: Path) -> float:
    """Copy a file by reading and writing and return the CPU seconds that took."""
    before = time.process_time()
    with source.open("rb") as reader, target.open("xb") as writer:
        while data := reader.read(4 << 20):
            writer.write(data)
    return time.process_time() - before


@click.command()
@click.option("--seconds", default=60.0)
def main(seconds: float) -> None:
    """Record under load."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        load(Path(folder), f"bench{os.getpid()}", seconds)


if __name__ == "__main__":
    main()
