"""How long to wait before something that failed is tried again."""

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays that double with each failure, and start over only after what was tried has worked well.

    That something could be opened is not enough: it may fail at its first use, again and again.
    """

    first_s: float = 0.5
    longest_s: float = 10.0
    healthy_s: float = 10.0
    """So long it has to work before earlier failures are forgiven."""
    failures: int = 0
    """In a row, none of them forgiven."""

    def failed(self, worked_s: float) -> float:
        """Return the delay in seconds after a failure of what had worked for `worked_s`, 0 if never."""
        if self.forgiven(worked_s):
            self.failures = 0
        delay_s = min(self.first_s * 2.0 ** min(self.failures, 32), self.longest_s)
        self.failures += 1
        return delay_s

    def forgiven(self, worked_s: float) -> bool:
        """Return whether something that has worked for so long may fail as if for the first time."""
        return worked_s >= self.healthy_s
