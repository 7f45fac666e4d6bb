"""When each message of a replayed session is due, and its new stamps. Pure.

Rules. Play time is 0 at the arrival of the first message; `rate` seconds of the recording pass per second of
play time. Stamps are converted to play time, so that a reader gets every window as complete as it was. The
age of a message at its arrival does not change with the rate, since the lateness of a fusion does not change
either. Sound keeps its pitch: blocks are made longer or shorter, and longer ones are split into pieces no
longer than the original. `schedule` looks `AHEAD_NS` ahead and yields in order of due time; per topic, the
order of the recording is kept. Objects here belong to one thread, that of the player.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, pairwise
from typing import Any, Final

from msgspec import structs

from perception.features.window import raw_samples
from perception.messages import MAX_BLOCK_NS, AudioBlock, Header, Label, Message, reached_ns
from perception.session.sound import at_tempo, split_early
from perception.units import SECOND_NS

AHEAD_NS: Final = 250_000_000
"""Oldest age at arrival that is kept; an older message is due at its arrival in play time."""
_SHORT_STEP_NS: Final = 1_000_000
"""From the last message of a lap to the next lap, if there is sound: longer steps would leave a gap."""
_LONG_STEP_NS: Final = 100_000_000
"""The same, if no topic has more than one message."""


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """A message and the play time at which it is due; its stamps are in play time, unless kept."""

    due_ns: int
    number: int
    message: Message[Header] = field(compare=False)


class Pace:
    """Converts times of a recording to play time."""

    def __init__(self, first_ns: int, rate: float = 1.0, skew_ns: int = 0) -> None:
        """Set play time 0 at the arrival `first_ns`; `skew_ns`: clock of arrivals minus clock of stamps."""
        self.rate = rate
        self.skew_ns = skew_ns
        self._first_ns = first_ns
        self.earliest_ns = -round(AHEAD_NS * max(1 / rate - 1, 0.0))
        """Lower limit of due time minus arrival, both in play time."""

    def at(self, arrival_ns: int) -> int:
        """Return the play time of an arrival."""
        passed_ns = arrival_ns - self._first_ns
        return passed_ns if self.rate == 1 else round(passed_ns / self.rate)

    def at_stamp(self, stamp_ns: int) -> int:
        """Return the play time of a stamp."""
        return self.at(stamp_ns + self.skew_ns)


def schedule(
    messages: Iterable[Message[Header]], rate: float = 1.0, skew_ns: int = 0, *, keep: bool = False
) -> Iterator[Due]:
    """Yield messages in order of due time, looking `AHEAD_NS` ahead.

    Args:
        messages: in order of arrival.
        rate: seconds of the recording per second of play time.
        skew_ns: clock of arrivals minus clock of stamps.
        keep: keep stamps and payloads unchanged.
    """
    pace: Pace | None = None
    waiting: list[Due] = []
    latest: dict[str, int] = {}
    numbers = count()
    for message in messages:
        pace = pace or Pace(message.received_ns, rate, skew_ns)
        parts = [(pace.at(message.received_ns), message)] if keep else _arrivals(message, pace)
        for due_ns, part in parts:
            due_ns = latest[message.topic] = max(due_ns, latest.get(message.topic, due_ns))
            heappush(waiting, Due(due_ns, next(numbers), part))
        known_ns = pace.at(message.received_ns) + pace.earliest_ns
        while waiting and waiting[0].due_ns <= known_ns:
            yield heappop(waiting)
    while waiting:
        yield heappop(waiting)


def _arrivals(message: Message[Header], pace: Pace) -> Iterator[tuple[int, Message[Header]]]:
    for part, arrived_ns in split_early(message, message.received_ns - pace.skew_ns, MAX_BLOCK_NS):
        yield from _timed(structs.replace(part, received_ns=arrived_ns + pace.skew_ns), pace)


def _timed(message: Message[Header], pace: Pace) -> Iterator[tuple[int, Message[Header]]]:
    arrival_ns = pace.at(message.received_ns)
    age_ns = message.received_ns - pace.skew_ns - reached_ns(message.header)
    for part in _parts(message, pace):
        due_ns = reached_ns(part.header) + age_ns if 0 <= age_ns <= AHEAD_NS else arrival_ns
        yield max(due_ns, arrival_ns + pace.earliest_ns), part


def _parts(message: Message[Any], pace: Pace) -> Iterator[Message[Any]]:
    header = message.header
    times = {"stamp_ns": pace.at_stamp(header.stamp_ns)}
    if isinstance(header, Label):
        times |= {"start_ns": pace.at_stamp(header.start_ns), "end_ns": pace.at_stamp(header.end_ns)}
    if isinstance(header, AudioBlock) and pace.rate != 1:
        yield from _sound(message, pace)
    else:
        yield structs.replace(message, header=structs.replace(header, **times))


def _sound(message: Message[AudioBlock], pace: Pace) -> Iterator[Message[AudioBlock]]:
    """Yield a block at the new tempo, in pieces no longer than itself; nothing if no sample is left."""
    header, rate = message.header, pace.rate
    first = round(header.sample_index / rate)
    total = round((header.sample_index + header.samples) / rate) - first
    if not total:
        return
    data = at_tempo(raw_samples(header, message.payload), total)
    pieces = -(-total // header.samples)
    for start, stop in pairwise(round(total * piece / pieces) for piece in range(pieces + 1)):
        part = structs.replace(
            header,
            stamp_ns=pace.at_stamp(header.stamp_ns) + start * SECOND_NS // header.rate_hz,
            sample_index=first + start,
            samples=stop - start,
            gap=0 if start else round(header.gap / rate),
        )
        yield structs.replace(message, header=part, payload=data[start:stop].tobytes())


class Lap:
    """Length of one lap, after which the next begins: stamps keep rising and sound has no gap."""

    def __init__(self) -> None:
        self._first_ns: dict[str, int] = {}
        self._last_ns: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._sound_ns = 0

    def add(self, topic: str, header: Header) -> None:
        """Add a message that was published."""
        first_ns = self._first_ns.setdefault(topic, header.stamp_ns)
        self._last_ns[topic] = header.stamp_ns
        self._counts[topic] = self._counts.get(topic, 0) + 1
        if isinstance(header, AudioBlock):
            self._sound_ns = max(self._sound_ns, reached_ns(header) - first_ns)

    @property
    def length_ns(self) -> int:
        """Difference between the stamps of the next lap and of this one."""
        spans = {topic: self._last_ns[topic] - first_ns for topic, first_ns in self._first_ns.items()}
        longest_ns = max(spans.values(), default=0)
        if self._sound_ns > longest_ns:
            return self._sound_ns
        steps = [span // (self._counts[topic] - 1) for topic, span in spans.items() if span > 0]
        return longest_ns + (_SHORT_STEP_NS if self._sound_ns else min(steps, default=_LONG_STEP_NS))


class SampleCounter:
    """Counts the samples of a microphone over pauses and laps, like a device that is not read meanwhile."""

    def __init__(self) -> None:
        self._origin_ns: int | None = None
        self._offset = 0
        self._next = 0
        self._next_ns = 0

    def counted(self, header: AudioBlock, origin_ns: int) -> AudioBlock:
        """Return the header, its stamp in host time, with its index; `origin_ns` is play time 0 there."""
        if self._origin_ns not in (None, origin_ns):
            missed = round((header.stamp_ns - self._next_ns) * header.rate_hz / SECOND_NS)
            self._offset = self._next + max(missed, 0) - header.sample_index
        self._origin_ns = origin_ns
        self._next = header.sample_index + self._offset + header.samples
        self._next_ns = reached_ns(header)
        return structs.replace(header, sample_index=header.sample_index + self._offset)
