"""The compute thread: concludes windows while another thread goes on receiving."""

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
    """Concludes the newest due window and publishes its state; older due windows are shed."""

    def __init__(
        self, engine: Engine, publish: Callable[[FusedState], object], clock: Callable[[], int]
    ) -> None:
        super().__init__(name="compute", daemon=True)
        self.engine = engine
        self.swap = HeadSwap(engine)
        self.shed: deque[int] = deque()
        """Ticks shed and not yet journaled."""
        self.shed_count = 0
        self.failure: BaseException | None = None
        self._publish = publish
        self._clock = clock
        self._backlog = Backlog()
        self._due = threading.Condition()
        self._stopped = False

    def offer(self, windows: Sequence[Window]) -> None:
        """Hand over finished windows; never waits for the models."""
        if windows:
            with self._due:
                shed = self._backlog.offer(windows, self._clock())
                self._due.notify()
            self._note_shed(shed)

    def stop(self) -> None:
        """Let the state in work be published, then end; windows still due are shed."""
        with self._due:
            self._stopped = True
            self._due.notify()
        self.join()
        if (due := self._backlog.take()) is not None:
            self._note_shed([due[0].tick])

    def run(self) -> None:
        """Thread body; a failure of the models ends the node, and with it its supervisor's patience."""
        presence = Presence()
        try:
            while (due := self._take()) is not None:
                window, cut_ns, shed = due
                self.swap.before(window.tick)
                state = self.engine.run(presence.since(window), cut_ns=cut_ns, shed=shed)
                started_ns = self._clock()
                self._publish(state)
                self.engine.note_published(self._clock() - started_ns)
                self.swap.after(state.fused)
        except BaseException as error:
            self.failure = error

    def _note_shed(self, ticks: Sequence[int]) -> None:
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
