"""The parts of MCAP that sessions are made of: chunks that can be read alone, each under its checksum.

Every chunk repeats the schemas and channels of its messages, so that nothing outside it can change what
they mean. Nothing is allocated before its size has been checked. Format: https://mcap.dev/spec
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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
MAX_CHUNK_BYTES: Final = 160 << 20
"""Holds the largest message that the bus lets through after whatever else a chunk has by then."""
MAX_RECORD_BYTES: Final = MAX_CHUNK_BYTES + RECORD.size + CHUNK.size + 16


class DamageError(Exception):
    """Bytes that are not what was written; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a chunk stands in the file, and what it says of itself."""

    offset: int
    length: int
    """Of the whole record, its opcode and length included."""
    start_ns: int
    end_ns: int
    channels: frozenset[int] | None = None
    """Whose messages it holds, None if not known without reading it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One recorded message as it lies in the file."""

    channel: Channel
    schema: Schema
    log_time_ns: int
    publish_time_ns: int
    sequence: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk record as it is written: what stands before its records, and these, compressed."""

    head: bytes
    body: bytes | bytearray


def metadata(name: str, text: str) -> dict[str, str]:
    """Return what a metadata record of that name holds: JSON, under a checksum, which MCAP has none for."""
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
    """Return what the head of the chunk record at `offset` says; DamageError if it cannot be so."""
    try:
        opcode, length = RECORD.unpack_from(head)
        start_ns, end_ns = CHUNK.unpack_from(head, RECORD.size)[:2]
    except struct.error as error:
        raise DamageError(f"cut off at byte {offset}") from error
    if opcode != Opcode.CHUNK or length + RECORD.size > MAX_RECORD_BYTES or start_ns > end_ns:
        raise DamageError(f"damaged chunk at byte {offset}")
    return Span(offset, length + RECORD.size, start_ns, end_ns)


def unpack(at: Span, data: bytes) -> list[Record]:
    """Return the messages of a chunk record, in order; DamageError if one bit of it differs."""
    if len(data) != at.length:
        raise DamageError(f"cut off in the chunk at byte {at.offset}")
    try:
        records = list(_records(_body(memoryview(data)[RECORD.size :])))
    except (struct.error, ValueError, KeyError, EndOfFile) as error:
        raise DamageError(f"damaged chunk at byte {at.offset}: {error}") from error
    times = [record.log_time_ns for record in records]
    if not times or (times[0], times[-1]) != (at.start_ns, at.end_ns) or times != sorted(times):
        raise DamageError(f"damaged chunk at byte {at.offset}: its times do not fit its messages")
    return records


def _body(data: memoryview) -> memoryview:
    _, _, size, crc, name_length = CHUNK.unpack_from(data)
    start = CHUNK.size + min(name_length, len("zstd"))
    compression = bytes(data[CHUNK.size : start]).decode("ascii")
    (stored,) = struct.unpack_from("<Q", data, start)
    if stored != len(data) - start - 8 or size > MAX_CHUNK_BYTES:
        raise ValueError("its sizes do not agree")
    body = memoryview(_decompress(compression, data[start + 8 :], size))
    if len(body) != size or zlib.crc32(body) != crc:
        raise ValueError("its checksum does not fit")
    return body


def _records(body: memoryview) -> Iterator[Record]:
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    position = 0
    while position < len(body):
        opcode, length = RECORD.unpack_from(body, position)
        position += RECORD.size
        content = body[position : position + length]
        if len(content) != length:
            raise ValueError("a record is cut short")
        position += length
        if opcode == Opcode.MESSAGE:
            number, sequence, log_ns, publish_ns = MESSAGE.unpack_from(content)
            channel = channels[number]
            data = content[MESSAGE.size :]
            yield Record(channel, schemas[channel.schema_id], log_ns, publish_ns, sequence, data)
        elif opcode == Opcode.CHANNEL:
            channel = Channel.read(ReadDataStream(io.BytesIO(content)))
            channels[channel.id] = channel
        elif opcode == Opcode.SCHEMA:
            schema = Schema.read(ReadDataStream(io.BytesIO(content)))
            schemas[schema.id] = schema


def _compress(compression: str, data: bytearray) -> bytes | bytearray:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(data)
    return bytes(lz4.frame.compress(data)) if compression == "lz4" else data


def _decompress(compression: str, data: memoryview, size: int) -> bytes | memoryview:
    """Return at most `size` bytes, whatever `data` promises of itself."""
    try:
        if compression == "zstd":
            return zstandard.ZstdDecompressor().stream_reader(data).read(size)
        if compression == "lz4":
            return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size))
    except (zstandard.ZstdError, RuntimeError, EOFError) as error:
        raise ValueError("it cannot be decompressed") from error
    if compression:
        raise ValueError("its compression is unknown")
    return data
