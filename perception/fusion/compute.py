"""The compute thread runs the models on windows while the receiving thread goes on.

Rules. The receiving thread owns `offer` and `stop`, calls `start` once, and reads `shed`, `shed_count` and
`failure`. The compute thread owns `engine` except for the methods that its docstrings exempt, and calls
`publish`. `offer` waits for no model: it holds the lock `_due` only to exchange the due window. At most one
window is due; an older one is shed. After `stop` the compute thread has ended, and each window was computed
or its tick is in `shed`.
"""

import threading
from collections.abc import Callable, Sequence

from perception.fusion.engine import Engine
from perception.fusion.inference import Due, Inference, Inferring
from perception.fusion.window import Window
from perception.messages import FusedState
from perception.units import Clock


class Compute(Inferring, threading.Thread):
    """Computes the newest due window and publishes its state; older due windows are shed."""

    def __init__(self, engine: Engine, publish: Callable[[FusedState], object], clock: Clock) -> None:
        threading.Thread.__init__(self, name="compute", daemon=True)
        # Its side of receiving belongs to the receiving thread, the other to the compute thread; `offer`,
        # `take` and `drop_due` with lock `_due`, except after the compute thread ended.
        Inferring.__init__(self, Inference(engine, clock))
        self.failure: BaseException | None = None
        """Why the compute thread ended, None while it runs. The compute thread writes it once."""
        self._publish = publish
        self._clock = clock
        self._due = threading.Condition()
        self._stopped = False
        """Both threads; lock `_due`."""

    def offer(self, windows: Sequence[Window]) -> None:
        """Make the newest window due, shed the others; never waits for the models."""
        if windows:
            with self._due:
                self._inference.offer(windows)
                self._due.notify()

    def stop(self) -> None:
        """Wait until the state in work is published and the thread has ended; shed the window still due."""
        with self._due:
            self._stopped = True
            self._due.notify()
        self.join()
        self._inference.drop_due()

    def run(self) -> None:
        """Thread body; stores an error of the models in `failure` and ends."""
        try:
            while (due := self._take()) is not None:
                state = self._inference.infer(due)
                started_ns = self._clock()
                self._publish(state)
                self._inference.published(state, self._clock() - started_ns)
        except BaseException as error:
            self.failure = error

    def _take(self) -> Due | None:
        with self._due:
            while not self._stopped:
                if (due := self._inference.take()) is not None:
                    return due
                self._due.wait()
        return None
