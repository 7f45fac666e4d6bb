"""A bounded queue of log lines from several threads; dropped lines are counted.

Threads: any thread may call `put` and `take`; `_lock` guards all fields.
"""

import threading
from collections import deque
from collections.abc import Iterator


class Lines:
    """Lines with their node, in order of arrival; while `most` lines wait, new ones are dropped."""

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
        """Yield (node, line) of all lines since the last call, then one with the number of dropped ones."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            dropped, self._dropped = self._dropped, 0
        yield from waiting
        if dropped:
            yield "up", f"{dropped} log lines dropped: nodes wrote faster than they could be shown"
