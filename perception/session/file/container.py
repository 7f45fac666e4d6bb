"""Pack and unpack the chunks of an MCAP file, each under its checksum.

Rules. All functions are pure: bytes in, records out, callable from any thread. Each chunk that `writer` packs
repeats the schemas and channels of its messages, so that it is readable alone and no damage outside it
changes its meaning. Other writers declare them once, anywhere before, or only in the summary; or write no
chunks. A size is checked before memory of that size is allocated. `span`, `unpack` and `declarations` raise
DamageError with the offset. Format: https://mcap.dev/spec
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode
from mcap.records import Channel, Schema
from mcap.writer import MCAP0_MAGIC

MAGIC: Final = MCAP0_MAGIC
RECORD: Final = struct.Struct("<BQ")
"""Opcode and length, before every record."""
MESSAGE: Final = struct.Struct("<HIQQ")
"""Channel, sequence, log time, publish time, before the data of every message."""
CHUNK: Final = struct.Struct("<QQQII")
"""First and last log time, size, checksum, length of the compression's name."""
MAX_CHUNK_BYTES: Final = 1 << 30
"""Uncompressed. Those of `writer` stay below 160 MiB; other writers may use any size."""
MAX_RECORD_BYTES: Final = MAX_CHUNK_BYTES + (1 << 20)
_LONGEST_NAME: Final = 32
_NO_SCHEMA: Final = Schema(id=0, name="", encoding="", data=b"")
"""Schema of a channel that refers to number 0."""


class DamageError(Exception):
    """Bytes that differ from what was written; the text names offset and reason."""


@dataclass(frozen=True, slots=True)
class Span:
    """Place, times and channels of a chunk, or of consecutive records outside any chunk."""

    offset: int
    length: int
    """Of the whole record, its opcode and length included."""
    start_ns: int
    end_ns: int
    channels: frozenset[int] | None = None
    """Channels whose messages it holds; None if only reading it shows them."""
    loose: bool = False
    """Whether these are consecutive records outside any chunk."""
    cut: bool = False
    """Whether the file ends inside it: its records then have no valid checksum."""


@dataclass(slots=True)
class Declarations:
    """Schemas and channels by number."""

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)

    def take(self, opcode: int, content: memoryview) -> None:
        """Add a record if it declares a schema or channel."""
        if opcode == Opcode.CHANNEL:
            channel = Channel.read(ReadDataStream(io.BytesIO(content)))
            self.channels[channel.id] = channel
        elif opcode == Opcode.SCHEMA:
            schema = Schema.read(ReadDataStream(io.BytesIO(content)))
            self.schemas[schema.id] = schema

    def copy(self) -> "Declarations":
        """Return a copy."""
        return Declarations(dict(self.schemas), dict(self.channels))


@dataclass(frozen=True, slots=True)
class Record:
    """One recorded message, not decoded."""

    channel: Channel
    schema: Schema
    log_time_ns: int
    publish_time_ns: int
    sequence: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk record as written: the bytes before its records, and the compressed records."""

    head: bytes
    body: bytes | bytearray


def metadata(name: str, text: str) -> dict[str, str]:
    """Return the content of a metadata record: JSON and its checksum, since MCAP has none for metadata."""
    return {"json": text, "crc32": str(zlib.crc32(f"{name}\n{text}".encode()))}


def pack(body: bytearray, start_ns: int, end_ns: int, compression: str) -> Chunk:
    """Return a chunk that holds the records `body`."""
    stored = _compress(compression, body)
    name = compression.encode()
    head = (
        CHUNK.pack(start_ns, end_ns, len(body), zlib.crc32(body), len(name))
        + name
        + struct.pack("<Q", len(stored))
    )
    return Chunk(RECORD.pack(Opcode.CHUNK, len(head) + len(stored)) + head, stored)


def span(offset: int, head: bytes) -> Span:
    """Return the span of the chunk record at `offset` from its head; DamageError if the head is invalid."""
    try:
        opcode, length = RECORD.unpack_from(head)
        start_ns, end_ns = CHUNK.unpack_from(head, RECORD.size)[:2]
    except struct.error as error:
        raise DamageError(f"cut off at byte {offset}") from error
    if opcode != Opcode.CHUNK or length + RECORD.size > MAX_RECORD_BYTES or start_ns > end_ns:
        raise DamageError(f"damaged chunk at byte {offset}")
    return Span(offset, length + RECORD.size, start_ns, end_ns)


def unpack(at: Span, data: bytes, known: Declarations, missing: set[int]) -> list[Record]:
    """Return the messages of a span in order of log time; DamageError if a bit of it is wrong.

    Args:
        at: the span.
        data: its bytes.
        known: what is declared outside the span; declarations in the span come first.
        missing: receives the channels that are not declared; their messages are left out.
    """
    with _damage(at, data):
        body = _body(at, data)
        declared, records = known.copy(), []
        start_ns, end_ns = 1 << 64, -1
        for opcode, content in contents(body, cut=at.cut):
            if opcode != Opcode.MESSAGE:
                declared.take(opcode, content)
                continue
            number, sequence, log_ns, publish_ns = MESSAGE.unpack_from(content)
            start_ns, end_ns = min(start_ns, log_ns), max(end_ns, log_ns)
            channel = declared.channels.get(number)
            schema = _NO_SCHEMA if channel is None else _schema_of(channel, declared)
            if channel is None or schema is None:
                missing.add(number)
                continue
            records.append(Record(channel, schema, log_ns, publish_ns, sequence, content[MESSAGE.size :]))
        if end_ns >= 0 and (start_ns, end_ns) != (at.start_ns, at.end_ns) and not at.cut:
            raise ValueError("its times do not match its messages")
    records.sort(key=lambda record: record.log_time_ns)
    return records


def declarations(at: Span, data: bytes) -> Declarations:
    """Return the declarations in a span; DamageError as of `unpack`."""
    declared = Declarations()
    with _damage(at, data):
        for opcode, content in contents(_body(at, data), cut=at.cut):
            declared.take(opcode, content)
    return declared


def contents(data: memoryview, cut: bool = False) -> Iterator[tuple[int, memoryview]]:
    """Yield opcode and content of the records in `data`.

    A record that is cut short raises ValueError or struct.error; with `cut` it ends the iteration.
    """
    position = 0
    while position < len(data):
        if cut and len(data) - position < RECORD.size:
            return
        opcode, length = RECORD.unpack_from(data, position)
        position += RECORD.size
        if length > len(data) - position:
            if cut:
                return
            raise ValueError("a record is cut short")
        yield opcode, data[position : position + length]
        position += length


@contextmanager
def _damage(at: Span, data: bytes) -> Iterator[None]:
    kind = "records" if at.loose else "chunk"
    if len(data) != at.length:
        raise DamageError(f"cut off in the {kind} at byte {at.offset}")
    try:
        yield
    except (struct.error, ValueError, KeyError, EndOfFile) as error:
        raise DamageError(f"damaged {kind} at byte {at.offset}: {error}") from error


def _schema_of(channel: Channel, declared: Declarations) -> Schema | None:
    return declared.schemas.get(channel.schema_id) if channel.schema_id else _NO_SCHEMA


def _body(at: Span, record: bytes) -> memoryview:
    """Return the records of a span, uncompressed."""
    if at.loose:
        return memoryview(record)
    data = memoryview(record)[RECORD.size :]
    _, _, size, crc, name_length = CHUNK.unpack_from(data)
    start = CHUNK.size + min(name_length, _LONGEST_NAME)
    compression = bytes(data[CHUNK.size : start]).decode("ascii")
    (stored,) = struct.unpack_from("<Q", data, start)
    if stored > len(data) - start - 8 and not at.cut:
        raise ValueError("its sizes do not agree")
    if size > MAX_CHUNK_BYTES:
        raise ValueError(f"{size} bytes in one chunk, more than {MAX_CHUNK_BYTES}")
    body = memoryview(_decompress(compression, data[start + 8 : start + 8 + stored], size))
    # By the specification a checksum of 0 means none.
    if not at.cut and (len(body) != size or (crc and zlib.crc32(body) != crc)):
        raise ValueError("its checksum does not match")
    return body


def _compress(compression: str, data: bytearray) -> bytes | bytearray:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(data)
    return bytes(lz4.frame.compress(data)) if compression == "lz4" else data


def _decompress(compression: str, data: memoryview, size: int) -> bytes | memoryview:
    """Return at most `size` decompressed bytes, whatever size `data` declares."""
    try:
        if compression == "zstd":
            reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
            return reader.read(size)
        if compression == "lz4":
            return _lz4(data, size)
    except (zstandard.ZstdError, RuntimeError, EOFError) as error:
        raise ValueError("it cannot be decompressed") from error
    if compression:
        raise ValueError(f"its compression '{compression}' is unknown")
    return data


def _lz4(data: memoryview, size: int) -> bytes:
    """Return the content of one LZ4 frame or of several consecutive ones."""
    parts: list[bytes] = []
    rest: bytes | memoryview | None = data
    while rest and (left := size - sum(map(len, parts))) > 0:
        decompressor = lz4.frame.LZ4FrameDecompressor()
        parts.append(bytes(decompressor.decompress(rest, max_length=left)))
        rest = decompressor.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)
