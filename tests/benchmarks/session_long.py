"""A long session: how fast `info` and `trim` are, and how much memory reading takes.

Writes hours of JPEG camera, sound and states without waiting; each step is measured in its own process.

    python -m tests.benchmarks.session_long --hours 2
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from msgspec import structs

from perception.bus import codec
from perception.bus.schema import golden_vectors
from perception.messages import AudioBlock, CameraFrame, Header, Message
from perception.session import SessionWriter

FRAME_HZ, BLOCK_HZ, STATE_HZ, RATE_HZ = 30, 31.25, 10, 16_000
START_NS = 1_700_000_000_000_000_000
_PRELUDE = """
import shutil, sys, time
from pathlib import Path
path, part, hours = Path(sys.argv[1]), Path(sys.argv[1] + ".part"), float(sys.argv[2])
before = time.perf_counter()
"""
_CODA = """
status = Path("/proc/self/status").read_text()
peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1e3
print(f"{time.perf_counter() - before:.2f} s, peak memory {peak_mb:.0f} MB")
"""
_INFO = "from perception.session.info import info; info(path)"
_READ = "from perception.session import read; print(sum(1 for _ in read(path, ['{}'])))"
_TRIM = "from perception.session.edit import trim; trim(path, part, start_s=hours * 900, end_s=hours * 2700)"


def stream(hours: float, frame_bytes: int) -> Iterator[Message[Header]]:
    """Yield camera, sound and state in the order of their times."""
    seconds, rng = hours * 3600, np.random.default_rng(1)
    payload = rng.bytes(frame_bytes)
    sound = rng.integers(-2000, 2000, RATE_HZ).astype("<i2").tobytes()
    parts = next(vector["parts"] for vector in golden_vectors() if vector["topic"] == "state/fused")
    state = codec.decode([bytes.fromhex(part) for part in parts], received_ns=0).header
    times = [
        *((k / FRAME_HZ, 0, k) for k in range(int(seconds * FRAME_HZ))),
        *((k / BLOCK_HZ, 1, k) for k in range(int(seconds * BLOCK_HZ))),
        *((k / STATE_HZ, 2, k) for k in range(int(seconds * STATE_HZ))),
    ]
    for at_s, kind, seq in sorted(times):
        stamp_ns = START_NS + round(at_s * 1e9)
        common: dict[str, Any] = {"seq": seq, "stamp_ns": stamp_ns, "sent_ns": stamp_ns, "source": "x#1"}
        if kind == 0:
            frame = CameraFrame(**common, width=640, height=480, encoding="jpeg")
            yield Message("camera/front", frame, payload, stamp_ns)
        elif kind == 1:
            block = AudioBlock(**common, sample_index=seq * 512, samples=512, rate_hz=RATE_HZ)
            at = seq * 512 % (RATE_HZ - 512)
            yield Message("microphone/main", block, sound[2 * at : 2 * at + 1024], stamp_ns)
        else:
            yield Message("state/fused", structs.replace(state, **common, tick=seq), b"", stamp_ns)


def measure(title: str, code: str, path: Path, hours: float) -> None:
    """Run code in a fresh process and print what it took."""
    command = [sys.executable, "-c", f"{_PRELUDE}{code}{_CODA}", str(path), str(hours)]
    done = subprocess.run(command, capture_output=True, text=True)
    click.echo(f"{title}: {done.stdout.splitlines()[-1] if done.stdout else done.stderr}")


@click.command()
@click.option("--hours", default=2.0)
@click.option("--frame-bytes", default=30_000)
def main(hours: float, frame_bytes: int) -> None:
    """Write, then measure."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "long.mcap"
        started = time.perf_counter()
        with SessionWriter(path) as writer:
            for message in stream(hours, frame_bytes):
                writer.write(message)
        size = path.stat().st_size
        click.echo(f"{size / 1e9:.2f} GB written in {time.perf_counter() - started:.0f} s")
        measure("nothing but starting Python", "", path, hours)
        measure("info", _INFO, path, hours)
        measure("read the states", _READ.format("state/*"), path, hours)
        measure("read everything", _READ.format("*"), path, hours)
        measure("trim the middle half", _TRIM, path, hours)
        measure("plain copy of that half", "shutil.copyfile(part, str(part) + '.copy')", path, hours)
        with path.open("r+b") as file:
            file.truncate(size * 9 // 10)
        measure("info of a killed file, read through", _INFO, path, hours)


if __name__ == "__main__":
    main()
