"""Streams of frames and commands: store messages, cut their part of a window. Pure.

Rules. A stream belongs to its `FusionCore`, whose one thread calls it; no lock.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable
from typing import Final

from perception.fusion.audio_stream import AudioStream
from perception.fusion.conditions import Conditions
from perception.fusion.window import DEAD_AFTER_NS, CameraSlice, TextSlice, WindowInput
from perception.messages import CameraFrame, HeldInput, InputMark, Message, TextCommand

Count = Callable[[str, str], None]
"""Counts a message of a topic, by reason."""
MAX_FRAMES: Final = 256
EARLY: Final = 0.9
"""Share of the last period after which the next frame is expected at the earliest."""
MAX_TEXTS: Final = 64
MAX_FRAME_BYTES: Final = 512 << 20
"""Of the stored frames of one camera: more than a second of raw pictures of 1920 x 1080."""


def _held(message: Message[CameraFrame] | Message[TextCommand]) -> HeldInput:
    header = message.header
    return HeldInput(
        topic=message.topic,
        source=header.source,
        seq=header.seq,
        stamp_ns=header.stamp_ns,
        condition=header.condition if isinstance(header, CameraFrame) else "",
    )


class CameraStream:
    """Frames of one camera."""

    def __init__(
        self,
        topic: str,
        *,
        hop_ns: int,
        max_age_ns: int,
        count: Count,
        conditions: Conditions,
        max_bytes: float = MAX_FRAME_BYTES,
    ) -> None:
        """Frames older than `max_age_ns` are absent; dropped frames are counted by `count`.

        `conditions`: those that make a frame absent or suspect. `max_bytes`: of the stored frames.
        """
        self.topic = topic
        self._conditions = conditions
        self._count = count
        self.newest_ns: int | None = None
        self._hop_ns = hop_ns
        self._max_age_ns = max_age_ns
        self._frames: deque[Message[CameraFrame]] = deque()
        self._max_bytes = max_bytes
        self._bytes = 0

    def push(self, message: Message[CameraFrame]) -> None:
        """Add one frame; stamps must rise."""
        self._bytes += len(message.payload)
        while self._frames and (len(self._frames) >= MAX_FRAMES or self._bytes > self._max_bytes):
            self._remove_oldest()
            self._count(self.topic, "dropped")
        self._frames.append(message)
        self.newest_ns = message.header.stamp_ns

    def expects(self, message: Message[CameraFrame]) -> bool:
        """Return whether the next window will likely use this frame, by the rate of frames."""
        if not self._frames or self._frames[-1] is not message:
            return False
        if self._conditions.is_absent(message.header.condition):
            return False
        before = self._frames[-2].header.stamp_ns if len(self._frames) > 1 else message.header.stamp_ns
        stamp_ns = message.header.stamp_ns
        return stamp_ns + (stamp_ns - before) * EARLY > -(-stamp_ns // self._hop_ns) * self._hop_ns

    def _remove_oldest(self) -> None:
        self._bytes -= len(self._frames.popleft().payload)

    def mark(self) -> InputMark:
        """Return which frames are stored."""
        return InputMark(held=tuple(_held(frame) for frame in self._frames))

    def resume(self, mark: InputMark, find: Callable[[HeldInput], Message[CameraFrame]]) -> None:
        """Continue from `mark`; `find` returns the frames that it names."""
        for item in mark.held:
            self.push(find(item))

    def cut(self, end_ns: int) -> WindowInput:
        """Return the newest frame at or before `end_ns`, unless it is too old."""
        frame = _newest(self._frames, end_ns)
        if frame is None:
            return WindowInput(self.topic, "absent", "never")
        previous = _newest(self._frames, end_ns - self._hop_ns)
        while previous is not None and self._frames[0] is not previous:
            self._remove_oldest()
        stamp_ns, seq = frame.header.stamp_ns, frame.header.seq
        age_ns = end_ns - stamp_ns
        if age_ns > self._max_age_ns:
            reason = "dead" if age_ns > DEAD_AFTER_NS else "late"
            return WindowInput(self.topic, "absent", reason, age_ns)
        condition = self._conditions.worst((frame.header.condition,))
        if self._conditions.is_absent(condition):
            return WindowInput(self.topic, "absent", condition, age_ns, condition=condition)
        if previous is not None and self._conditions.is_absent(previous.header.condition):
            previous = None
        return WindowInput(
            self.topic,
            "present",
            "",
            age_ns,
            (seq, seq),
            CameraSlice(frame, previous),
            frame.received_ns,
            stamp_ns,
            condition,
            self._conditions.is_suspect(condition),
        )


def _newest(frames: deque[Message[CameraFrame]], end_ns: int) -> Message[CameraFrame] | None:
    for frame in reversed(frames):
        if frame.header.stamp_ns <= end_ns:
            return frame
    return None


class TextStream:
    """Commands, from any number of topics; sparse, so no window waits for it."""

    def __init__(self, topic: str, *, ttl_ns: int, count: Count) -> None:
        """Commands are in force for `ttl_ns`; dropped commands are counted by `count`."""
        self.topic = topic
        self._ttl_ns = ttl_ns
        self._count = count
        self._commands: list[Message[TextCommand]] = []

    def push(self, message: Message[TextCommand]) -> None:
        """Add one command."""
        insort(self._commands, message, key=lambda item: (item.header.stamp_ns, item.topic, item.header.seq))
        if len(self._commands) > MAX_TEXTS:
            self._count(self._commands.pop(0).topic, "dropped")

    def mark(self) -> InputMark:
        """Return which commands are stored."""
        return InputMark(held=tuple(_held(command) for command in self._commands))

    def resume(self, mark: InputMark, find: Callable[[HeldInput], Message[TextCommand]]) -> None:
        """Continue from `mark`; `find` returns the commands that it names."""
        self._commands += [find(item) for item in mark.held]

    def cut(self, end_ns: int) -> WindowInput:
        """Return the newest command at or before `end_ns` while it is in force."""
        due = [command for command in self._commands if command.header.stamp_ns <= end_ns]
        if not due:
            return WindowInput(self.topic, "absent", "none")
        command = due[-1]
        del self._commands[: len(due) - 1]
        age_ns, seq = end_ns - command.header.stamp_ns, command.header.seq
        if age_ns >= self._ttl_ns:
            return WindowInput(self.topic, "absent", "expired", age_ns)
        return WindowInput(
            command.topic,
            "present",
            "",
            age_ns,
            (seq, seq),
            TextSlice(command),
            command.received_ns,
            command.header.stamp_ns,
        )


Stream = CameraStream | AudioStream | TextStream
