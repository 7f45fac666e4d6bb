"""Decides what to do after a node's process ended. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from perception.devices.backoff import Backoff
from perception.errors import MissingPackageError, ProfileError, SessionError, WeightsError

PERMANENT: Final = frozenset(
    kind.exit_code for kind in (ProfileError, WeightsError, SessionError, MissingPackageError)
)
"""Exit codes of errors that a restart cannot repair and that make the whole run useless."""


AT_ONCE_S: Final = 0.1
"""Delay after the first crash of a node that has worked: each 0.1 s costs a state."""

_WORKED_S: Final = 2.0
"""A node that worked for this long and crashes again and again is down for at most half of its time."""


class Decision(Enum):
    """What to do after a node's process ended."""

    FINISHED = "finished"
    RESTART = "restart"
    STAY_DOWN = "stay down"
    STOP_ALL = "stop all"


@dataclass(slots=True)
class RestartPolicy:
    """Restarts a node after a delay that doubles with each crash; at once if the node had worked for long.

    Errors of a profile, of weights or of a session are permanent: they stop the whole run. A recorder that
    cannot write, or a device whose file cannot be read, stays down, and the other nodes continue.
    """

    backoff: Backoff = field(default_factory=Backoff)

    def decide(
        self, exit_code: int, worked_s: float, stay_down: Collection[int] = ()
    ) -> tuple[Decision, float]:
        """Return the decision for an ended process, and the delay before a restart in seconds.

        Args:
            exit_code: of the process.
            worked_s: seconds since it first reported that it works; 0 if it never did.
            stay_down: exit codes after which only this node stays down.
        """
        if exit_code == 0:
            self.backoff.failures = 0
            return Decision.FINISHED, 0.0
        if exit_code in stay_down:
            self.backoff.failures += 1
            return Decision.STAY_DOWN, 0.0
        if exit_code in PERMANENT:
            return Decision.STOP_ALL, 0.0
        delay_s = self.backoff.failed(worked_s)
        if worked_s < _WORKED_S:
            return Decision.RESTART, delay_s
        first = self.backoff.failures == 1
        return Decision.RESTART, AT_ONCE_S if first else min(delay_s, worked_s / 2)

    def failing(self, worked_s: float | None) -> bool:
        """Return whether a node that has crashed still counts as failing.

        After one crash it counts as working when it first reports so; after several it must have worked for
        `Backoff.healthy_s`.

        Args:
            worked_s: seconds since its current process reported that it works; None if it has not yet.
        """
        if not self.backoff.failures:
            return False
        return worked_s is None or (self.backoff.failures > 1 and not self.backoff.healthy(worked_s))
