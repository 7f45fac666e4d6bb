"""Saturate the shared-memory lane, killing publisher and readers in turn; count torn frames and what is left.

python tests/benchmarks/lane_stress.py --kills 20 --seconds 600
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import CameraFrame

WIDTH, HEIGHT = 1280, 720
SIZE = WIDTH * HEIGHT * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of either side")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--role", choices=["publish", "fast", "slow"])
    parser.add_argument("--base", type=Path)
    arguments = parser.parse_args()
    if arguments.role == "publish":
        publish(arguments.base)
    elif arguments.role:
        read(arguments.base, 0.1 if arguments.role == "slow" else 0.0)
    else:
        supervise(arguments.kills, arguments.seconds)


def publish(base: Path) -> None:
    header = CameraFrame(stamp_ns=1, width=WIDTH, height=HEIGHT, encoding="bgr8")
    with Publisher(
        "camera/a", source="stress", runtime=Runtime(base=base), clock=HostClock(base).now_ns
    ) as publisher:
        while True:
            loan = publisher.loan(SIZE)
            np.frombuffer(loan.data, np.uint8)[:] = publisher.published % 251
            publisher.send(header, loan)


def read(base: Path, pause_s: float) -> None:
    torn = good = 0
    with Subscriber("camera/a", runtime=Runtime(base=base), clock=HostClock(base).now_ns) as subscriber:
        for message in subscriber:
            time.sleep(pause_s)
            whole = bool((np.frombuffer(message.payload, np.uint8) == message.header.seq % 251).all())
            torn, good = torn + (not whole), good + whole
            print(torn, good, flush=True)


def supervise(kills: int, seconds: float) -> None:
    before = shared_bytes()
    logs: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        base = Path(folder)

        def start(role: str) -> "subprocess.Popen[bytes]":
            logs.append(base / f"{len(logs)}.log")
            command = [sys.executable, __file__, "--role", role, "--base", folder]
            with logs[-1].open("wb") as log:
                return subprocess.Popen(command, stdout=log)

        roles = ["publish", "fast", "slow"]
        running = [start(role) for role in roles]
        for kill in range(2 * kills):
            time.sleep(seconds / (2 * kills))
            victim = 0 if kill % 2 else 1 + kill // 2 % 2
            running[victim].kill()
            running[victim].wait()
            running[victim] = start(roles[victim])
        for process in running:
            process.kill()
            process.wait()
        last = [log.read_text().splitlines()[-1].split() for log in logs if log.stat().st_size]
    torn, good = (sum(int(counts[column]) for counts in last) for column in (0, 1))
    print(f"{good} frames delivered whole, {torn} torn")
    print(f"shared memory: {shared_bytes() - before} bytes more than before")


def shared_bytes() -> int:
    """Bytes of shared memory on this machine, named or not."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) * 1024


if __name__ == "__main__":
    main()
