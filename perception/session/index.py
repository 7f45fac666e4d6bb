"""Find the chunks of a session file: by its index if that is sound, else by walking through the file."""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mcap import records
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode

from perception.session import container
from perception.session.container import MAGIC, RECORD, DamageError, Span

_FOOTER: Final = struct.Struct("<BQQQI")
_CHUNK_INDEX: Final = struct.Struct("<QQQQI")
_MAX_SUMMARY_BYTES: Final = 256 << 20
_MAX_METADATA_BYTES: Final = 16 << 20
_WINDOW_BYTES: Final = 1 << 20
# A chunk's head: sizes below 2^32, then one of the compressions; a lookahead, so that matches may overlap.
_CHUNK_HEAD: Final = re.compile(
    rb"(?=\x06.{4}\0{4}.{20}\0{4}.{4}(?:\0{4}|\x03\0{3}lz4|\x04\0{3}zstd))", re.DOTALL
)
_HEAD_BYTES: Final = 64
_BROKEN: Final = (struct.error, ValueError, KeyError, EndOfFile)


@dataclass(slots=True)
class Index:
    """Where everything is."""

    spans: list[Span] = field(default_factory=list)
    channels: dict[int, records.Channel] = field(default_factory=dict)
    """By number; empty if the file was not closed: then only its chunks know."""
    counts: dict[int, int] = field(default_factory=dict)
    """Messages by channel; empty if the file was not closed."""
    metadata: dict[str, Any] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    closed: bool = True
    """Whether the file was closed properly, so that this comes from its index."""


def load(descriptor: int) -> Index:
    """Return the index of an open file; DamageError if it is no MCAP file."""
    size = os.fstat(descriptor).st_size
    summary = _summary(descriptor, size)
    if summary is not None:
        try:
            return _from_summary(descriptor, summary)
        except _BROKEN:
            pass
    if os.pread(descriptor, len(MAGIC), 0) != MAGIC and _Search(descriptor, size).next(0) is None:
        raise DamageError("not an MCAP file")
    return _walk(descriptor, size)


def _summary(descriptor: int, size: int) -> bytes | None:
    """Return the summary section, None if there is none whose checksum fits."""
    end = size - len(MAGIC) - _FOOTER.size
    if end < 0:
        return None
    tail = os.pread(descriptor, size - end, end)
    opcode, length, start, _, crc = _FOOTER.unpack_from(tail)
    if opcode != Opcode.FOOTER or length != _FOOTER.size - RECORD.size or tail[_FOOTER.size :] != MAGIC:
        return None
    if not end - _MAX_SUMMARY_BYTES <= start <= end:
        return None
    summary = os.pread(descriptor, end - start, start)
    return summary if zlib.crc32(summary + tail[: _FOOTER.size - 4]) == crc else None


def _from_summary(descriptor: int, summary: bytes) -> Index:
    index = Index()
    for opcode, content in _contents(memoryview(summary)):
        if opcode == Opcode.CHUNK_INDEX:  # by far the most: two a second
            index.spans.append(_indexed(content))
            continue
        stream = ReadDataStream(io.BytesIO(content))
        if opcode == Opcode.CHANNEL:
            channel = records.Channel.read(stream)
            index.channels[channel.id] = channel
        elif opcode == Opcode.STATISTICS:
            index.counts = records.Statistics.read(stream).channel_message_counts
        elif opcode == Opcode.METADATA_INDEX:
            entry = records.MetadataIndex.read(stream)
            length = min(entry.length, _MAX_METADATA_BYTES)
            _add_metadata(index, entry.offset, os.pread(descriptor, length, entry.offset)[RECORD.size :])
    return index


def _contents(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position < len(data):
        opcode, length = RECORD.unpack_from(data, position)
        position += RECORD.size
        if length > len(data) - position:
            raise ValueError("a record is cut short")
        yield opcode, data[position : position + length]
        position += length


def _indexed(content: memoryview) -> Span:
    """Return the span of a chunk index record."""
    start_ns, end_ns, offset, length, size = _CHUNK_INDEX.unpack_from(content)
    offsets = content[_CHUNK_INDEX.size : _CHUNK_INDEX.size + size]
    channels = frozenset(number for number, _ in struct.iter_unpack("<HQ", offsets))
    return Span(offset, length, start_ns, end_ns, channels)


def _walk(descriptor: int, size: int) -> Index:
    """Go from record to record; where that fails, on to the next chunk whose checksum fits."""
    index = Index(closed=False)
    search = _Search(descriptor, size)
    position: int | None = len(MAGIC)
    while position is not None and position < size:
        try:
            position = _step(descriptor, position, size, index)
        except DamageError as error:
            index.damage.append(str(error))
            # What led here may have been wrong already, so look again from behind the last chunk's head.
            last = index.spans[-1].offset if index.spans else 0
            position = search.next(last + 1)
    return index


def _step(descriptor: int, position: int, size: int, index: Index) -> int | None:
    """Take in the record at `position`; return where the next one begins, None at the end of the data."""
    head = os.pread(descriptor, _HEAD_BYTES, position)
    if len(head) < RECORD.size:
        raise DamageError(f"cut off at byte {position}")
    opcode, length = RECORD.unpack_from(head)
    end: int = position + RECORD.size + length
    if opcode == Opcode.DATA_END:
        return None
    if end > size:
        raise DamageError(f"cut off at byte {position}")
    if opcode == Opcode.CHUNK:
        index.spans.append(container.span(position, head))
    elif opcode == Opcode.METADATA and length <= _MAX_METADATA_BYTES:
        _add_metadata(index, position, os.pread(descriptor, length, position + RECORD.size))
    elif opcode not in (Opcode.HEADER, Opcode.MESSAGE_INDEX, Opcode.SCHEMA, Opcode.CHANNEL):
        raise DamageError(f"unreadable at byte {position}")
    return end


class _Search:
    """Looks for sound chunks anywhere in a file.

    However many false heads a file may hold, no more than some times its size is read to tell them from
    true ones.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._budget = 4 * size + container.MAX_CHUNK_BYTES

    def next(self, start: int) -> int | None:
        """Return where the first sound chunk at or after `start` begins, None if there is none."""
        for window in range(start, self._size, _WINDOW_BYTES):
            data = os.pread(self._descriptor, _WINDOW_BYTES + _HEAD_BYTES, window)
            self._budget -= len(data)
            for match in _CHUNK_HEAD.finditer(data):
                place = match.start()
                if place < _WINDOW_BYTES and self._is_sound(
                    window + place, data[place : place + _HEAD_BYTES]
                ):
                    return window + place
                if self._budget < 0:
                    return None
        return None

    def _is_sound(self, offset: int, head: bytes) -> bool:
        try:
            span = container.span(offset, head)
            self._budget -= span.length
            container.unpack(span, os.pread(self._descriptor, span.length, offset))
        except DamageError:
            return False
        return True


def _add_metadata(index: Index, offset: int, content: bytes) -> None:
    try:
        record = records.Metadata.read(ReadDataStream(io.BytesIO(content)))
        text = record.metadata["json"]
        if record.metadata != container.metadata(record.name, text):
            raise ValueError("its checksum does not fit")
        index.metadata[record.name] = json.loads(text)
    except (*_BROKEN, RecursionError):
        index.damage.append(f"damaged metadata at byte {offset}")
