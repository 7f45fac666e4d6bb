"""What a network camera has sent and nobody has decoded yet: what is late is dropped undecoded."""

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from perception.units import SECOND_NS

if TYPE_CHECKING:
    from av.packet import Packet

_LONGEST_NS: Final = SECOND_NS
"""A reader that is further behind goes on with the next key frame."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One packet, received."""

    packet: "Packet[Any]"
    stamp_ns: int
    """When it was sent, as far as that is known, else received."""


class Backlog:
    """Packets from the thread that receives them to the one that decodes them.

    A key frame makes all packets before it superfluous: pictures of them would only be late. Every method may
    be called from any thread.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._waiting: deque[Arrived] = deque()
        self._skipped = False
        """Whether packets were dropped that those waiting rest on."""
        self._end: Exception | None = None
        self.counts: Counter[str] = Counter(late=0)  # other threads read it: no new keys
        """`late`: packets that were never decoded."""

    def put(self, arrived: Arrived) -> None:
        """Take in a packet."""
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
        """Let whoever takes packets know that none will come after those that wait."""
        with self._ready:
            self._end = error
            self._ready.notify_all()

    def take(self, timeout_s: float) -> list[Arrived]:
        """Return all packets that wait, in order, none if none came in time; or raise what ended them."""
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._end is not None, timeout_s)
            if not self._waiting and self._end is not None:
                raise self._end
            taken = list(self._waiting)
            self._waiting.clear()
            return taken
