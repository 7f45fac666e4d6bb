"""Delays between attempts after failures."""

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays that double with each failure; reset only after a device or process has worked for `healthy_s`.

    Opening it is not enough for a reset: it may fail at its first use, again and again.
    """

    first_s: float = 0.5
    longest_s: float = 10.0
    healthy_s: float = 10.0
    """Working time in seconds after which earlier failures no longer count."""
    failures: int = 0
    """Consecutive failures."""

    def failed(self, worked_s: float) -> float:
        """Count a failure after `worked_s` seconds of work (0: never worked); return the delay in seconds."""
        if self.healthy(worked_s):
            self.failures = 0
        delay_s = min(self.first_s * 2.0 ** min(self.failures, 32), self.longest_s)
        self.failures += 1
        return delay_s

    def healthy(self, worked_s: float) -> bool:
        """Return whether `worked_s` seconds of work reset the delays."""
        return worked_s >= self.healthy_s
