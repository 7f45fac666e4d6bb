"""Waits for events of other threads and processes, as long as a busy machine needs."""

import time
from collections.abc import Callable
from typing import Final

LONG_S: Final = 60.0
"""Only a failing test waits this long."""


def eventually(condition: Callable[[], object], timeout_s: float = LONG_S) -> None:
    """Return once the condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.005)
