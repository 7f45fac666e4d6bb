"""When the messages of a recording arrived, on the clock of their stamps. Pure.

In a live recording log times are on that clock. In other sessions they may be anything: times of another
epoch, a bare count, or the stamps themselves, with one among them that leaps. So a log time is used if it is
near the stamp of its message; else the stamp is used. A step of time larger than a stamp may leap is accepted
only as far as the stamps of the following messages confirm it: no single stamp moves time, nor does a log
time that was made from one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import Final

from perception.messages import ClockTick, Header, Message

STREAM_KINDS: Final = ("camera", "microphone", "text")
"""Prefixes of the topics that a fusion can read."""
FIRST: Final = 8
"""Messages whose stamps decide when a recording begins."""
AHEAD: Final = 32
"""Messages that must confirm a leap: a second of a camera. They are stored in memory only then."""
LONE_NS: Final = 60_000_000_000
"""The last message, which no other can confirm, may leap this far."""


def arrivals(
    messages: Iterable[Message[Header]],
    takes: Callable[[str], bool],
    max_leap_ns: int,
    *,
    on_clock: bool = False,
) -> Iterator[tuple[int | None, Message[Header]]]:
    """Yield messages with the time at which each arrived, which never runs back.

    Args:
        messages: in order of arrival.
        takes: returns whether a topic is read: only stamps of those topics and clock ticks move time.
        max_leap_ns: steps up to this need no confirmation; log times this near to their stamp are used.
        on_clock: whether all log times are known to be on the clock of the stamps.

    Yields:
        UNIX nanoseconds as stamps are, None before the first message that is read; and the message.
    """
    line = _Line(messages, takes)
    now_ns: int | None = None
    for message in line:
        if now_ns is None:
            if takes(message.topic):
                line.fill(FIRST)
                now_ns = _confirmed(line.stamps(message), max_leap_ns)
        elif (at_ns := _at(message, line, max_leap_ns, on_clock)) > now_ns + max_leap_ns:
            line.fill(AHEAD)
            later = [stamp_ns for stamp_ns in line.stamps(message) if stamp_ns > now_ns]
            now_ns = _accepted(now_ns, at_ns, later, max_leap_ns)
        else:
            now_ns = max(now_ns, at_ns)
        yield now_ns, message


def near(message: Message[Header], tolerance_ns: int) -> bool:
    """Return whether the log time of a message is near its stamp."""
    return abs(message.received_ns - message.header.stamp_ns) <= tolerance_ns


def _at(message: Message[Header], line: "_Line", max_leap_ns: int, on_clock: bool) -> int:
    """Return when a message arrived by its log time or stamp, 0 if neither can be used."""
    if on_clock or near(message, max_leap_ns):
        return message.received_ns
    return message.header.stamp_ns if line.reads(message) else 0


def _accepted(now_ns: int, at_ns: int, later: list[int], max_leap_ns: int) -> int:
    """Return how far time moves towards `at_ns`, by the later stamps of this and the following messages."""
    if not later:
        return at_ns  # no stamp contradicts it
    confirmed_ns = _confirmed(later, max_leap_ns)
    lone = len(later) == 1 and confirmed_ns - now_ns > LONE_NS
    if lone or confirmed_ns <= now_ns + max_leap_ns:
        return now_ns
    return at_ns if at_ns <= confirmed_ns + max_leap_ns else confirmed_ns


def _confirmed(stamps: list[int], max_leap_ns: int) -> int:
    """Return the earliest stamp that another one follows closely; the earliest of all if none does."""
    ordered = sorted(stamps)
    close = (one for one, following in pairwise(ordered) if following - one <= max_leap_ns)
    return next(close, ordered[0])


class _Line:
    """Messages in their order, with a buffer of those read ahead."""

    def __init__(self, messages: Iterable[Message[Header]], takes: Callable[[str], bool]) -> None:
        self._rest = iter(messages)
        self._takes = takes
        self._ahead: deque[Message[Header]] = deque()

    def __iter__(self) -> Iterator[Message[Header]]:
        while True:
            self.fill(1)
            if not self._ahead:
                return
            yield self._ahead.popleft()

    def fill(self, count: int) -> None:
        """Read messages ahead until the buffer has `count`, or the recording ends."""
        self._ahead.extend(islice(self._rest, max(0, count - len(self._ahead))))

    def reads(self, message: Message[Header]) -> bool:
        """Return whether the stamp of a message moves time."""
        return isinstance(message.header, ClockTick) or self._takes(message.topic)

    def stamps(self, message: Message[Header]) -> list[int]:
        """Return the stamps that move time, of this message and those read ahead."""
        return [one.header.stamp_ns for one in (message, *self._ahead) if self.reads(one)]
