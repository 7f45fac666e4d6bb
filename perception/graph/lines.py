"""Lines that several threads write and one shows: bounded, and what does not fit is counted."""

import threading
from collections import deque
from collections.abc import Iterator


class Lines:
    """Lines by node, in the order they came; the newest are dropped while `most` wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, str]] = deque()
        self._dropped = 0

    def put(self, node: str, line: str) -> None:
        """Add a line, or count it as dropped."""
        with self._lock:
            if len(self._waiting) < self._most:
                self._waiting.append((node, line))
            else:
                self._dropped += 1

    def take(self) -> Iterator[tuple[str, str]]:
        """Yield what came since the last call as (node, line), then how many were dropped."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            dropped, self._dropped = self._dropped, 0
        yield from waiting
        if dropped:
            yield "up", f"{dropped} log lines dropped: nodes wrote faster than they could be shown"
