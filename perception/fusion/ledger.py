"""What fusion does with its windows under load: the journal of it, and the windows not yet computed. Pure."""

from collections.abc import Iterable, Sequence

from perception.fusion.core import FusionCore
from perception.fusion.window import Window
from perception.messages import Header, HeadUse, Journal, JournalEntry, Message


class Ledger:
    """Pushes messages into a core and keeps the journal of it. Pure."""

    def __init__(
        self, core: FusionCore, *, state_topic: str, state_source: str, head: HeadUse | None = None
    ) -> None:
        """The states concluded from this core's windows are published as told, by this head at first."""
        self.core = core
        self.entries: list[JournalEntry] = []
        """Not yet journaled."""
        self._state_topic = state_topic
        self._state_source = state_source
        self._heads = [] if head is None else [head]
        self._switched = False
        self._before = core.mark()

    def push(self, message: Message[Header]) -> list[Window]:
        """Note a message and take it; return the windows it completes, oldest first."""
        header = message.header
        entry = JournalEntry(kind="input", topic=message.topic, source=header.source, seq=header.seq)
        self.entries.append(entry)
        return self.core.push(message)

    def shed(self, ticks: Iterable[int]) -> None:
        """Note windows that were shed."""
        self.entries += [JournalEntry(kind="shed", seq=tick) for tick in ticks]

    def switched(self, uses: Iterable[HeadUse]) -> None:
        """Note heads that came into force."""
        uses = list(uses)
        self._heads += uses
        self._switched |= bool(uses)

    def journal(self, now_ns: int, *, last: bool = False) -> Journal | None:
        """Return what was noted since the journal before, None if nothing was.

        The `last` one is made all the same: it says that nothing was shed for the states since then.
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
        self._before = self.core.mark()
        return journal


class Backlog:
    """The newest window that is due and not yet computed; the older ones are shed as it comes. Pure."""

    def __init__(self) -> None:
        self._due: tuple[Window, int] | None = None
        self._shed = 0

    def offer(self, windows: Sequence[Window], cut_ns: int) -> list[int]:
        """Put in windows that were cut at host time `cut_ns`; return the ticks shed for them."""
        if not windows:
            return []
        *older, newest = windows if self._due is None else (self._due[0], *windows)
        self._due = newest, cut_ns
        self._shed += len(older)
        return [window.tick for window in older]

    def take(self) -> tuple[Window, int, int] | None:
        """Return the due window, when it was cut, and how many were shed since the one before; or None."""
        if self._due is None:
            return None
        due, shed = self._due, self._shed
        self._due, self._shed = None, 0
        return *due, shed
