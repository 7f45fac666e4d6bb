"""Processes that a bench starts: none of them outlives the block that started it."""

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_STOP_S: Final = 10.0


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process in a group of its own, so that Ctrl-C reaches only this one; stop it at the end.

    Args:
        command: program and arguments.
        options: further arguments of `subprocess.Popen`.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interrupt_delayed():
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, **options)
        yield process
    finally:
        if process is not None:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    with process:  # closes its pipes and waits
        pass


@contextmanager
def _interrupt_delayed() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block: a process that is started there is known then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal is handled in this thread
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        signal.raise_signal(signal.SIGINT)
