"""Read any MCAP file, also a damaged one: its records by log time, in bounded memory.

Bytes that fail a checksum are never returned: they are skipped and reported in `McapFile.damage`. One thread
uses a `McapFile`.
"""

import errno
import fcntl
import heapq
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from perception.errors import SessionError
from perception.errors.credentials import cleaned
from perception.session.file import container
from perception.session.file import index as chunk_index
from perception.session.file.container import DamageError, Declarations, Record, Span
from perception.units.closing import Closing

MAX_OPEN_BYTES: Final = 256 << 20
"""Chunks of `writer` hardly overlap in time, so that few are open at once; in other files all may overlap."""
_RECORD_BYTES: Final = 400
"""Memory of a record without its data."""
_MAX_DAMAGE: Final = 1000


class McapFile(Closing):
    """An open MCAP file."""

    def __init__(self, path: Path | str, *, open_bytes: int = MAX_OPEN_BYTES, take_cut: bool = False) -> None:
        """Open a file; SessionError if it cannot be opened or is no MCAP file.

        Args:
            path: the file.
            open_bytes: limit of memory for chunks, if many overlap.
            take_cut: also yield the rest of a chunk inside which the file ends, without a checksum.
        """
        self.path = Path(path)
        self._open_bytes = open_bytes
        self._has_all_declarations = False
        self.watch: Callable[[], object] = _nothing
        """Called for every record that is read; it shows progress."""
        self._descriptor = _open(self.path)
        try:
            self._index = chunk_index.load(self._descriptor)
        except DamageError as error:
            self.close()
            raise SessionError(f"{self.path}: {error}") from error
        self._damage = dict.fromkeys(self._index.damage)
        if take_cut and self._index.cut is not None:
            self._index.spans.append(self._index.cut)
        self._spans = sorted(self._index.spans, key=lambda span: span.start_ns)

    @property
    def closed_properly(self) -> bool:
        """Whether the writer closed the file; `repair` writes a copy that is closed."""
        return self._index.closed

    @property
    def being_written(self) -> bool:
        """Whether a writer of this host has the file open; False if the file system has no locks."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @property
    def damage(self) -> list[str]:
        """Damage found so far, one line each; complete after everything has been read."""
        return list(self._damage)

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON values by name."""
        return {name: cleaned(value) for name, value in self._index.metadata.items()}

    @property
    def listed(self) -> int | None:
        """Number of records by its index, None if the index does not state it."""
        counts = self._index.counts
        return None if counts is None else sum(counts.values())

    @property
    def passed_over(self) -> list[str]:
        """Other content than messages and metadata, such as `2 attachments`."""
        return [f"{count} {name[count > 1]}" for name, count in self._index.passed_over.items()]

    @property
    def times_ns(self) -> tuple[int, int] | None:
        """First and last log time, None if there are no records."""
        # Both times of a chunk without messages are 0.
        spans = [span for span in self._spans if span.end_ns] or self._spans
        if not spans:
            return None
        return spans[0].start_ns, max(span.end_ns for span in spans)

    def records(
        self, topics: Sequence[str] = ("*",), start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[Record]:
        """Yield records, not decoded, annotations for viewers included; arguments as of `reader.read`."""
        start = 0 if start_ns is None else start_ns
        end = 1 << 64 if end_ns is None else end_ns
        for record in self._ordered(self._wanted(topics, start, end)):
            if start <= record.log_time_ns < end and matches(record.channel.topic, topics):
                self.watch()
                yield record

    def declared(self) -> Declarations:
        """Return all schemas and channels; read the whole file if its index does not list them."""
        counts = self._index.counts
        if counts is None or not counts.keys() <= self._index.known.channels.keys():
            self._read_declarations()
        return self._index.known

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _wanted(self, topics: Sequence[str], start: int, end: int) -> Iterator[Span]:
        passed = {
            number
            for number, channel in self._index.known.channels.items()
            if not matches(channel.topic, topics)
        }
        for span in self._spans:
            in_time = span.start_ns < end and span.end_ns >= start
            if in_time and (span.channels is None or span.channels - passed):
                yield span

    def _ordered(self, spans: Iterator[Span]) -> Iterator[Record]:
        """Merge chunks, given in order of their first log time, by the log times of their messages."""
        merge = _Merge(self._unpacked, self._open_bytes)
        for span in spans:
            yield from merge.until(span.start_ns)
            merge.add(span)
        yield from merge.until(None)

    def _unpacked(self, span: Span) -> list[Record]:
        try:
            data = self._bytes(span)
            missing: set[int] = set()
            records = container.unpack(span, data, self._index.known, missing)
            if missing and not self._has_all_declarations:
                self._read_declarations()
                missing.clear()
                records = container.unpack(span, data, self._index.known, missing)
            for number in missing:
                self._note(f"messages of channel {number}, which is declared nowhere")
            return records
        except DamageError as error:
            self._note(str(error))
            return []

    def _bytes(self, span: Span) -> bytes:
        if span.length > container.MAX_RECORD_BYTES:
            raise DamageError(f"chunk at byte {span.offset}: of {span.length} bytes, which is too large")
        return os.pread(self._descriptor, span.length, span.offset)

    def _read_declarations(self) -> None:
        """Read schemas and channels of all chunks: a writer may declare them in one chunk only."""
        if self._has_all_declarations:
            return
        self._has_all_declarations = True
        for span in self._index.spans:
            with suppress(DamageError):
                declared = container.declarations(span, self._bytes(span))
                self._index.known.schemas = declared.schemas | self._index.known.schemas
                self._index.known.channels = declared.channels | self._index.known.channels

    def _declared_first(self) -> Declarations:
        """Return the declarations outside chunks; if there are none, those of the first chunk."""
        if not self._index.known.channels and self._index.spans:
            with suppress(DamageError):
                return container.declarations(self._index.spans[0], self._bytes(self._index.spans[0]))
        return self._index.known

    def _note(self, text: str) -> None:
        if len(self._damage) < _MAX_DAMAGE:
            self._damage[text] = None


def _nothing() -> None:
    pass


def _open(path: Path) -> int:
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SessionError(f"cannot open {path}: {getattr(error, 'strerror', error)}") from error


def matches(topic: str, patterns: Sequence[str]) -> bool:
    """Return whether `topic` matches one of `patterns`, such as `camera/*`."""
    return _matches(topic, tuple(patterns))


@lru_cache(maxsize=4096)
def _matches(topic: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(topic, pattern) for pattern in patterns)


class _Opened:
    """A chunk that is being read: its records, or only the number of those done if memory is short."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.done = 0
        self.records: list[Record] = []
        self.size = 0
        """Memory of the records, in bytes."""


class _Merge:
    """Merges the records of overlapping chunks by log time, then by offset.

    If more than `open_bytes` are open, the least recently used chunks drop their records and are read again
    when their next record is due.
    """

    def __init__(self, unpacked: Callable[[Span], list[Record]], open_bytes: int) -> None:
        self._unpacked = unpacked
        self._open_bytes = open_bytes
        self._heap: list[tuple[int, int, _Opened]] = []
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        """By offset of the chunk, the most recently used last."""

    def add(self, span: Span) -> None:
        opened = _Opened(span)
        self._read(opened)
        self._push(opened)

    def until(self, limit_ns: int | None) -> Iterator[Record]:
        """Yield the records before `limit_ns`, or all."""
        while self._heap and (limit_ns is None or self._heap[0][0] < limit_ns):
            _, _, opened = heapq.heappop(self._heap)
            if not opened.records:
                self._read(opened)
            record = opened.records[opened.done]
            opened.done += 1
            self._push(opened)
            yield record

    def _read(self, opened: _Opened) -> None:
        opened.records = self._unpacked(opened.span)
        opened.size = sum(len(record.data) + _RECORD_BYTES for record in opened.records)
        self._open[opened.span.offset] = opened
        while len(self._open) > 1 and sum(one.size for one in self._open.values()) > self._open_bytes:
            self._open.popitem(last=False)[1].records = []

    def _push(self, opened: _Opened) -> None:
        offset = opened.span.offset
        if opened.done < len(opened.records):
            heapq.heappush(self._heap, (opened.records[opened.done].log_time_ns, offset, opened))
            self._open.move_to_end(offset)
        else:
            opened.records = []
            del self._open[offset]
