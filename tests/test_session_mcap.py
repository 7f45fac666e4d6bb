"""Every valid MCAP file is read, also if another program rewrote it: equal to the original session."""

import itertools
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from click.testing import CliRunner
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Channel, DataEnd, Footer, McapRecord
from mcap.records import Header as FileHeader
from mcap.records import Message as Recorded
from mcap.writer import MCAP0_MAGIC, CompressionType, IndexType

from perception.cli.session import session as commands
from perception.errors import SessionError
from perception.messages import Header, Message
from perception.session import Session, SessionWriter
from perception.session.edit import repair, trim
from perception.session.file import container
from perception.session.info import info
from tests import streams
from tests.rewriting import Triple, rewritten, taken_apart

Row = tuple[str, Header, bytes, int]
PROFILE: Final = {"domain": "d"}
WRITERS: Final[dict[str, dict[str, Any]]] = {
    "unchunked": {"use_chunking": False},
    "unchunked and without index": {"use_chunking": False, "index_types": IndexType.NONE},
    "no compression": {"compression": CompressionType.NONE},
    "lz4": {"compression": CompressionType.LZ4},
    "small chunks": {"chunk_size": 2000},
    "one chunk": {"chunk_size": 1 << 30},
    "declared in the first chunk only": {"repeat_channels": False, "repeat_schemas": False},
    "no indexes": {"index_types": IndexType.NONE},
    "no message indexes": {"index_types": IndexType.CHUNK | IndexType.METADATA},
    "no statistics": {"use_statistics": False},
    "no checksums": {"enable_crcs": False},
    "nothing but chunks": {
        "index_types": IndexType.NONE,
        "repeat_channels": False,
        "repeat_schemas": False,
        "use_statistics": False,
        "use_summary_offsets": False,
    },
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcap") / "s.mcap"
    sources = [streams.camera_stream(2), streams.microphone_stream(2), streams.text_stream(2)]
    with SessionWriter(path) as writer:
        writer.add_metadata("profile", PROFILE)
        for message in streams.arrivals(sources, lambda message: 0):
            writer.write(message)
    return path


def content(message: Message[Header]) -> Row:
    return message.topic, message.header, bytes(message.payload), message.received_ns


def rows(path: Path) -> list[Row]:
    """What a file holds, which must be sound."""
    with Session(path) as opened:
        found = [content(message) for message in opened.messages()]
        assert opened.damage == []
        assert opened.closed_properly
    return found


@pytest.mark.parametrize("options", WRITERS.values(), ids=WRITERS.keys())
def test_a_session_that_another_writer_wrote_anew_is_the_same(
    session: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = rewritten(session, tmp_path / "r.mcap", **options)
    assert rows(path) == rows(session)
    with Session(path) as copy, Session(session) as original:
        assert (copy.counts, copy.times_ns) == (original.counts, original.times_ns)
        assert copy.metadata == {"profile": PROFILE, "of another program": {"key": "value"}}
        assert [content(one) for one in copy.messages(["text/*"])] == [
            content(one) for one in original.messages(["text/*"])
        ]
    assert "beside messages: 1 attachment" in "\n".join(info(path).lines())


@pytest.mark.parametrize("chunked", [True, False])
def test_messages_in_any_order_come_by_their_log_times(session: Path, tmp_path: Path, chunked: bool) -> None:
    orders: list[Callable[[Triple], Any]] = [
        lambda one: (one[1].topic, one[2].log_time),  # every topic by itself: all chunks overlap
        lambda one: -one[2].log_time,
        lambda one: hash((one[2].log_time * 2654435761) % 4093),
    ]
    for number, order in enumerate(orders):
        path = tmp_path / f"{number}.mcap"
        assert rows(rewritten(session, path, order, chunk_size=2000, use_chunking=chunked)) == rows(session)


def test_chunks_that_all_overlap_are_read_in_bounded_memory(session: Path, tmp_path: Path) -> None:
    path = rewritten(session, tmp_path / "r.mcap", lambda one: hash(one[2].log_time % 997), chunk_size=2000)
    with Session(path, open_bytes=20_000) as opened:
        assert [content(message) for message in opened.messages()] == rows(session)


@pytest.mark.parametrize("kind", ["media", "webdataset", "rosbag2"])
def test_it_is_exported_and_printed_like_any_session(session: Path, tmp_path: Path, kind: str) -> None:
    path = rewritten(session, tmp_path / "r.mcap", use_chunking=False)
    outputs = []
    for number, file in enumerate((session, path)):
        target = tmp_path / str(number) / "out"
        result = CliRunner().invoke(commands, ["export", str(file), str(target), "--format", kind])
        assert result.exit_code == 0, result.output
        printed = CliRunner().invoke(commands, ["cat", str(file)]).output
        outputs.append((result.output, printed, sorted(one.name for one in target.iterdir())))
    assert outputs[0] == outputs[1]
    assert outputs[0][1].count("\n") == len(rows(session))


def test_a_copy_that_lost_the_metadata_of_its_channels_is_the_same(session: Path, tmp_path: Path) -> None:
    path = rewritten(session, tmp_path / "r.mcap", keep=False)
    assert rows(path) == rows(session)
    with Session(path) as copy, Session(session) as original:
        assert copy.counts == original.counts
    repair(path, tmp_path / "whole.mcap")
    assert rows(tmp_path / "whole.mcap") == rows(session)


def test_trim_repair_and_what_they_leave_out(session: Path, tmp_path: Path) -> None:
    path = rewritten(session, tmp_path / "r.mcap", use_chunking=False)
    copied = repair(path, tmp_path / "whole.mcap")
    assert rows(tmp_path / "whole.mcap") == rows(session)
    assert copied.left_out == ["1 attachment"]
    trim(path, tmp_path / "t.mcap", ["text/*"])
    assert {row[0] for row in rows(tmp_path / "t.mcap")} == {streams.TEXT}


class Assembly:
    """A file put together record by record."""

    def __init__(self) -> None:
        self.data = bytearray(MCAP0_MAGIC) + serialised(FileHeader("", "by hand"))

    def add(self, *parts: bytes | McapRecord) -> None:
        for part in parts:
            self.data += part if isinstance(part, bytes) else serialised(part)

    def write(self, path: Path, *summary: McapRecord) -> Path:
        self.add(DataEnd(0))
        start = len(self.data) if summary else 0
        self.add(*summary, Footer(start, 0, 0))
        path.write_bytes(self.data + MCAP0_MAGIC)
        return path


def serialised(record: McapRecord, padding: bytes = b"") -> bytes:
    builder = RecordBuilder()
    record.write(builder)
    data: bytes = builder.end()  # type: ignore[no-untyped-call]
    return data[:1] + struct.pack("<Q", len(data) - 9 + len(padding)) + data[9:] + padding


def chunk(
    records: Iterable[bytes | McapRecord],
    messages: Iterable[Recorded],
    compression: str = "",
    crc: bool = True,
) -> bytes:
    messages = list(messages)
    body = bytearray()
    for part in [*records, *messages]:
        body += part if isinstance(part, bytes) else serialised(part)
    times = [message.log_time for message in messages] or [0]
    made = container.pack(body, min(times), max(times), "")
    head, stored = made.head, bytes(made.body)
    if compression == "zstd":
        half = len(stored) // 2
        stored = zstandard.compress(stored[:half]) + zstandard.compress(stored[half:])
    elif compression == "lz4":
        half = len(stored) // 2
        stored = lz4.frame.compress(stored[:half]) + lz4.frame.compress(stored[half:])
    name = compression.encode()
    checksum = head[9 + 24 : 9 + 28] if crc else bytes(4)
    content = head[9 : 9 + 24] + checksum + struct.pack("<I", len(name)) + name
    content += struct.pack("<Q", len(stored)) + stored
    return bytes([Opcode.CHUNK]) + struct.pack("<Q", len(content)) + content


def split(triples: list[Triple], size: int = 50) -> list[list[Recorded]]:
    messages = [message for _, _, message in triples]
    return [messages[start : start + size] for start in range(0, len(messages), size)]


def declared(triples: list[Triple]) -> list[McapRecord]:
    schemas = {schema.id: schema for schema, _, _ in triples}
    channels = {channel.id: channel for _, channel, _ in triples}
    return [*schemas.values(), *channels.values()]


def test_declared_before_the_chunks(session: Path, tmp_path: Path) -> None:
    given, made = taken_apart(session), Assembly()
    made.add(*declared(given), *(chunk([], part) for part in split(given)))
    assert rows(made.write(tmp_path / "a.mcap")) == rows(session)


def test_declared_in_the_summary_only(session: Path, tmp_path: Path) -> None:
    given, made = taken_apart(session), Assembly()
    made.add(*(chunk([], part) for part in split(given)))
    assert rows(made.write(tmp_path / "a.mcap", *declared(given))) == rows(session)


def test_declared_in_another_chunk_without_a_summary(session: Path, tmp_path: Path) -> None:
    given, made = taken_apart(session), Assembly()
    made.add(chunk(declared(given), []), *(chunk([], part) for part in split(given)))
    assert rows(made.write(tmp_path / "a.mcap")) == rows(session)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_chunk_of_several_frames_without_a_checksum(
    session: Path, tmp_path: Path, compression: str
) -> None:
    given, made = taken_apart(session), Assembly()
    made.add(*(chunk(declared(given), part, compression, crc=False) for part in split(given)))
    assert rows(made.write(tmp_path / "a.mcap")) == rows(session)


def test_longer_records_and_unknown_ones_are_passed_over(session: Path, tmp_path: Path) -> None:
    given, made = taken_apart(session), Assembly()
    private = b"\x91" + struct.pack("<Q", 5) + b"\x06\0\0\0\0"
    future = b"\x44" + struct.pack("<Q", 3) + b"abc"
    longer = [serialised(record, b"more") for record in declared(given)]
    made.add(private, *longer, future)
    for number, part in enumerate(split(given)):
        made.add(chunk([future, *longer], part) if number % 2 else future, private)
        if number % 2 == 0:
            made.add(*part)
    path = made.write(tmp_path / "a.mcap")
    assert rows(path) == rows(session)
    assert "records of unknown kind" in "\n".join(info(path).lines())


def test_messages_inside_and_outside_of_chunks(session: Path, tmp_path: Path) -> None:
    """An index that does not speak of all is not believed to."""
    given, made = taken_apart(session), Assembly()
    made.add(*declared(given))
    for number, part in enumerate(split(given, 20)):
        made.add(*([chunk([], part)] if number % 2 else part))
    assert rows(made.write(tmp_path / "a.mcap")) == rows(session)


def test_an_unknown_compression_is_named_and_costs_its_chunk(session: Path, tmp_path: Path) -> None:
    given, made = taken_apart(session), Assembly()
    first, *others = split(given)
    made.add(*declared(given), chunk([], first, "brotli"), *(chunk([], part) for part in others))
    with Session(made.write(tmp_path / "a.mcap")) as opened:
        assert [content(one) for one in opened.messages()] == rows(session)[len(first) :]
        (damage,) = opened.damage
    assert "compression 'brotli' is unknown" in damage


def test_a_channel_that_is_declared_nowhere_costs_its_messages(session: Path, tmp_path: Path) -> None:
    given, made = taken_apart(session), Assembly()
    lost = next(channel.id for _, channel, _ in given if channel.topic == streams.CAMERA)
    kept = [one for one in declared(given) if not (isinstance(one, Channel) and one.id == lost)]
    made.add(*kept, *(chunk([], part) for part in split(given)))
    with Session(made.write(tmp_path / "a.mcap")) as opened:
        found = [content(one) for one in opened.messages()]
        assert opened.damage == [f"messages of channel {lost}, which is declared nowhere"]
    assert found == [row for row in rows(session) if row[0] != streams.CAMERA]


@pytest.mark.parametrize("options", [{"use_chunking": False}, {"chunk_size": 2000}])
def test_cut_anywhere_a_foreign_file_gives_what_is_left(
    session: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    data = rewritten(session, tmp_path / "r.mcap", **options).read_bytes()
    known, path = rows(session), tmp_path / "c.mcap"
    sizes = []
    for size in range(1, len(data), 9973):
        path.write_bytes(data[:size])
        try:
            with Session(path) as opened:
                found = [content(message) for message in opened.messages()]
                assert opened.damage or not opened.closed_properly
        except SessionError:
            continue
        assert found == known[: len(found)]
        sizes.append(len(found))
    assert all(one <= other for one, other in itertools.pairwise(sizes))
    assert sizes[-1] > 0.9 * len(known) - 100


def test_our_own_layout_is_opened_without_a_walk(session: Path, tmp_path: Path) -> None:
    """The first record of a chunk is never read before it is wanted: overwritten, the index opens still."""
    data = bytearray(session.read_bytes())
    with session.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    for entry in summary.chunk_indexes:
        start = entry.chunk_start_offset
        data[start : start + entry.chunk_length] = bytes(entry.chunk_length)
    (tmp_path / "z.mcap").write_bytes(data)
    with Session(tmp_path / "z.mcap") as opened, Session(session) as original:
        assert (opened.counts, opened.times_ns) == (original.counts, original.times_ns)
