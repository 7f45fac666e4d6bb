"""Joins journals with the recorded inputs: what a fusion process received, in its order. Pure.

Rules. One thread iterates; no lock. A journal names inputs that were recorded before or after it, so it waits
until all of them are read, or PATIENCE_NS have passed in the recording. Inputs are yielded in the order of
the journals, each once. Each journal stores the mark of the core before it, so a core can be resumed at any
of them: where a recording begins late, after a gap in it, or when the fusion process was restarted. After a
gap nothing is yielded until the next journal, which starts with `Begin`.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import structs

from perception.messages import (
    CoreMark,
    Header,
    HeadUse,
    Health,
    HeldInput,
    Journal,
    JournalEntry,
    Message,
    as_published,
    corrected,
    with_condition,
)
from perception.topics import kind_of, name_of

PATIENCE_NS: Final = 10_000_000_000
"""An input that is not recorded within this time after the journal that names it counts as lost."""
_KEPT_NS: Final = 2 * PATIENCE_NS
"""How long an input is stored: its journal comes later, and may then wait for another input.

Counted in time covered by journals: a fusion that hangs, or a host that sleeps, journals late.
"""
_STEP_NS: Final = 1_000_000_000
"""Longest time that one journal covers: several times the period of journals."""
_KEPT_BYTES: Final = 1 << 30
"""Payloads stored; while there are more, the time without journals counts too."""
EDGE_NS: Final = 2_000_000_000
"""This close to its ends, a recording may contain journals without the inputs that they name."""
_BEGINNING: Final = "the beginning of the fusion is not recorded"
_TAKEN_OVER: Final = "a standby took over, and its windows need sound from before"
INPUT_KINDS: Final = ("camera", "microphone", "text", "clock")


@dataclass(frozen=True, slots=True)
class Begin:
    """A core starts, or is resumed from a mark because its start is not recorded."""

    journal: Journal
    held: Mapping[HeldInput, Message[Any]]
    """Those of the frames and commands named in the mark that are recorded."""
    reason: str
    """Why it is resumed from a mark, empty if it starts."""

    @property
    def mark(self) -> CoreMark | None:
        """The mark to resume from, None if the core starts."""
        before = self.journal.before
        return before if before is not None and before.newest_ns is not None else None


@dataclass(frozen=True, slots=True)
class Missed:
    """Messages that are not recorded; the rest of the journal is left out."""

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
    """Journals of one publisher id without a gap."""

    first_seq: int
    last_seq: int
    end_ns: int
    """When the last one was made: all shed windows before that time are in the journals."""


@dataclass(slots=True)
class Survey:
    """Summary of the journals of one fusion, needed before its windows are cut again."""

    runs: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    """By the publisher id of the states."""
    shed: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Ticks of shed windows, by the same id."""
    heads: defaultdict[str, list[HeadUse]] = field(default_factory=lambda: defaultdict(list))
    """Which head was active from which tick on, by the same id."""
    facts: dict[str, str | float] = field(default_factory=dict)
    """Device, threads and versions of the live run."""

    def add(self, journal: Journal) -> None:
        """Add a journal."""
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
        """Return the head that computed a window; None if the journals do not name it."""
        uses = reversed(self.heads[source])
        return next((use for use in uses if use.from_tick is None or use.from_tick <= tick), None)

    def settled_ns(self, journal: Journal) -> int:
        """Return the time up to which the journals, from this one on without a gap, name all shed windows."""
        runs = self.runs[journal.state_source]
        return next(run.end_ns for run in runs if run.first_seq <= journal.seq <= run.last_seq)


def survey(messages: Iterable[Message[Header]], wanted: Callable[[Journal], bool]) -> Survey:
    """Return a summary of the journals and health reports of a recording, read once."""
    found = Survey()
    health: dict[str, dict[str, str | float]] = {}
    nodes: set[str] = set()
    for message in messages:
        header = as_published(message.header)
        if isinstance(header, Journal) and wanted(header):
            nodes.add(name_of(message.topic))
            found.add(header)
        elif isinstance(header, Health):
            health[header.node] = header.device
    for node in nodes:
        found.facts |= health.get(node, {})
    return found


def steps(messages: Iterable[Message[Header]], wanted: Callable[[Journal], bool]) -> Iterator[Step]:
    """Yield what the fusion received, in its order.

    Args:
        messages: a recording in its order, with the journals, the inputs and the clock's ticks.
        wanted: returns whether a journal is of the fusion to recompute.
    """
    playback = _Playback()
    now_ns = 0
    for message in messages:
        now_ns = max(now_ns, message.received_ns)
        playback.start_ns = playback.start_ns or now_ns
        if isinstance(message.header, Journal):
            if wanted(message.header):
                playback.inputs.journaled(now_ns)
                playback.waiting.append((now_ns, message.topic, as_published(message.header)))
        elif kind_of(message.topic) in INPUT_KINDS:
            playback.inputs.put(message)
        while playback.ready(now_ns):
            yield from playback.play()
    while playback.waiting:
        if not playback.ready(now_ns) and now_ns - playback.waiting[0][0] < EDGE_NS:
            yield from playback.play_tail()
            yield End()
            return
        yield from playback.play()


class _Inputs:
    """Inputs recorded and not yet yielded, those of each publisher in the order of their numbers."""

    def __init__(self) -> None:
        self._rows: defaultdict[tuple[str, str], deque[Message[Header]]] = defaultdict(deque)
        self._newest: dict[tuple[str, str], int] = {}
        self._first: dict[tuple[str, str], int] = {}
        self._order: deque[tuple[int, int, tuple[str, str]]] = deque()
        """When each input was recorded, by `_covered_ns` and by its log time, and its key in `_rows`."""
        self._bytes = 0
        self._covered_ns = 0
        """Time covered by journals, and that before the first."""
        self._journal_ns: int | None = None
        self._newest_ns = 0

    def journaled(self, now_ns: int) -> None:
        """Count the time that a journal covers."""
        before_ns = self._newest_ns if self._journal_ns is None else self._journal_ns
        self._covered_ns += min(now_ns - before_ns, _STEP_NS)
        self._journal_ns = now_ns

    def put(self, message: Message[Header]) -> None:
        key = message.topic, message.header.source
        now_ns = message.received_ns
        if self._journal_ns is None and self._newest_ns:
            self._covered_ns += max(0, now_ns - self._newest_ns)
        self._newest_ns = max(self._newest_ns, now_ns)
        self._rows[key].append(message)
        self._order.append((self._covered_ns, now_ns, key))
        self._newest[key] = max(message.header.seq, self._newest.get(key, -1))
        self._first.setdefault(key, message.header.seq)
        self._bytes += len(message.payload)
        while self._order and self._is_old(*self._order[0][:2], now_ns):
            self._drop_first()

    def _is_old(self, covered_ns: int, recorded_ns: int, now_ns: int) -> bool:
        full = self._bytes > _KEPT_BYTES and now_ns - recorded_ns > _KEPT_NS
        return full or self._covered_ns - covered_ns > _KEPT_NS

    def _drop_first(self) -> None:
        """Drop the input recorded first if it is still stored, also that of a publisher that has ended."""
        _, recorded_ns, key = self._order.popleft()
        row = self._rows.get(key)
        if row and row[0].received_ns <= recorded_ns:
            self._remove_first(row)
        if not row:
            self._rows.pop(key, None)

    def _remove_first(self, row: deque[Message[Header]]) -> Message[Header]:
        message = row.popleft()
        self._bytes -= len(message.payload)
        return message

    def passed(self, entry: JournalEntry) -> bool:
        """Return whether this input or a later one of its publisher was recorded."""
        return self._newest.get((entry.topic, entry.source), -1) >= entry.seq

    def before_first(self, entry: JournalEntry) -> bool:
        """Return whether this input was sent before the first recorded one of its publisher."""
        return entry.seq < self._first.get((entry.topic, entry.source), entry.seq)

    def take(self, entry: JournalEntry) -> Message[Header] | None:
        """Remove and return an input, None if it is not recorded; drop those before it."""
        row = self._rows.get((entry.topic, entry.source), deque())
        while row and row[0].header.seq < entry.seq:
            self._remove_first(row)
        return self._remove_first(row) if row and row[0].header.seq == entry.seq else None

    def find(self, item: HeldInput) -> Message[Header] | None:
        row = self._rows.get((item.topic, item.source), ())
        return next((message for message in row if message.header.seq == item.seq), None)


class _Playback:
    """Journals not yet yielded, and the inputs that they name."""

    def __init__(self) -> None:
        self.inputs = _Inputs()
        self.start_ns = 0
        self.waiting: deque[tuple[int, str, Journal]] = deque()
        self._checked = 0
        self._last: Journal | None = None
        self._broken = ""
        self._played = False
        """Whether a journal was yielded to its end."""

    def ready(self, now_ns: int) -> bool:
        """Return whether the inputs of the oldest journal are recorded, or one of them counts as lost."""
        if not self.waiting:
            return False
        arrived_ns, _, journal = self.waiting[0]
        while self._checked < len(journal.entries):
            entry = journal.entries[self._checked]
            if entry.kind == "input" and not self.inputs.passed(entry):
                return now_ns - arrived_ns > PATIENCE_NS
            self._checked += 1
        return True

    def play(self) -> Iterator[Step]:
        """Yield the oldest journal, up to the first input that is not recorded."""
        arrived_ns, topic, journal = self.waiting.popleft()
        self._checked = 0
        yield from self._begin(topic, journal)
        self._last, self._broken = journal, ""
        for entry in journal.entries:
            if entry.kind == "input":
                message = self.inputs.take(entry)
                if message is None:
                    unrecorded = not self._played or self.inputs.before_first(entry)
                    at_edge = unrecorded and arrived_ns - self.start_ns < EDGE_NS
                    self._broken = _BEGINNING if at_edge else "an input was not recorded"
                    if not at_edge:
                        yield Missed(entry.topic, entry.source, entry.seq)
                    return
                yield _as_received(message, entry.condition, entry.correction_ns)
        self._played = True

    def play_tail(self) -> Iterator[Step]:
        """Yield the oldest journal as far as its inputs are recorded."""
        _, topic, journal = self.waiting.popleft()
        yield from self._begin(topic, journal)
        for entry in journal.entries[: self._checked]:
            if entry.kind == "input" and (message := self.inputs.take(entry)) is not None:
                yield _as_received(message, entry.condition, entry.correction_ns)

    def _begin(self, topic: str, journal: Journal) -> Iterator[Step]:
        """Yield a Begin unless the journal follows the last one without a gap."""
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
        found = {item: self.inputs.find(item) for item in held}
        is_start = journal.before is None or journal.before.newest_ns is None
        other = last is not None and last.source != journal.source
        reason = "" if is_start else self._broken or (_TAKEN_OVER if other else _BEGINNING)
        known = {
            item: _as_received(one, item.condition, item.stamp_ns - as_published(one.header).stamp_ns)
            for item, one in found.items()
            if one is not None
        }
        yield Begin(journal, known, reason)


def _as_received(message: Message[Header], condition: str, correction_ns: int) -> Message[Header]:
    """Return an input as the fusion received it: on its clock, with the condition that it judged, if it did.

    The recorder may have run on another host, or have estimated another offset.
    """
    if message.header.correction_ns != correction_ns:
        header = corrected(message.header, correction_ns - message.header.correction_ns)
        message = structs.replace(message, header=header)
    return with_condition(message, condition) if condition else message
