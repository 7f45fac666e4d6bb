"""Single keys from a terminal that pause, step and end a player."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, Protocol

Key = Literal["pause", "step", "quit"]
_KEYS: Final[dict[str, Key]] = {" ": "pause", ".": "step", "q": "quit"}


class Keyboard(Protocol):
    """Source of keys."""

    def wait(self, timeout_s: float) -> Key | None:
        """Wait for a key, at most `timeout_s`; return None if none came."""


class NoKeyboard:
    """A keyboard without keys, if standard input is no terminal."""

    def wait(self, timeout_s: float) -> Key | None:
        """Wait."""
        time.sleep(timeout_s)
        return None


class Terminal:
    """Keys of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, timeout_s: float) -> Key | None:
        """Wait for one of the keys, at most `timeout_s`."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            return None
        return _KEYS.get(os.read(self._descriptor, 1).decode(errors="replace"))


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Read single keys while the context is open, if standard input is a terminal."""
    if not sys.stdin.isatty():
        yield NoKeyboard()
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield Terminal(sys.stdin.fileno())
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
