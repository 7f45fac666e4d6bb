"""Single keys from a terminal, by which a player is paused, stepped and ended."""

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
    """Where pausing and stepping come from."""

    def wait(self, timeout_s: float) -> Key | None:
        """Wait for a key, no longer than this."""


class NoKeyboard:
    """Nobody is there to pause."""

    def wait(self, timeout_s: float) -> Key | None:
        """Only wait."""
        time.sleep(timeout_s)
        return None


class Terminal:
    """Single keys from a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, timeout_s: float) -> Key | None:
        """Wait for one of the keys."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            return None
        return _KEYS.get(os.read(self._descriptor, 1).decode(errors="replace"))


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Take single keys while this is open, if somebody sits at a terminal."""
    if not sys.stdin.isatty():
        yield NoKeyboard()
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield Terminal(sys.stdin.fileno())
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
