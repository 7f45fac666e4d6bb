"""The zero of a session: the moment from which all its seconds are counted. Pure.

It is the stamp of the first message, in recorded order. `SessionWriter` stores it with the first message it
writes; of a session that was recorded before zeros were stored it is computed by the same rule, which is
also what label files have always counted from. Labels, `cat`, `trim`, `search`, `replay` and every export
count from it; the media files of an export begin at it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from perception.messages import Header, Message

NAME: Final = "zero"
"""Of the metadata that stores it."""
_SAME_CLOCK_NS: Final = 60_000_000_000
"""A first message that arrived further than this from its stamp: stamps and arrivals are on two clocks."""


@dataclass(frozen=True, slots=True)
class Zero:
    """One moment, on both clocks that a session knows: they differ where stamps were replayed or imported."""

    stamp_ns: int
    """On the clock of stamps."""
    log_ns: int
    """On the clock of arrivals."""

    @classmethod
    def of(cls, first: Message[Header] | None) -> Self:
        """Return the zero of a session that begins with this message; of an empty one, 0."""
        if first is None:
            return cls(0, 0)
        stamp_ns = first.header.stamp_ns
        log_ns = first.received_ns or stamp_ns
        return cls(stamp_ns, stamp_ns if abs(log_ns - stamp_ns) <= _SAME_CLOCK_NS else log_ns)

    @classmethod
    def stored(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the zero that a session's metadata holds, None if it holds none."""
        try:
            return cls(int(metadata[NAME]["stamp_ns"]), int(metadata[NAME]["log_ns"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def as_metadata(self) -> dict[str, int]:
        """Return what is stored under `NAME`."""
        return asdict(self)

    def seconds(self, stamp_ns: int) -> float:
        """Return the seconds from the zero to a stamp."""
        return (stamp_ns - self.stamp_ns) / 1e9

    def log_at(self, seconds: float) -> int:
        """Return the log time that many seconds after the zero."""
        return self.log_ns + round(seconds * 1e9)

    def stamp_at(self, log_ns: int) -> int:
        """Return the stamp of what happens at a log time."""
        return log_ns - self.log_ns + self.stamp_ns

    def later(self, by_ns: int) -> Self:
        """Return the zero of a part that begins so much later."""
        return replace(self, stamp_ns=self.stamp_ns + by_ns, log_ns=self.log_ns + by_ns)
