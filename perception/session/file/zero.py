"""The zero of a session: the time from which all its seconds count. Pure.

It is the stamp of the first message, in recorded order. `SessionWriter` stores it with the first message; for
a session recorded before zeros were stored, it is computed by the same rule, from which label files have
always counted. Labels, `cat`, `trim`, `search`, `replay` and every export count from it; the media files of
an export begin at it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from perception.messages import Header, Message

NAME: Final = "zero"
"""Name of the metadata that stores it."""
_SAME_CLOCK_NS: Final = 60_000_000_000
"""If arrival and stamp of the first message are further apart, they are on two clocks."""


@dataclass(frozen=True, slots=True)
class Zero:
    """One time on both clocks of a session; the clocks differ if stamps were replayed or imported."""

    stamp_ns: int
    """On the clock of stamps."""
    log_ns: int
    """On the clock of arrivals."""

    @classmethod
    def of(cls, first: Message[Header] | None) -> Self:
        """Return the zero of a session that begins with `first`; 0 for an empty session."""
        if first is None:
            return cls(0, 0)
        stamp_ns = first.header.stamp_ns
        log_ns = first.received_ns or stamp_ns
        return cls(stamp_ns, stamp_ns if abs(log_ns - stamp_ns) <= _SAME_CLOCK_NS else log_ns)

    @classmethod
    def stored(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the zero stored in the metadata of a session, None if there is none."""
        try:
            return cls(int(metadata[NAME]["stamp_ns"]), int(metadata[NAME]["log_ns"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def as_metadata(self) -> dict[str, int]:
        """Return the value to store under `NAME`."""
        return asdict(self)

    def seconds(self, stamp_ns: int) -> float:
        """Return the seconds from the zero to a stamp."""
        return (stamp_ns - self.stamp_ns) / 1e9

    def log_at(self, seconds: float) -> int:
        """Return the log time `seconds` after the zero."""
        return self.log_ns + round(seconds * 1e9)

    def stamp_at(self, log_ns: int) -> int:
        """Return the stamp that corresponds to a log time."""
        return log_ns - self.log_ns + self.stamp_ns

    def later(self, by_ns: int) -> Self:
        """Return the zero of a part that begins `by_ns` later."""
        return replace(self, stamp_ns=self.stamp_ns + by_ns, log_ns=self.log_ns + by_ns)
