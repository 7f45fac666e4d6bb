"""Messages whose stamps are ahead of the host's clock wait until they are due. Pure.

Rules. Owned by the receiving thread, no lock. A message enters by `put` and leaves by `due`, those of one
publisher and topic in their order. So event time never runs ahead of the host: neither a fast clock nor a
block published before its last sample was recorded makes the messages of others late. If a publisher's clock
is set back, its later messages are due before those that wait: these are dropped, since their stamps were
wrong.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from perception.fusion.core import FusionCore, leap
from perception.messages import Header, Message, reached_ns

CLOCK_ERROR_NS: Final = 20_000_000
"""Clocks of hosts and devices agree within this; a message that waits longer is counted as `early`."""
MAX_WAITING: Final = 2048
"""Messages that may wait."""
MAX_WAITING_BYTES: Final = 256 << 20


class Early:
    """Queue in front of a core."""

    def __init__(self, core: FusionCore, *, count_waits: bool = True) -> None:
        """Use the counters and `max_leap_ns` of `core`: how far a message may reach ahead.

        Args:
            core: receives the messages that are due.
            count_waits: whether `early` is counted; False where times of arrival are estimates.
        """
        self._core = core
        self._count_waits = count_waits
        self._waiting: list[tuple[int, int, Message[Header]]] = []
        self._bytes = 0
        self._number = count()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_ns(self) -> int | None:
        """Host time at which the first waiting message is due, None if none waits."""
        return self._waiting[0][0] if self._waiting else None

    def put(self, message: Message[Header], now_ns: int) -> None:
        """Add a message, due now or later; one that reaches too far ahead or has no room is counted."""
        ahead_ns, size = reached_ns(message.header) - now_ns, len(message.payload)
        full = len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES
        if ahead_ns > self._core.max_leap_ns:
            self._core.count(message.topic, leap(message.header, now_ns + self._core.max_leap_ns))
        elif ahead_ns > 0 and full:
            self._core.count(message.topic, "dropped")
        else:
            if self._count_waits and ahead_ns > CLOCK_ERROR_NS:
                self._core.count(message.topic, "early")
            due_ns = now_ns + max(0, ahead_ns)
            if self._waiting:
                self._drop_overtaken(message, due_ns)
            self._bytes += size
            heappush(self._waiting, (due_ns, next(self._number), message))

    def due(self, now_ns: int) -> Iterator[Message[Header]]:
        """Yield and remove the messages that are due."""
        while self._waiting and self._waiting[0][0] <= now_ns:
            *_, message = heappop(self._waiting)
            self._bytes -= len(message.payload)
            yield message

    def _drop_overtaken(self, message: Message[Header], due_ns: int) -> None:
        """Drop and count the waiting messages of this publisher and topic that are due after a later one."""
        key = message.topic, message.header.source
        wrong = [
            one for one in self._waiting if one[0] > due_ns and (one[2].topic, one[2].header.source) == key
        ]
        if wrong:
            self._core.counts[message.topic]["clock set back"] += len(wrong)
            self._bytes -= sum(len(one[2].payload) for one in wrong)
            dropped = {one[1] for one in wrong}
            self._waiting = [one for one in self._waiting if one[1] not in dropped]
            heapify(self._waiting)
