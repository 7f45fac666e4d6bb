"""Journals joined with the recorded inputs: what a fusion process took in, in its order. Pure.

Every journal says where the core stood before it, so the tale can be taken up at any of them: where a
recording begins late, behind a hole in it, or when the fusion process was started again.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from perception.messages import (
    CoreMark,
    Header,
    HeadUse,
    Health,
    HeldInput,
    Journal,
    JournalEntry,
    Message,
)
from perception.topics import kind_of, name_of

PATIENCE_NS: Final = 10_000_000_000
"""An input that is not recorded so long after the journal that names it will not come any more."""
_KEPT_NS: Final = 2 * PATIENCE_NS
"""So long an input is kept: its journal comes later than itself, and may wait for another input then."""
EDGE_NS: Final = 2_000_000_000
"""So close to its ends, a recording may hold journals but not yet, or not any more, the inputs they name."""
_BEGINNING: Final = "the beginning of the fusion is not recorded"
INPUT_KINDS: Final = ("camera", "microphone", "text", "clock")


@dataclass(frozen=True, slots=True)
class Begin:
    """A core begins, or one whose beginning is not recorded is taken up where it stood."""

    journal: Journal
    held: Mapping[HeldInput, Message[Any]]
    """What is recorded of the frames and commands that it held."""
    reason: str
    """Why it is taken up in the middle, empty if it begins anew."""

    @property
    def mark(self) -> CoreMark | None:
        """Where the core stood, None if it begins anew."""
        before = self.journal.before
        return before if before is not None and before.newest_ns is not None else None


@dataclass(frozen=True, slots=True)
class Missed:
    """Messages that the recording lacks; what follows in the journal is left out."""

    topic: str
    source: str
    seq: int
    """Of the first."""
    count: int = 1


@dataclass(frozen=True, slots=True)
class End:
    """The recording ends before all inputs of the journals in it."""


Step = Begin | Missed | End | Message[Header]


@dataclass(slots=True)
class Run:
    """Journals of one source without a gap."""

    first_seq: int
    last_seq: int
    end_ns: int
    """When the last one was made: all that was shed before then has been told."""


@dataclass(slots=True)
class Survey:
    """What has to be known about the journals of one fusion before its windows are cut again."""

    runs: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    """By the source of the states."""
    shed: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Ticks, likewise."""
    heads: defaultdict[str, list[HeadUse]] = field(default_factory=lambda: defaultdict(list))
    """Which head concluded from which tick on, likewise."""
    facts: dict[str, str | float] = field(default_factory=dict)
    """Device, threads and versions of the live run."""

    def add(self, journal: Journal) -> None:
        """Take note of a journal."""
        shed = (entry.seq for entry in journal.entries if entry.kind == "shed")
        self.shed[journal.state_source].update(shed)
        heads = self.heads[journal.state_source]
        heads += [use for use in journal.heads if use not in heads[-1:]]
        runs = self.runs[journal.state_source]
        if runs and runs[-1].last_seq + 1 == journal.seq:
            runs[-1].last_seq, runs[-1].end_ns = journal.seq, journal.stamp_ns
        else:
            runs.append(Run(journal.seq, journal.seq, journal.stamp_ns))

    def head_at(self, source: str, tick: int) -> HeadUse | None:
        """Return the head that concluded a window; None if the journals do not say."""
        uses = reversed(self.heads[source])
        return next((use for use in uses if use.from_tick is None or use.from_tick <= tick), None)

    def settled_ns(self, journal: Journal) -> int:
        """Return until when it is told, from this journal on and without a gap, which windows were shed."""
        runs = self.runs[journal.state_source]
        return next(run.end_ns for run in runs if run.first_seq <= journal.seq <= run.last_seq)


def survey(messages: Iterable[Message[Header]], wanted: Callable[[Journal], bool]) -> Survey:
    """Go through the journals and health reports of a recording once."""
    found = Survey()
    health: dict[str, dict[str, str | float]] = {}
    nodes: set[str] = set()
    for message in messages:
        header = message.header
        if isinstance(header, Journal) and wanted(header):
            nodes.add(name_of(message.topic))
            found.add(header)
        elif isinstance(header, Health):
            health[header.node] = header.device
    for node in nodes:
        found.facts |= health.get(node, {})
    return found


def steps(messages: Iterable[Message[Header]], wanted: Callable[[Journal], bool]) -> Iterator[Step]:
    """Yield what the fusion took in, in its order.

    Args:
        messages: a recording in its order, with the journals, the inputs and the clock's ticks.
        wanted: tells the journals of the fusion in question.
    """
    tale = _Tale()
    now_ns = 0
    for message in messages:
        now_ns = max(now_ns, message.received_ns)
        tale.start_ns = tale.start_ns or now_ns
        if isinstance(message.header, Journal):
            if wanted(message.header):
                tale.waiting.append((now_ns, message.topic, message.header))
        elif kind_of(message.topic) in INPUT_KINDS:
            tale.shelf.put(message)
        while tale.ready(now_ns):
            yield from tale.play()
    while tale.waiting:
        if not tale.ready(now_ns) and now_ns - tale.waiting[0][0] < EDGE_NS:
            yield from tale.play_tail()
            yield End()
            return
        yield from tale.play()


class _Shelf:
    """Inputs recorded and not yet taken, each publisher's in the order of their numbers."""

    def __init__(self) -> None:
        self._rows: defaultdict[tuple[str, str], deque[Message[Header]]] = defaultdict(deque)
        self._newest: dict[tuple[str, str], int] = {}
        self._order: deque[tuple[int, tuple[str, str]]] = deque()
        """When each input was recorded, and its row."""

    def put(self, message: Message[Header]) -> None:
        key = message.topic, message.header.source
        self._rows[key].append(message)
        self._order.append((message.received_ns, key))
        self._newest[key] = max(message.header.seq, self._newest.get(key, -1))
        self._drop(message.received_ns - _KEPT_NS)

    def _drop(self, before_ns: int) -> None:
        """Drop what was recorded before, of publishers too that have ended."""
        while self._order[0][0] < before_ns:
            _, key = self._order.popleft()
            row = self._rows.get(key)
            if row and row[0].received_ns < before_ns:
                row.popleft()
            if not row:
                self._rows.pop(key, None)

    def passed(self, entry: JournalEntry) -> bool:
        """Whether this input is here, or a later one is."""
        return self._newest.get((entry.topic, entry.source), -1) >= entry.seq

    def take(self, entry: JournalEntry) -> Message[Header] | None:
        """Return an input; those before it were never taken and never will be."""
        row = self._rows.get((entry.topic, entry.source), deque())
        while row and row[0].header.seq < entry.seq:
            row.popleft()
        return row.popleft() if row and row[0].header.seq == entry.seq else None

    def find(self, item: HeldInput) -> Message[Header] | None:
        row = self._rows.get((item.topic, item.source), ())
        return next((message for message in row if message.header.seq == item.seq), None)


class _Tale:
    def __init__(self) -> None:
        self.shelf = _Shelf()
        self.start_ns = 0
        self.waiting: deque[tuple[int, str, Journal]] = deque()
        self._checked = 0
        self._last: Journal | None = None
        self._broken = ""
        self._told = False
        """Whether a journal could be told to its end."""

    def ready(self, now_ns: int) -> bool:
        """Whether the oldest journal's inputs are there, or will not come any more."""
        if not self.waiting:
            return False
        arrived_ns, _, journal = self.waiting[0]
        while self._checked < len(journal.entries):
            entry = journal.entries[self._checked]
            if entry.kind == "input" and not self.shelf.passed(entry):
                return now_ns - arrived_ns > PATIENCE_NS
            self._checked += 1
        return True

    def play(self) -> Iterator[Step]:
        """Tell the oldest journal, up to the first input that is missed."""
        arrived_ns, topic, journal = self.waiting.popleft()
        self._checked = 0
        yield from self._link(topic, journal)
        self._last, self._broken = journal, ""
        for entry in journal.entries:
            if entry.kind == "input":
                message = self.shelf.take(entry)
                if message is None:
                    at_edge = not self._told and arrived_ns - self.start_ns < EDGE_NS
                    self._broken = _BEGINNING if at_edge else "an input was not recorded"
                    if not at_edge:
                        yield Missed(entry.topic, entry.source, entry.seq)
                    return
                yield message
        self._told = True

    def play_tail(self) -> Iterator[Step]:
        """Tell the oldest journal as far as its inputs are recorded."""
        _, topic, journal = self.waiting.popleft()
        yield from self._link(topic, journal)
        for entry in journal.entries[: self._checked]:
            if entry.kind == "input" and (message := self.shelf.take(entry)) is not None:
                yield message

    def _link(self, topic: str, journal: Journal) -> Iterator[Step]:
        last = self._last
        if last is not None and last.source == journal.source:
            if journal.seq > last.seq + 1:
                self._broken = "a journal was not recorded"
                yield Missed(topic, journal.source, last.seq + 1, journal.seq - last.seq - 1)
            elif not self._broken:
                return
        held = [
            item for mark in (journal.before.inputs.values() if journal.before else ()) for item in mark.held
        ]
        found = {item: self.shelf.find(item) for item in held}
        anew = journal.before is None or journal.before.newest_ns is None
        reason = "" if anew else self._broken or _BEGINNING
        yield Begin(journal, {item: one for item, one in found.items() if one is not None}, reason)
