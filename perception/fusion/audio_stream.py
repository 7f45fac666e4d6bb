"""Samples of one microphone: places blocks by their index and stamps, cuts windows of samples. Pure.

Rules. A stream belongs to its `FusionCore`, whose one thread calls it; no lock. Sample indices only rise: a
counter that contradicts its stamps gets a new offset.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from operator import attrgetter
from typing import Final

import msgspec
import numpy as np
from msgspec import structs

from perception.features.window import SampleHistory, decode_samples, is_finite, is_whole
from perception.fusion.conditions import Conditions
from perception.fusion.window import DEAD_AFTER_NS, AudioSlice, RefusedError, WindowInput
from perception.messages import AudioBlock, InputMark, Message, SampleMark, duration_ns
from perception.units import MILLISECOND_NS, SECOND_NS

RESYNC_NS: Final = 50 * MILLISECOND_NS
"""If sample counter and stamps differ by more than this, the stamps count."""
MAX_MISSING: Final = 0.1
"""A window with a larger lost share is absent; with a smaller one it is present, reason `gap`."""
MAX_UNREAD: Final = 64
"""Blocks stored undecoded until a window is cut; if there are more, they are decoded earlier."""


class _Block(msgspec.Struct, frozen=True):
    start: int
    stop: int
    stamp_ns: int
    seq: int
    received_ns: int
    condition: str = ""


_START: Final = attrgetter("start")
_STOP: Final = attrgetter("stop")


class AudioStream:
    """Samples of one microphone, addressed by an index that never runs backwards."""

    def __init__(
        self,
        topic: str,
        *,
        length_ns: int,
        history_ns: int,
        counts: Counter[str],
        conditions: Conditions,
        nominal_ns: int,
        exact: bool = False,
    ) -> None:
        """Cut windows of `length_ns`; store `history_ns` of sound; count repairs in `counts`.

        Args:
            topic: of the microphone.
            length_ns: of a window, with the sound before it that the resampler needs.
            history_ns: how much sound is stored.
            counts: counters of repairs.
            exact: copied into each `AudioSlice`.
            conditions: those that make a window absent or suspect.
            nominal_ns: length of the last part of a window: the blocks in it decide its condition.
        """
        self._conditions = conditions
        self._nominal_ns = nominal_ns
        self.topic = topic
        self.newest_ns: int | None = None
        """End of the newest sample."""
        self._counts = counts
        self._length_ns = length_ns
        self._history_ns = history_ns
        self._exact = exact
        self._history: SampleHistory | None = None
        self._rate_hz = 0
        self._source = ""
        self._offset = 0
        self._first = 0
        self._blocks: deque[_Block] = deque()
        self._unread: deque[tuple[int, Message[AudioBlock]]] = deque()
        """Blocks that are not decoded yet, with the index of their first sample."""

    def push(self, message: Message[AudioBlock]) -> None:
        """Add one block.

        Raises:
            RefusedError: the samples are not as many as in the header, not finite, or overlap earlier ones.
        """
        header = message.header
        if not is_whole(header, message.payload):
            raise RefusedError("wrong size")
        if header.format != "s16" and not is_finite(header, message.payload):
            raise RefusedError("not finite")
        start = self._place(header)
        assert self._history is not None
        self._unread.append((start, message))
        if len(self._unread) >= MAX_UNREAD:
            self._read()
        stop = start + header.samples
        self._append(_Block(start, stop, header.stamp_ns, header.seq, message.received_ns, header.condition))
        while self._blocks[0].stop < stop - self._history.capacity:
            self._blocks.popleft()

    def _read(self) -> None:
        """Decode the blocks received since the last window, adjacent ones together."""
        assert self._history is not None
        while self._unread:
            start, first = self._unread.popleft()
            header, payloads = first.header, [first.payload]
            stop = start + header.samples
            while self._unread and self._unread[0][0] == stop and _alike(self._unread[0][1].header, header):
                _, following = self._unread.popleft()
                payloads.append(following.payload)
                stop += following.header.samples
            whole = structs.replace(header, samples=stop - start)
            self._history.push(start, decode_samples(whole, b"".join(payloads)))

    def _append(self, block: _Block) -> None:
        self._blocks.append(block)
        self.newest_ns = block.stamp_ns + duration_ns(block.stop - block.start, self._rate_hz)

    def _place(self, header: AudioBlock) -> int:
        """Return the index of the block's first sample; raise RefusedError if it overlaps earlier blocks.

        A sample counter that contradicts its stamps gets a new offset, counted as `resync`.
        """
        if self._history is None or header.rate_hz != self._rate_hz:
            self._open(header)
            return header.sample_index
        last = self._blocks[-1]
        assert self.newest_ns is not None
        elapsed_ns = header.stamp_ns - self.newest_ns
        start = header.sample_index + self._offset
        skipped = start - last.stop
        error_ns = elapsed_ns - (skipped and duration_ns(skipped, self._rate_hz))
        if header.source != self._source or skipped < 0 or abs(error_ns) > RESYNC_NS:
            if elapsed_ns < -RESYNC_NS:
                raise RefusedError("overlap")
            self._counts["resync"] += 1
            start = last.stop + max(0, _samples(elapsed_ns, self._rate_hz))
            self._offset = start - header.sample_index
            self._source = header.source
        return start

    def _open(self, header: AudioBlock) -> None:
        self._rate_hz = header.rate_hz
        self._source = header.source
        self._offset = 0
        self._first = header.sample_index
        self._history = SampleHistory(_samples(self._history_ns, header.rate_hz))
        self._blocks.clear()
        self._unread.clear()

    def mark(self) -> InputMark:
        """Return the position in the samples."""
        if not self._blocks:
            return InputMark()
        last = self._blocks[-1]
        return InputMark(
            samples=SampleMark(
                source=self._source,
                rate_hz=self._rate_hz,
                offset=self._offset,
                first=self._first,
                start=last.start,
                stop=last.stop,
                stamp_ns=last.stamp_ns,
                seq=last.seq,
            )
        )

    def resume(self, mark: InputMark) -> None:
        """Continue from `mark`; the samples up to there are missing."""
        at = mark.samples
        if at is None:
            return
        self._rate_hz, self._source, self._offset, self._first = at.rate_hz, at.source, at.offset, at.first
        self._history = SampleHistory(_samples(self._history_ns, at.rate_hz))
        self._history.push(at.stop, np.empty(0, np.float32))
        self._append(_Block(at.start, at.stop, at.stamp_ns, at.seq, 0))

    def cut(self, end_ns: int) -> WindowInput:
        """Return exactly the samples of `[end_ns - length, end_ns)`."""
        if self._history is None:
            return WindowInput(self.topic, "absent", "never")
        assert self.newest_ns is not None
        self._read()
        stop = self._index_at(end_ns)
        if stop is None:
            return WindowInput(self.topic, "absent", "filling")
        if stop > self._blocks[-1].stop:
            behind_ns = end_ns - self.newest_ns
            reason = "dead" if behind_ns > DEAD_AFTER_NS else "late"
            return WindowInput(self.topic, "absent", reason, behind_ns)
        start = stop - _samples(self._length_ns, self._rate_hz)
        if start < self._first:
            return WindowInput(self.topic, "absent", "filling", 0)
        condition = self._condition_before(stop)
        if self._conditions.is_absent(condition):
            return WindowInput(self.topic, "absent", condition, 0, condition=condition)
        samples, missing = self._history.read(start, stop)
        if missing > MAX_MISSING * len(samples):
            return WindowInput(self.topic, "absent", "gap", 0)
        first = self._blocks[bisect_right(self._blocks, start, key=_STOP)]
        last = self._blocks[bisect_left(self._blocks, stop, key=_START) - 1]
        return WindowInput(
            self.topic,
            "present",
            "gap" if missing else "",
            0,
            (first.seq, last.seq),
            AudioSlice(samples, stop, self._rate_hz, missing, self._exact),
            last.received_ns,
            last.stamp_ns + duration_ns(last.stop - last.start, self._rate_hz),
            condition,
            self._conditions.is_suspect(condition),
        )

    def _condition_before(self, stop: int) -> str:
        """Return the most serious condition of the window's blocks, the newest of several."""
        start = stop - _samples(self._nominal_ns, self._rate_hz)
        found: dict[str, None] = {}
        for block in reversed(self._blocks):  # an index into a deque would count from its end each time
            if block.stop <= start:
                break
            if block.start < stop:
                found[block.condition] = None
        return self._conditions.worst(found)

    def _index_at(self, at_ns: int) -> int | None:
        """Return the index of the first sample at or after `at_ns`, by its block's stamp, or None."""
        following: _Block | None = None
        for block in reversed(self._blocks):
            if block.stamp_ns <= at_ns:
                index = block.start + _samples(at_ns - block.stamp_ns, self._rate_hz)
                return index if following is None else min(index, following.start)
            following = block
        return None


def _alike(one: AudioBlock, other: AudioBlock) -> bool:
    return (one.format, one.channels) == (other.format, other.channels)


def _samples(duration_ns: int, rate_hz: int) -> int:
    return (duration_ns * rate_hz + SECOND_NS // 2) // SECOND_NS
