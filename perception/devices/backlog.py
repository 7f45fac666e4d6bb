"""Packets of a network camera that are not decoded yet; late packets are dropped without decoding.

Threads: every method may be called from any thread. One thread puts, another takes; `_ready` guards all
fields.
"""

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from perception.units import SECOND_NS

if TYPE_CHECKING:
    from av.packet import Packet

_LONGEST_NS: Final = SECOND_NS
"""If the decoder is further behind than this, it continues with the next key frame."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One received packet."""

    packet: "Packet[Any]"
    stamp_ns: int
    """Host time at which it was sent if known, else received."""


class Backlog:
    """Queue of packets from the receiving to the decoding thread.

    A key frame drops all packets before it: their pictures would be late.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._waiting: deque[Arrived] = deque()
        self._skipped = False
        """Whether packets were dropped that later packets depend on."""
        self._end: Exception | None = None
        self.counts: Counter[str] = Counter(late=0)  # other threads read it: no new keys
        """`late`: packets dropped without decoding."""

    def put(self, arrived: Arrived) -> None:
        """Add a packet, or drop it and count it."""
        with self._ready:
            key = arrived.packet.is_keyframe
            waited_ns = arrived.stamp_ns - self._waiting[0].stamp_ns if self._waiting else 0
            if key or waited_ns > _LONGEST_NS:
                self.counts["late"] += len(self._waiting)
                self._waiting.clear()
                self._skipped = not key
            if self._skipped:
                self.counts["late"] += 1
            else:
                self._waiting.append(arrived)
            self._ready.notify_all()

    def end(self, error: Exception) -> None:
        """End the queue: `take` returns the remaining packets, then raises `error`."""
        with self._ready:
            self._end = error
            self._ready.notify_all()

    def take(self, timeout_s: float) -> list[Arrived]:
        """Return all queued packets in order, none after `timeout_s`; raise the error given to `end`."""
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._end is not None, timeout_s)
            if not self._waiting and self._end is not None:
                raise self._end
            taken = list(self._waiting)
            self._waiting.clear()
            return taken
