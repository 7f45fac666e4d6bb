"""Read sessions: in recorded order, by topic and time, in bounded memory, whatever happened to the file.

What fails a checksum is never returned: it is passed over and told in `Session.damage`.
"""

import heapq
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Self

from mcap.records import Channel

from perception.bus import codec
from perception.errors import MalformedMessageError, SessionError
from perception.messages import Header, Message
from perception.session import container, protobuf
from perception.session import index as chunk_index
from perception.session.container import DamageError, Record, Span

_LOG: Final = logging.getLogger(__name__)
# Chunks of one lane follow each other, so that a sound file has one or two of each of three lanes open.
_MAX_OPEN_CHUNKS: Final = 8
_MAX_DAMAGE: Final = 1000
_Open = tuple[int, int, Record, Iterator[Record]]


def read(
    path: Path | str,
    topics: Sequence[str] = ("*",),
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> Iterator[Message[Header]]:
    """Yield the messages of a session in recorded order; what was damaged is logged at the end.

    Args:
        path: an MCAP file of ours, whole or cut off.
        topics: names or patterns such as `camera/*`.
        start_ns: first log time wanted.
        end_ns: first log time no longer wanted.

    Raises:
        SessionError: the file cannot be opened or is no session.
    """
    with Session(path) as session:
        yield from session.messages(topics, start_ns, end_ns)
        for text in session.damage:
            _LOG.warning("%s: %s", path, text)


class Session:
    """An open session file."""

    def __init__(self, path: Path | str) -> None:
        """Open a file; SessionError if it cannot be opened or is no session."""
        self.path = Path(path)
        self._descriptor = _open(self.path)
        try:
            self._index = chunk_index.load(self._descriptor)
            if self._index.channels and not any(map(_is_ours, self._index.channels.values())):
                raise DamageError("an MCAP file, but no session; try: perception session import")
        except DamageError as error:
            self.close()
            raise SessionError(f"{self.path}: {error}") from error
        self._damage = dict.fromkeys(self._index.damage)
        self._spans = sorted(self._index.spans, key=lambda span: span.start_ns)

    @property
    def closed_properly(self) -> bool:
        """Whether the recorder closed the file; `repair` writes one that is."""
        return self._index.closed

    @property
    def damage(self) -> list[str]:
        """What was found damaged so far, one line each; complete once everything has been read."""
        return list(self._damage)

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON values by name: `profile`, `models`, `packages`, `clock`, `devices`, whatever was given."""
        return self._index.metadata

    @property
    def times_ns(self) -> tuple[int, int] | None:
        """First and last log time, None if there is nothing."""
        if not self._spans:
            return None
        return self._spans[0].start_ns, max(span.end_ns for span in self._spans)

    def at_ns(self, seconds: float | None) -> int | None:
        """Return the log time `seconds` after the beginning, or before the end if negative; None of None."""
        if seconds is None or self.times_ns is None:
            return None
        start_ns, end_ns = self.times_ns
        return max((end_ns if seconds < 0 else start_ns) + round(seconds * 1e9), 0)

    @property
    def counts(self) -> dict[str, int]:
        """Messages by topic; reads the whole file if it was not closed properly."""
        counts: Counter[str] = Counter()
        if self._index.closed:
            for number, channel in self._index.channels.items():
                if _is_ours(channel):
                    counts[channel.topic] += self._index.counts.get(number, 0)
        else:
            for record in self.records():
                if _is_ours(record.channel):
                    counts[record.channel.topic] += 1
        return dict(sorted(counts.items()))

    def messages(
        self, topics: Sequence[str] = ("*",), start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[Message[Header]]:
        """Yield messages as they were received, in that order; arguments as those of `read`."""
        for record in self.records(topics, start_ns, end_ns):
            if not _is_ours(record.channel):
                continue
            try:
                yield message(record)
            except (ValueError, KeyError, MalformedMessageError) as error:
                self._note(f"{record.channel.topic}: refused a message: {error}")

    def records(
        self, topics: Sequence[str] = ("*",), start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[Record]:
        """Yield what was recorded, not decoded, viewers' annotations included; arguments as of `read`."""
        start = 0 if start_ns is None else start_ns
        end = 1 << 64 if end_ns is None else end_ns
        for record in self._ordered(self._wanted(topics, start, end)):
            if start <= record.log_time_ns < end and matches(record.channel.topic, topics):
                yield record

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wanted(self, topics: Sequence[str], start: int, end: int) -> Iterator[Span]:
        numbers = {
            number for number, channel in self._index.channels.items() if matches(channel.topic, topics)
        }
        for span in self._spans:
            in_time = span.start_ns < end and span.end_ns >= start
            if in_time and (span.channels is None or span.channels & numbers):
                yield span

    def _ordered(self, spans: Iterator[Span]) -> Iterator[Record]:
        """Merge chunks, which come by their first log time, by the log times of their messages."""
        heap: list[_Open] = []
        for number, span in enumerate(spans):
            yield from _until(heap, span.start_ns)
            if len(heap) >= _MAX_OPEN_CHUNKS:
                self._note(f"chunk at byte {span.offset}: too many chunks at the same time")
                continue
            _push(heap, number, self._unpacked(span))
        yield from _until(heap, None)

    def _unpacked(self, span: Span) -> Iterator[Record]:
        try:
            if span.length > container.MAX_RECORD_BYTES:
                raise DamageError(f"damaged chunk at byte {span.offset}: impossible length")
            data = os.pread(self._descriptor, span.length, span.offset)
            return iter(container.unpack(span, data))
        except DamageError as error:
            self._note(str(error))
            return iter(())

    def _note(self, text: str) -> None:
        if len(self._damage) < _MAX_DAMAGE:
            self._damage[text] = None


def message(record: Record) -> Message[Header]:
    """Decode a record of ours.

    Raises:
        ValueError, KeyError, MalformedMessageError: it does not hold a message.
    """
    given = record.channel.metadata
    fields = dict(protobuf.fields(record.data))
    parts: list[bytes] = [record.channel.topic.encode(), bytes(fields[int(given["header_field"])])]
    payload = fields.get(int(given["payload_field"]))
    if payload is not None:
        parts.append(bytes(payload))  # a view would keep the whole chunk in memory
    return codec.decode(parts, received_ns=record.log_time_ns)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SessionError(f"cannot open {path}: {error.strerror}") from error


def _is_ours(channel: Channel) -> bool:
    return "header_field" in channel.metadata


def matches(topic: str, patterns: Sequence[str]) -> bool:
    """Return whether `topic` is one of `patterns`, which may end in `*`."""
    return any(fnmatchcase(topic, pattern) for pattern in patterns)


def _push(heap: list[_Open], number: int, rest: Iterator[Record]) -> None:
    record = next(rest, None)
    if record is not None:
        heapq.heappush(heap, (record.log_time_ns, number, record, rest))


def _until(heap: list[_Open], limit_ns: int | None) -> Iterator[Record]:
    while heap and (limit_ns is None or heap[0][0] < limit_ns):
        _, number, record, rest = heapq.heappop(heap)
        yield record
        _push(heap, number, rest)
