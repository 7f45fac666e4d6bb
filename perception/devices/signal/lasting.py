"""Time that a condition has lasted, in the signal's own time. Pure."""

from perception.units import SECOND_NS


class Lasting:
    """Detects that something has held for some seconds.

    Args:
        hold_s: how long it has to hold without a break, in seconds of the signal's time.
    """

    def __init__(self, hold_s: float = 2.0) -> None:
        self._hold_ns = round(hold_s * SECOND_NS)
        self._since_ns: int | None = None

    def update(self, holds: bool, stamp_ns: int) -> bool:
        """Record whether it holds at `stamp_ns`; return whether it has held for `hold_s`."""
        if not holds:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = stamp_ns
        return stamp_ns - self._since_ns >= self._hold_ns
