"""Find the chunks of an MCAP file: by its index if that covers every byte, else record by record.

Rules. `load` reads by offset from an open descriptor and changes neither its position nor the file. An index
need not list all that a file holds: records outside chunks, attachments and private records may be missing.
So the index alone is used only if the parts that it lists are contiguous from the header to the end of the
data, as `writer` writes them. Else the file is walked record by record; where a record is damaged, the walk
continues at the next chunk whose checksum is right, and `Index.damage` reports the gap.
"""

import io
import json
import os
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mcap import records
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode

from perception.session.file import container
from perception.session.file.chunk_search import HEAD_BYTES, ChunkSearch
from perception.session.file.container import MAGIC, MESSAGE, RECORD, DamageError, Declarations, Span

_FOOTER: Final = struct.Struct("<BQQQI")
_DATA_END_BYTES: Final = RECORD.size + 4
_CHUNK_INDEX: Final = struct.Struct("<QQQQI")
_CHUNK_INDEX_REST: Final = struct.Struct("<Q")
_MAX_SUMMARY_BYTES: Final = 256 << 20
_MAX_METADATA_BYTES: Final = 16 << 20
_LOOSE_BYTES: Final = 4 << 20
"""Records outside chunks are read in spans of about this size."""
_BROKEN: Final = (struct.error, ValueError, KeyError, EndOfFile)
_PASSED_OVER: Final = frozenset(Opcode) - {Opcode.CHUNK, Opcode.METADATA, Opcode.MESSAGE, Opcode.FOOTER}
"""Only schemas and channels of these are used."""

_ATTACHMENT: Final = ("attachment", "attachments")
_UNKNOWN: Final = ("record of unknown kind", "records of unknown kind")


@dataclass(slots=True)
class Index:
    """Chunks, declarations and metadata of a file."""

    spans: list[Span] = field(default_factory=list)
    known: Declarations = field(default_factory=Declarations)
    """Declarations outside chunks; a chunk may hold more."""
    counts: dict[int, int] | None = None
    """Messages by channel; None if the file must be read to count them."""
    metadata: dict[str, Any] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    closed: bool = True
    """Whether the file has its footer."""
    cut: Span | None = None
    """The chunk inside which the file ends."""
    passed_over: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Other records than messages and metadata; the key is the singular and plural of their name."""


@dataclass(slots=True)
class _Summary:
    """Content of the summary section."""

    start: int
    spans: list[Span] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    """Offset and length of each part listed."""
    known: Declarations = field(default_factory=Declarations)
    statistics: records.Statistics | None = None
    metadata: list[records.MetadataIndex] = field(default_factory=list)
    attachments: int = 0

    @property
    def counts(self) -> dict[int, int] | None:
        """Messages by channel, None if not stated."""
        if self.statistics is None:
            return None
        counts = self.statistics.channel_message_counts
        return counts if sum(counts.values()) == self.statistics.message_count else None


def load(descriptor: int) -> Index:
    """Return the index of an open file; DamageError if the file is not MCAP."""
    size = os.fstat(descriptor).st_size
    summary = _summary(descriptor, size)
    if summary is not None and _accounts_for_all(descriptor, summary):
        index = Index(summary.spans, summary.known, summary.counts)
        for entry in summary.metadata:
            length = min(entry.length, _MAX_METADATA_BYTES)
            _add_metadata(index, entry.offset, os.pread(descriptor, length, entry.offset)[RECORD.size :])
        if summary.attachments:
            index.passed_over[_ATTACHMENT] = summary.attachments
        return index
    if os.pread(descriptor, len(MAGIC), 0) != MAGIC and ChunkSearch(descriptor, size).next(0) is None:
        raise DamageError("not an MCAP file")
    return _with_summary(_Walk(descriptor, size).index, summary)


def _summary(descriptor: int, size: int) -> _Summary | None:
    """Return the summary section, None if there is none or its checksum does not match."""
    end = size - len(MAGIC) - _FOOTER.size
    if end < 0:
        return None
    tail = os.pread(descriptor, size - end, end)
    opcode, length, start, _, crc = _FOOTER.unpack_from(tail)
    if opcode != Opcode.FOOTER or length != _FOOTER.size - RECORD.size or tail[_FOOTER.size :] != MAGIC:
        return None
    if not (start and end - _MAX_SUMMARY_BYTES <= start <= end):
        return None
    content = os.pread(descriptor, end - start, start)
    # By the specification a checksum of 0 means none.
    if crc and zlib.crc32(content + tail[: _FOOTER.size - 4]) != crc:
        return None
    try:
        return _parsed(memoryview(content), start)
    except _BROKEN:
        return None


def _parsed(content: memoryview, start: int) -> _Summary:
    summary = _Summary(start)
    for opcode, data in container.contents(content):
        if opcode == Opcode.CHUNK_INDEX:  # the most frequent record: two per second
            span, length = _indexed(data)
            summary.spans.append(span)
            summary.extents.append((span.offset, span.length + length))
        elif opcode == Opcode.STATISTICS:
            summary.statistics = records.Statistics.read(ReadDataStream(io.BytesIO(data)))
        elif opcode == Opcode.METADATA_INDEX:
            entry = records.MetadataIndex.read(ReadDataStream(io.BytesIO(data)))
            summary.metadata.append(entry)
            summary.extents.append((entry.offset, entry.length))
        elif opcode == Opcode.ATTACHMENT_INDEX:
            attachment = records.AttachmentIndex.read(ReadDataStream(io.BytesIO(data)))
            summary.attachments += 1
            summary.extents.append((attachment.offset, attachment.length))
        else:
            summary.known.take(opcode, data)
    return summary


def _indexed(content: memoryview) -> tuple[Span, int]:
    """Return the span of a chunk index record, and the length of the message indexes after the chunk."""
    start_ns, end_ns, offset, length, size = _CHUNK_INDEX.unpack_from(content)
    offsets = content[_CHUNK_INDEX.size : _CHUNK_INDEX.size + size]
    channels = frozenset(number for number, _ in struct.iter_unpack("<HQ", offsets))
    (index_length,) = _CHUNK_INDEX_REST.unpack_from(content, _CHUNK_INDEX.size + size)
    # Without message indexes the list of channels is empty even if the chunk holds messages.
    return Span(offset, length, start_ns, end_ns, channels or None), index_length


def _accounts_for_all(descriptor: int, summary: _Summary) -> bool:
    """Return whether the listed parts cover the data from the header to its end without a gap."""
    head = os.pread(descriptor, RECORD.size, len(MAGIC))
    if len(head) < RECORD.size or head[0] != Opcode.HEADER or summary.counts is None:
        return False
    position: int = len(MAGIC) + RECORD.size + RECORD.unpack(head)[1]
    for offset, length in sorted(summary.extents):
        if offset != position:
            return False
        position += length
    return position + _DATA_END_BYTES == summary.start


def _with_summary(index: Index, summary: _Summary | None) -> Index:
    """Add to the index of a walk what only the summary lists."""
    if summary is None:
        return index
    listed = {span.offset: span for span in summary.spans}
    index.spans = [listed.get(span.offset, span) for span in index.spans]
    index.known.schemas = summary.known.schemas | index.known.schemas
    index.known.channels = summary.known.channels | index.known.channels
    if lost := len(listed.keys() - {span.offset for span in index.spans}):
        index.damage.append(f"{lost} chunks are in its index only")
    if not index.damage:
        index.counts = summary.counts
    return index


class _Walk:
    """Walks from record to record; after damage, on to the next chunk whose checksum is right."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._search = ChunkSearch(descriptor, size)
        self.index = Index(closed=False)
        position: int | None = len(MAGIC)
        while position is not None and position < size:
            try:
                position = self._step(position)
            except DamageError as error:
                self.index.damage.append(str(error))
                # The length that led here may be wrong: search again from behind the head of the last chunk.
                chunks = [span.offset for span in self.index.spans if not span.loose]
                position = self._search.next(chunks[-1] + 1 if chunks else 1)

    def _step(self, position: int) -> int | None:
        """Process the record at `position`; return the offset of the next one, None at the end."""
        head = os.pread(self._descriptor, HEAD_BYTES, position)
        if len(head) < RECORD.size:
            raise DamageError(f"cut off at byte {position}")
        opcode, length = RECORD.unpack_from(head)
        end: int = position + RECORD.size + length
        if end > self._size:
            if opcode == Opcode.CHUNK and len(head) == HEAD_BYTES:
                found = container.span(position, head)
                self.index.cut = replace(found, length=self._size - position, cut=True)
            raise DamageError(f"cut off at byte {position}")
        if opcode == Opcode.FOOTER:
            self.index.closed = os.pread(self._descriptor, len(MAGIC), end) == MAGIC
            return None
        if opcode == Opcode.CHUNK:
            self.index.spans.append(container.span(position, head))
        elif opcode == Opcode.MESSAGE:
            self._add_loose(position, end, head)
        elif opcode == Opcode.METADATA:
            _add_metadata(self.index, position, self._content(position, min(length, _MAX_METADATA_BYTES)))
        elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
            self._declare(opcode, position, length)
        else:
            self._pass_over(opcode, position, head)
        return end

    def _content(self, position: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, position + RECORD.size)

    def _declare(self, opcode: int, position: int, length: int) -> None:
        try:
            self.index.known.take(opcode, memoryview(self._content(position, length)))
        except _BROKEN as error:
            raise DamageError(f"damaged declaration at byte {position}") from error

    def _add_loose(self, position: int, end: int, head: bytes) -> None:
        """Add a message outside any chunk to the span of those directly before it, or to a new span."""
        if len(head) < RECORD.size + MESSAGE.size:
            raise DamageError(f"cut off at byte {position}")
        time_ns = MESSAGE.unpack_from(head, RECORD.size)[2]
        spans = self.index.spans
        last = spans[-1] if spans else None
        joins = last is not None and last.loose and last.offset + last.length == position
        if last is not None and joins and last.length < _LOOSE_BYTES:
            start_ns, end_ns = min(last.start_ns, time_ns), max(last.end_ns, time_ns)
            spans[-1] = Span(last.offset, end - last.offset, start_ns, end_ns, loose=True)
        else:
            spans.append(Span(position, end - position, time_ns, time_ns, loose=True))

    def _pass_over(self, opcode: int, position: int, head: bytes) -> None:
        """Skip a record that is not used; DamageError if only its opcode is damaged and it is a chunk."""
        if opcode == 0:
            raise DamageError(f"unreadable at byte {position}")
        if opcode == Opcode.ATTACHMENT:
            self.index.passed_over[_ATTACHMENT] += 1
        elif opcode not in _PASSED_OVER:
            if self._search.is_intact(position, bytes([Opcode.CHUNK]) + head[1:]):
                raise DamageError(f"unreadable at byte {position}")
            self.index.passed_over[_UNKNOWN] += 1


def _add_metadata(index: Index, offset: int, content: bytes) -> None:
    try:
        record = records.Metadata.read(ReadDataStream(io.BytesIO(content)))
        if not {"json", "crc32"} & record.metadata.keys():
            index.metadata[record.name] = record.metadata  # written by another program
            return
        text = record.metadata["json"]
        if record.metadata != container.metadata(record.name, text):
            raise ValueError("its checksum does not match")
        index.metadata[record.name] = json.loads(text)
    except (*_BROKEN, RecursionError):
        index.damage.append(f"damaged metadata at byte {offset}")
