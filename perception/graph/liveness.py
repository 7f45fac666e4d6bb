"""Which nodes live: from their health, the host clock and the status of their processes. Pure.

Every node publishes `Health` once a second from its main loop. It is the heartbeat: a main loop that hangs
publishes none, whatever its other threads do. A node is `lost` once SILENT_S have passed without one, so
everyone notices a hang within 3 s. The supervisor notices the end of a process at once.

Rules. `Pulse` belongs to the thread of the supervisor. Times are of one monotonic clock, in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from perception.messages import Health

SILENT_S: Final = 2.5
"""A node without a sign of life for this long is lost. Its period is 1 s, the bound for notice 3 s."""
_SAMPLE_S: Final = 1.5
"""After this silence the progress of its main thread is read for the first time."""
_START_S: Final = 30.0
"""Before its first sign of life a node hangs if its main thread stands still for this long.

A download of weights waits for a server for up to 10 s.
"""
_LIMIT_S: Final = 10.0
"""A silent process whose main thread still runs may only lack CPU time; it is given this long."""
RUNNING: Final = "running"
FINISHED: Final = "finished"
LOST: Final = "lost"
ENDED: Final = "ended"
"""First words of the status of a process."""


class Progress(NamedTuple):
    """What the main thread of a process does."""

    state: str
    """As in /proc/PID/stat: R runs or waits for a CPU, T is stopped, t is traced by a debugger."""
    slices: int
    """How many times it got a CPU."""


@dataclass(slots=True)
class Pulse:
    """Signs of life of one process; decides whether it hangs."""

    beat_s: float | None = None
    """Time of the last sign of life; None before the first: a node may load for minutes."""
    before: Progress | None = None
    """Progress of the main thread earlier in this silence."""
    before_s: float | None = None
    """When that was read, before the first sign of life."""

    def beat(self, now_s: float) -> None:
        """Add a sign of life."""
        self.beat_s, self.before = now_s, None

    def pause(self, seconds: float) -> None:
        """Leave out a time in which nobody could receive signs of life."""
        if self.beat_s is not None:
            self.beat_s += seconds

    def silent_s(self, now_s: float) -> float:
        """Return the seconds since the last sign of life; 0 before the first."""
        return 0.0 if self.beat_s is None else now_s - self.beat_s

    def hangs(self, now_s: float, progress: Callable[[], Progress | None]) -> bool:
        """Return whether the process hangs, so that only a restart helps.

        It does after SILENT_S if its main thread got no CPU time and waits for none, else after 10 s. One
        that a debugger has stopped never does.

        Args:
            now_s: the present.
            progress: reads what its main thread does, None where that is unknown.
        """
        if self.beat_s is None:
            return self._hangs_at_start(now_s, progress)
        silent_s = self.silent_s(now_s)
        if silent_s < _SAMPLE_S:
            return False
        if self.before is None:
            self.before = progress()
            return silent_s >= _LIMIT_S and self.before is None
        if silent_s < SILENT_S or (now := progress()) is None:
            return silent_s >= _LIMIT_S
        # D waits in the kernel, as for a slow disk: SIGKILL has no effect in it
        idle = now.slices == self.before.slices and now.state not in "RD"
        return now.state != "t" and (idle or silent_s >= _LIMIT_S)

    def _hangs_at_start(self, now_s: float, progress: Callable[[], Progress | None]) -> bool:
        """Return whether a node hangs that has given no sign of life yet: its main thread stands still."""
        if self.before_s is None:
            self.before_s = now_s
        if now_s < self.before_s + _START_S:
            return False
        before, self.before, self.before_s = self.before, progress(), now_s
        return before is not None and self.before == before and before.state not in "RDt"


class Standing(NamedTuple):
    """Whether a node works, as of now."""

    status: Literal["ok", "degraded", "lost"]
    reason: str = ""


def standing(health: Health | None, silent_s: float, process: str = RUNNING) -> Standing:
    """Return how a node stands now.

    Args:
        health: its last health message, None if there was none.
        silent_s: seconds since that was received, or since somebody listens.
        process: status of its process as the supervisor reports it, RUNNING if there is no supervisor.
    """
    if process.startswith((LOST, ENDED)):
        return Standing("lost", process.removeprefix(f"{LOST}: "))
    if process == FINISHED or (health is None and process != RUNNING):
        return Standing("ok", process)
    if silent_s > SILENT_S:
        return Standing("lost", silence(silent_s))
    return Standing("ok", "starting") if health is None else Standing(health.status, health.reason)


def silence(seconds: float) -> str:
    """Return in words that a node gave no sign of life."""
    return f"no sign of life for {seconds:.1f} s"
