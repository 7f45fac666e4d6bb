"""The ledger records what a core received and what was shed; the backlog holds the window due next. Pure.

Rules. `Ledger` belongs to the receiving thread: all of its methods. Every message reaches the core through
`push`, so the journal names each one in its order. Shed ticks and head switches come from the compute thread
and enter here before the journal that names them. `Backlog` is shared; its owner `Compute` locks it.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import structs

from perception.fusion.core import FusionCore
from perception.fusion.window import Window
from perception.messages import (
    CoreMark,
    Header,
    HeadUse,
    Journal,
    JournalEntry,
    Message,
)

_MAX_ENTRIES: Final = 512
_MAX_ENTRY_BYTES: Final = 64 * 1024
_MAX_MARK_BYTES: Final = 128 * 1024
"""Together with the entries less than the largest header."""
_KEPT: Final = 16
_ITEM_BYTES: Final = 80
"""Of an entry or an item of a mark, without the names in it, at most."""


class Ledger:
    """Pushes messages into a core and records them for the journal. Pure."""

    def __init__(
        self, core: FusionCore, *, state_topic: str, state_source: str, head: HeadUse | None = None
    ) -> None:
        """Journals name the topic and the publisher id of the states, and `head` as the first active one."""
        self.core = core
        self.entries: list[JournalEntry] = []
        """Recorded since the last journal."""
        self._entry_bytes = 0
        self._state_topic = state_topic
        self._state_source = state_source
        self._heads = [] if head is None else [head]
        self._switched = False
        self._before = _bounded(core.mark())

    @property
    def full(self) -> bool:
        """Whether a journal is due: a header has room for few more entries."""
        return len(self.entries) >= _MAX_ENTRIES or self._entry_bytes >= _MAX_ENTRY_BYTES

    def push(self, message: Message[Header], judged: str = "") -> list[Window]:
        """Record a message and push it into the core; return the windows it completes, oldest first.

        `judged`: its condition if it was judged on receipt; the journal names it, the wire bytes do not.
        """
        header = message.header
        entry = JournalEntry(
            kind="input",
            topic=message.topic,
            source=header.source,
            seq=header.seq,
            condition=judged,
            correction_ns=header.correction_ns,
        )
        self.entries.append(entry)
        self._entry_bytes += _ITEM_BYTES + len(entry.topic) + len(entry.source) + len(entry.condition)
        return self.core.push(message)

    def shed(self, ticks: Iterable[int]) -> None:
        """Record windows that were shed."""
        self.entries += [JournalEntry(kind="shed", seq=tick) for tick in ticks]

    def switched(self, uses: Iterable[HeadUse]) -> None:
        """Record heads that became active."""
        uses = list(uses)
        self._heads += uses
        self._switched |= bool(uses)

    def journal(self, now_ns: int, *, last: bool = False) -> Journal | None:
        """Return what was recorded since the last journal, None if nothing was.

        The `last` journal is returned even if empty: it records that nothing was shed for the last states.
        """
        if not (self.entries or self._switched or last):
            return None
        journal = Journal(
            stamp_ns=now_ns,
            entries=tuple(self.entries),
            before=self._before,
            heads=tuple(self._heads),
            state_topic=self._state_topic,
            state_source=self._state_source,
        )
        self._heads, self._switched = self._heads[-1:], False
        self.entries.clear()
        self._entry_bytes = 0
        self._before = _bounded(self.core.mark())
        return journal


def _bounded(mark: CoreMark) -> CoreMark:
    """Return a mark that fits into a header: only the newest items of each input if there are too many.

    Only a flood of frames of publishers with the longest ids makes it that large.
    """
    held = [item for one in mark.inputs.values() for item in one.held]
    size = sum(_ITEM_BYTES + len(item.topic) + len(item.source) for item in held)
    if size <= _MAX_MARK_BYTES:
        return mark
    newest = {name: structs.replace(one, held=one.held[-_KEPT:]) for name, one in mark.inputs.items()}
    return structs.replace(mark, inputs=newest)


class Backlog:
    """The newest window that is due and not yet computed; a newer one replaces it. Pure."""

    def __init__(self) -> None:
        self._due: tuple[Window, int] | None = None
        self._shed = 0

    def offer(self, windows: Sequence[Window], cut_ns: int) -> list[int]:
        """Add windows that were cut at host time `cut_ns`; return the ticks that are shed for them."""
        if not windows:
            return []
        *older, newest = windows if self._due is None else (self._due[0], *windows)
        self._due = newest, cut_ns
        self._shed += len(older)
        return [window.tick for window in older]

    def take(self) -> tuple[Window, int, int] | None:
        """Return the due window, when it was cut, and how many were shed before it; None if none is due."""
        if self._due is None:
            return None
        due, shed = self._due, self._shed
        self._due, self._shed = None, 0
        return *due, shed
