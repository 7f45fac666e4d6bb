"""Virtual time: events in their order, without threads and without waiting.

Rules. One thread. `advance` calls the actions that are due; an action may plan others and may raise, which
ends what the caller of `advance` was doing: so a process is killed.
"""

from collections.abc import Callable, Iterator, Sized
from heapq import heappop, heappush
from itertools import count

from perception.simulate.streams import Delivery

Action = Callable[[], None]
"""Is called at its time."""


class KilledError(Exception):
    """Ends the process that was running: kill -9."""


class World:
    """The clock of all nodes, and what happens when.

    Args:
        start_ns: host time at which it begins.
    """

    def __init__(self, start_ns: int) -> None:
        self.now_ns = start_ns
        self.steps = 0
        """Number of events so far."""
        self._events: list[tuple[int, int, Action]] = []
        self._number = count()

    def clock(self) -> int:
        """Return the host time."""
        return self.now_ns

    def plan(self, at_ns: int, action: Action) -> None:
        """Call an action at a time, or next if that has passed."""
        heappush(self._events, (at_ns, next(self._number), action))

    def play(self, deliveries: Iterator[Delivery], deliver: Callable[[Delivery], None]) -> None:
        """Deliver an endless stream, in its order."""
        following = next(deliveries)

        def step() -> None:
            nonlocal following
            due = following
            following = next(deliveries)
            heappush(self._events, (following[0], next(self._number), step))
            deliver(due)

        self.plan(following[0], step)

    def spend(self, duration_ns: int) -> None:
        """Let a node work for some time."""
        until_ns = self.now_ns + duration_ns
        if self._events and self._events[0][0] <= until_ns:
            self.advance(until_ns)
        else:
            self.now_ns = until_ns

    def advance(self, until_ns: int, awaited: Sized = ()) -> None:
        """Let time pass until `until_ns`, or until `awaited` is not empty after an event."""
        events = self._events
        while events and events[0][0] <= until_ns:
            at_ns, _, action = heappop(events)
            if at_ns > self.now_ns:
                self.now_ns = at_ns
            self.steps += 1
            action()
            if awaited and not (events and events[0][0] <= self.now_ns):
                return
        self.now_ns = max(self.now_ns, until_ns)
