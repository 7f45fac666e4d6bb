"""Receives the messages of a fusion core in their time: early ones wait, and time advances without messages.

Rules. One thread calls `step`, that of the fusion loop or of the standby. `Intake` owns the early queue; it
reads the core's deadlines and counts, and pushes nothing: its caller does.
"""

from collections.abc import Callable
from typing import Final, Protocol

from perception.fusion.core import FusionCore
from perception.fusion.early import Early
from perception.messages import Header, HostTime, InputHealth, Message, SwapRequest
from perception.units import Clock

IDLE_S: Final = 0.1
"""Longest wait for a message; after it the caller checks whether to stop."""


class Inbox(Protocol):
    """Source of messages: `perception.bus.subscriber.Subscriber`."""

    def receive(self, timeout_s: float) -> Message[Header] | None:
        """Return the next message, None after `timeout_s` seconds without one."""

    def health(self) -> dict[str, InputHealth]:
        """Return the counts of received and dropped messages, by topic."""

    def host_times(self) -> dict[str, HostTime]:
        """Return what is known of the clocks of other hosts, by name."""


class Intake:
    """The queue between an inbox and a core.

    Args:
        core: receives the messages.
        inbox: messages of the core's inputs, and requests for other heads.
        clock: host time in ns.
        early: queue in front of the core.
    """

    def __init__(self, core: FusionCore, inbox: Inbox, clock: Clock, early: Early | None = None) -> None:
        self._core = core
        self._early = Early(core) if early is None else early
        self._inbox = inbox
        self._clock = clock

    def health(self) -> dict[str, InputHealth]:
        """Return the counts of received and dropped messages, by topic."""
        return self._inbox.health()

    def host_times(self) -> dict[str, HostTime]:
        """Return what is known of the clocks of other hosts, by name."""
        return self._inbox.host_times()

    def step(
        self,
        take: Callable[[Message[Header]], None],
        tick: Callable[[int], None],
        request: Callable[[SwapRequest], None],
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        """Wait for one message at most, and pass on what is due.

        Args:
            take: gets the received message, and early ones that are due.
            tick: gets the present if a window is due and nothing else moves time.
            request: gets a request for another head.
            idle_s: longest wait for a message.
        """
        deadline_ns = self._core.deadline_ns or self._clock()
        wake_ns = min(deadline_ns, self._early.next_ns or deadline_ns)
        message = self._inbox.receive(min(idle_s, max(0.0, (wake_ns - self._clock()) / 1e9)))
        now_ns = self._clock()
        if message is not None and isinstance(message.header, SwapRequest):
            request(message.header)
        elif message is not None:
            self._early.put(message, now_ns)
        for due in self._early.due(now_ns):
            take(due)
        # messages that have already arrived come first, for at most one hop
        if (now_ns := self._clock()) >= deadline_ns + (0 if message is None else self._core.hop_ns):
            tick(now_ns)
