"""Decides which windows are computed and which are shed, and computes them. No thread, no lock, no waiting.

Rules. `Compute` calls it from two threads, the simulator from one. The receiving side calls `offer` and
`drop_due`, and pops `shed`; the computing side calls `take`, `infer` and `published`, in this order, one
window at a time. `offer`, `drop_due` and `take` must exclude each other.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from perception.fusion.engine import Engine
from perception.fusion.ledger import Backlog
from perception.fusion.presence import Presence
from perception.fusion.swap import HeadSwap
from perception.fusion.window import Window
from perception.messages import FusedState
from perception.units import Clock


class Due(NamedTuple):
    """A window that is computed next."""

    window: Window
    cut_ns: int
    """Host time at which it was cut."""
    shed: int
    """How many windows were shed since the one before."""


class Inference:
    """Computes the newest due window; older due windows are shed.

    Args:
        engine: runs the models.
        clock: host time in ns.
        backlog: holds the due window.
        presence: compares each window with the one computed before.
    """

    def __init__(
        self, engine: Engine, clock: Clock, backlog: Backlog | None = None, presence: Presence | None = None
    ) -> None:
        self.engine = engine
        self.swap = HeadSwap(engine)
        self.shed: deque[int] = deque()
        """Ticks shed and not yet journaled. The receiving side appends and pops."""
        self.shed_count = 0
        """Number of windows shed so far. The receiving side writes."""
        self._clock = clock
        self._backlog = backlog or Backlog()
        self._presence = presence or Presence()

    def offer(self, windows: Sequence[Window]) -> None:
        """Make the newest window due, shed the others."""
        self._record_shed(self._backlog.offer(windows, self._clock()))

    def drop_due(self) -> None:
        """Shed the window that is due, if there is one."""
        if (due := self.take()) is not None:
            self._record_shed([due.window.tick])

    def take(self) -> Due | None:
        """Return the due window, None if there is none."""
        taken = self._backlog.take()
        return None if taken is None else Due(*taken)

    def infer(self, due: Due) -> FusedState:
        """Apply requests for other heads, then return the state of a window."""
        self.swap.apply_requests(due.window.tick)
        return self.engine.run(self._presence.mark_held(due.window), cut_ns=due.cut_ns, shed=due.shed)

    def published(self, state: FusedState, took_ns: int) -> None:
        """Record how long publishing a state took, and run a candidate head on its window."""
        self.engine.set_publish_time(took_ns)
        self.swap.compare(state.fused)

    def _record_shed(self, ticks: Sequence[int]) -> None:
        self.shed.extend(ticks)
        self.shed_count += len(ticks)


class Inferring:
    """What a fusion loop reads of an inference: base of what computes, in a thread or on a virtual clock."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    @property
    def engine(self) -> Engine:
        """Runs the models."""
        return self._inference.engine

    @property
    def swap(self) -> HeadSwap:
        """The heads; see its rules for the threads."""
        return self._inference.swap

    @property
    def shed(self) -> deque[int]:
        """Ticks shed and not yet journaled. The receiving thread appends and pops."""
        return self._inference.shed

    @property
    def shed_count(self) -> int:
        """Number of windows shed so far. The receiving thread writes."""
        return self._inference.shed_count
