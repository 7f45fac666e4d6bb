"""The recorder of a simulated graph: in memory, or the real one with a file.

Rules. One thread. A recording is a list of segments, since a recorder may be killed, find its disk full, and
be started again. While it hangs, messages wait; afterwards it receives them topic by topic, as from sockets.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from msgspec import structs

from perception.bus.mailbox import Mailbox
from perception.messages import Header, Message
from perception.profile import Profile, RecorderConfig
from perception.session.recompute.source import Source
from perception.session.recorder import EVERY_MESSAGE, Recorder
from perception.simulate.faults import Active
from perception.simulate.scenario import START_NS
from perception.simulate.world import World
from perception.units import SECOND_NS

UNWRITTEN_NS: Final = SECOND_NS // 2
"""What a recorder that is killed has not written yet."""
_PLENTY: Final = 1 << 40


class Segment(Protocol):
    """One run of a recorder."""

    @property
    def full(self) -> str:
        """Why recording must stop; empty while it may continue."""

    def write(self, message: Message[Header], now_ns: int) -> None:
        """Record one message."""

    def finish(self, *, killed: bool) -> Source:
        """End the segment; return what `verify` reads."""


class MemorySegment:
    """Messages in memory; a full disk is that of the script."""

    def __init__(self, is_full: Callable[[], bool]) -> None:
        self._is_full = is_full
        self._messages: list[Message[Header]] = []

    @property
    def full(self) -> str:
        """Why recording must stop."""
        return "disk" if self._is_full() else ""

    def write(self, message: Message[Header], now_ns: int) -> None:
        """Record one message."""
        self._messages.append(message)

    def finish(self, *, killed: bool) -> Source:
        """End the segment; return its messages."""
        messages = self._messages
        written_ns = messages[-1].received_ns - UNWRITTEN_NS if killed else 0
        while killed and messages and messages[-1].received_ns > written_ns:
            messages.pop()
        return messages


class FileSegment:
    """A session file, written by the real recorder.

    Args:
        path: the file.
        profile: for its metadata.
        is_full: whether the disk is full.
    """

    def __init__(self, path: Path, profile: Profile, is_full: Callable[[], bool]) -> None:
        metadata = {"profile": profile.model_dump(mode="json")}
        self._recorder = Recorder(
            path, RecorderConfig(), metadata, lambda folder: 0 if is_full() else _PLENTY
        )

    @property
    def full(self) -> str:
        """Why recording must stop."""
        return self._recorder.full

    def write(self, message: Message[Header], now_ns: int) -> None:
        """Record one message."""
        self._recorder.write(message, now_ns)
        self._recorder.tick(now_ns)

    def finish(self, *, killed: bool) -> Source:
        """End the segment; return its file, as it was on the disk if the recorder was killed."""
        path = self._recorder.path
        if killed:
            path = path.with_suffix(".killed.mcap")
            shutil.copy(self._recorder.path, path)
        self._recorder.close()
        return path


class RecorderNode:
    """Records what it receives, under its faults.

    Args:
        world: its time.
        faults: of the recorder.
        begin: makes the next segment, and returns whether it has the beginning of all that is journaled in
            it; its argument returns whether the disk is full.
    """

    def __init__(
        self, world: World, faults: Active, begin: Callable[[Callable[[], bool]], tuple[Segment, bool]]
    ) -> None:
        self.finished: list[tuple[Source, bool]] = []
        """Segments, and whether each has all that was sent meanwhile."""
        self.messages = 0
        self._world = world
        self._faults = faults
        self._begin = begin
        self._segment: Segment | None = None
        self._whole = True
        self._waiting: Mailbox | None = None

    def take(self, message: Message[Header]) -> None:
        """Receive one message."""
        faults = self._faults.at(self._world.now_ns - START_NS)
        if faults or self._waiting or self._segment is None:
            self._take_in_trouble(message, set(faults))
        else:
            self._segment.write(message, self._world.now_ns)
            self.messages += 1

    def finish(self, *, killed: bool) -> None:
        """End the segment, if one is open."""
        if self._segment is not None:
            self.finished.append((self._segment.finish(killed=killed), self._whole))
            self._segment = None

    def _take_in_trouble(self, message: Message[Header], faults: set[str]) -> None:
        if "recorder crash" in faults:
            self._waiting = None
            self.finish(killed=True)
            return
        if self._segment is None and "full disk" in faults:
            self._waiting = None  # no recorder is started
            return
        if "recorder hang" in faults:
            self._waiting = self._waiting or Mailbox(EVERY_MESSAGE)
            self._waiting.put(message)
            return
        if self._segment is None:
            self._segment, self._whole = self._begin(self._is_full)
        for one in (*self._waited(), message):
            self._segment.write(one, self._world.now_ns)
            self.messages += 1
        if self._segment.full:
            self.finish(killed=False)

    def _waited(self) -> list[Message[Header]]:
        """Return what has waited, topic by topic; what had no room is lost."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return []
        now_ns, counts = self._world.now_ns, waiting.health(self._world.now_ns).values()
        self._whole = self._whole and not any(sum(one.dropped.values()) for one in counts)
        messages = []
        while (one := waiting.take()) is not None:
            messages.append(structs.replace(one, received_ns=now_ns))
        return sorted(messages, key=lambda one: one.topic)

    def _is_full(self) -> bool:
        return "full disk" in self._faults.at(self._world.now_ns - START_NS)
