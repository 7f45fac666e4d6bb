"""Follows the inputs of a fusion without computing, so that another process can go on where it ended.

The standby's core gets every input and cuts every window, as the active one does. A window is kept until a
state of its tick, or a later one, was received. After a takeover the newest of those left is computed and the
older ones are shed, so each tick has a state or is journaled as shed. The journals of the new process begin
with the mark of this core, from which recompute goes on.

Rules. One thread calls every method. `follow` may be called again after it has returned.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from perception.fusion.core import FusionCore
from perception.fusion.window import Window
from perception.graph.intake import Inbox, Intake
from perception.graph.judging import Judging
from perception.messages import ClockTick, FusedState, Header, HeadUse, Journal, Message, with_condition
from perception.units import SECOND_NS, Clock

_IDLE_S: Final = 0.02
"""Longest wait for a message: after it a takeover is noticed."""
_REPORT_NS: Final = SECOND_NS
_MAX_WINDOWS: Final = 64
_CLOCK_TOPIC: Final = "clock/standby"


class Standby:
    """A core that follows, and the windows of which no state was received.

    Args:
        core: of the same configuration as the active fusion's.
        intake: delivers its inputs.
        active: messages of the active fusion: states and journals.
        clock: host time in ns.
        judging: judges the streams whose publishers do not.
    """

    def __init__(
        self, core: FusionCore, intake: Intake, active: Inbox, *, clock: Clock, judging: Judging
    ) -> None:
        self.head: HeadUse | None = None
        """The head that the active fusion used last, None before its first journal."""
        self.source = ""
        """Publisher id of its states."""
        self._core = core
        self._intake = intake
        self._active = active
        self._clock = clock
        self._judging = judging
        self._windows: deque[Window] = deque(maxlen=_MAX_WINDOWS)

    def follow(
        self, until: Callable[[], bool], stopped: threading.Event, report: Callable[[], object] = lambda: None
    ) -> None:
        """Follow until a condition holds or the process is stopped; `report` is called once a second."""
        self._tick(self._clock())
        next_report_ns = self._clock()
        while not (until() or stopped.is_set()):
            self._intake.step(self._take, self._tick, lambda request: None, idle_s=_IDLE_S)
            self._read_active()
            if (now_ns := self._clock()) >= next_report_ns:
                next_report_ns = now_ns + _REPORT_NS
                report()

    def missed(self) -> list[Window]:
        """Return the windows of which no state was received, oldest first."""
        self._read_active()
        return list(self._windows)

    def _take(self, message: Message[Header]) -> None:
        if judged := self._judging.judge(message):
            message = with_condition(message, judged)
        self._windows.extend(self._core.push(message))

    def _tick(self, now_ns: int) -> None:
        self._windows.extend(self._core.push(Message(_CLOCK_TOPIC, ClockTick(stamp_ns=now_ns))))

    def _read_active(self) -> None:
        while (message := self._active.receive(0.0)) is not None:
            header = message.header
            if isinstance(header, FusedState):
                self.source = header.source
                while self._windows and self._windows[0].tick <= header.tick:
                    self._windows.popleft()
            elif isinstance(header, Journal) and header.heads:
                self.head = header.heads[-1]
