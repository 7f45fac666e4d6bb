"""The compute thread runs the models on windows while the receiving thread goes on.

Rules. The receiving thread owns `offer` and `stop`, calls `start` once, and reads `shed`, `shed_count` and
`failure`. The compute thread owns `engine` except for the methods that its docstrings exempt, and calls
`publish`. `offer` waits for no model: it holds the lock `_due` only to exchange the due window. At most one
window is due; an older one is shed. After `stop` the compute thread has ended, and each window was computed
or its tick is in `shed`.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from perception.fusion.engine import Engine
from perception.fusion.ledger import Backlog
from perception.fusion.presence import Presence
from perception.fusion.swap import HeadSwap
from perception.fusion.window import Window
from perception.messages import FusedState


class Compute(threading.Thread):
    """Computes the newest due window and publishes its state; older due windows are shed."""

    def __init__(
        self, engine: Engine, publish: Callable[[FusedState], object], clock: Callable[[], int]
    ) -> None:
        super().__init__(name="compute", daemon=True)
        self.engine = engine
        self.swap = HeadSwap(engine)
        self.shed: deque[int] = deque()
        """Ticks shed and not yet journaled. The receiving thread appends and pops."""
        self.shed_count = 0
        """Number of windows shed so far. The receiving thread writes."""
        self.failure: BaseException | None = None
        """Why the compute thread ended, None while it runs. The compute thread writes it once."""
        self._publish = publish
        self._clock = clock
        self._backlog = Backlog()
        """Both threads; lock `_due`, except after the compute thread ended."""
        self._due = threading.Condition()
        self._stopped = False
        """Both threads; lock `_due`."""

    def offer(self, windows: Sequence[Window]) -> None:
        """Make the newest window due, shed the others; never waits for the models."""
        if windows:
            with self._due:
                shed = self._backlog.offer(windows, self._clock())
                self._due.notify()
            self._record_shed(shed)

    def stop(self) -> None:
        """Wait until the state in work is published and the thread has ended; shed the window still due."""
        with self._due:
            self._stopped = True
            self._due.notify()
        self.join()
        if (due := self._backlog.take()) is not None:
            self._record_shed([due[0].tick])

    def run(self) -> None:
        """Thread body; stores an error of the models in `failure` and ends."""
        presence = Presence()
        try:
            while (due := self._take()) is not None:
                window, cut_ns, shed = due
                self.swap.apply_requests(window.tick)
                state = self.engine.run(presence.mark_held(window), cut_ns=cut_ns, shed=shed)
                started_ns = self._clock()
                self._publish(state)
                self.engine.set_publish_time(self._clock() - started_ns)
                self.swap.compare(state.fused)
        except BaseException as error:
            self.failure = error

    def _record_shed(self, ticks: Sequence[int]) -> None:
        self.shed.extend(ticks)
        self.shed_count += len(ticks)

    def _take(self) -> tuple[Window, int, int] | None:
        with self._due:
            while not self._stopped:
                due = self._backlog.take()
                if due is not None:
                    return due
                self._due.wait()
        return None
