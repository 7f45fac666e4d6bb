"""What becomes of a node whose process ended: pure decisions."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from perception.devices.backoff import Backoff
from perception.errors import MissingPackageError, ProfileError, SessionError, WeightsError

LASTING: Final = frozenset(
    kind.exit_code for kind in (ProfileError, WeightsError, SessionError, MissingPackageError)
)
"""Exit codes of what no restart can repair, and without which the run is not what was asked for."""


class Verdict(Enum):
    """What becomes of a node whose process ended."""

    FINISHED = "finished"
    RESTART = "restart"
    GIVE_UP = "give up"
    STOP_ALL = "stop all"


@dataclass(slots=True)
class RestartPolicy:
    """Restarts a node after a delay that doubles with each crash, and starts over once it worked well.

    A profile, weights or a session that is wrong stays wrong: those stop the whole run. A device whose
    file cannot be read is given up, and the others run on.
    """

    backoff: Backoff = field(default_factory=Backoff)

    def decide(
        self, exit_code: int, worked_s: float, given_up: Collection[int] = ()
    ) -> tuple[Verdict, float]:
        """Return the verdict on a process that ended, and the delay before a restart in seconds.

        Args:
            exit_code: of the process.
            worked_s: how long it had worked, from when it first said so; 0 if it never did.
            given_up: exit codes with which only this node stays down.
        """
        if exit_code == 0:
            self.backoff.failures = 0
            return Verdict.FINISHED, 0.0
        if exit_code in given_up:
            self.backoff.failures += 1
            return Verdict.GIVE_UP, 0.0
        if exit_code in LASTING:
            return Verdict.STOP_ALL, 0.0
        return Verdict.RESTART, self.backoff.failed(worked_s)

    def failing(self, worked_s: float | None) -> bool:
        """Return whether a node that has crashed is still to be counted as failing.

        One that crashed once works again as soon as it says so; one that crashes again and again has to
        work well first.

        Args:
            worked_s: how long its present process has worked; None if it has not said so yet.
        """
        if not self.backoff.failures:
            return False
        return worked_s is None or (self.backoff.failures > 1 and not self.backoff.healthy(worked_s))
