"""What workers do in tests: importable by any process, and without torch, so that one starts quickly."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from perception.errors import SessionError
from perception.training.workers import spread

Step = Callable[[], object]


def squared(number: int, step: Step) -> tuple[int, int]:
    """The square, in so many steps, and who computed it."""
    for _ in range(number):
        step()
    return number * number, os.getpid()


def called(item: Callable[[], int], step: Step) -> tuple[int, int]:
    """Return the result of an item of any class, and the process that called it."""
    return item(), os.getpid()


def endless(folder: Path, step: Step) -> None:
    """Write a file to show that it runs, then run forever, step by step."""
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(0.01)
        step()


def fragile(kind: str, step: Step) -> str:
    """Fail in the way that the item names."""
    if kind == "refuse":
        raise SessionError("kitchen.mcap: not an MCAP file")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


def spread_endless(folder: str) -> None:
    """Two processes at work for ever."""
    spread(endless, [Path(folder)] * 2, 2)
