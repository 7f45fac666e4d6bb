"""A session keeps every message byte for byte, in order, in one file that viewers understand."""

import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader
from msgspec import structs

from perception.bus import codec
from perception.bus.schema import golden_vectors
from perception.errors import SessionError
from perception.messages import (
    AudioBlock,
    CameraFrame,
    ClockTick,
    FusedState,
    Header,
    Label,
    Message,
    TextCommand,
    checked,
)
from perception.session import Session, SessionWriter, read
from perception.session.file import protobuf, schemas
from perception.units import SECOND_NS
from tests import streams

STEP_NS = 7_000_000


def scene() -> list[Message[Header]]:
    """Three seconds of camera, sound and text as they would arrive."""
    sources = [streams.camera_stream(3), streams.microphone_stream(3), streams.text_stream(3)]
    return streams.arrivals(sources, lambda message: 0)


def jpeg(seq: int, size: int = 1000, topic: str = "camera/front") -> Message[Header]:
    header = CameraFrame(
        stamp_ns=streams.START_NS + seq * STEP_NS, seq=seq, width=8, height=8, encoding="jpeg", source="c#1"
    )
    return Message(topic, header, bytes([seq % 251]) * size, header.stamp_ns)


def write(path: Path, messages: list[Message[Header]]) -> Path:
    with SessionWriter(path) as writer:
        for message in messages:
            writer.write(message)
    return path


def content(message: Message[Header]) -> tuple[str, Header, bytes]:
    return message.topic, message.header, bytes(message.payload)


def test_what_is_read_is_what_was_written_in_the_same_order(tmp_path: Path) -> None:
    messages = scene()
    back = list(read(write(tmp_path / "s.mcap", messages)))
    assert list(map(content, back)) == list(map(content, messages))


def test_every_kind_of_message_comes_back_with_the_very_bytes_of_its_header(tmp_path: Path) -> None:
    sent = [[bytes.fromhex(part) for part in vector["parts"]] for vector in golden_vectors()]
    messages = [codec.decode(parts, received_ns=number) for number, parts in enumerate(sent, start=1)]
    back = list(read(write(tmp_path / "s.mcap", messages)))
    assert [message.wire for message in back] == [parts[1] for parts in sent]
    assert [bytes(message.payload) for message in back] == [b"".join(parts[2:]) for parts in sent]
    assert [message.received_ns for message in back] == list(range(1, len(sent) + 1))


def test_a_header_of_a_newer_or_foreign_writer_is_kept_as_it_came(tmp_path: Path) -> None:
    fields = {"later": [1, 2], "text": "hi", "stamp_ns": 5, "sent_ns": 6, "seq": 1, "source": "x"}
    message = codec.decode([b"text/say", msgpack.packb(fields)], received_ns=9)
    (back,) = read(write(tmp_path / "s.mcap", [message]))
    assert back.wire == msgpack.packb(fields)


def test_another_header_in_a_message_that_travelled_is_the_one_that_is_written(tmp_path: Path) -> None:
    packed = msgpack.packb({"text": "hi", "stamp_ns": 5})
    came = codec.decode([b"text/say", packed], received_ns=9)
    assert structs.replace(came, topic="text/other", received_ns=7).wire == packed, "its header is the same"
    changed = structs.replace(came, header=structs.replace(came.header, stamp_ns=6))
    assert changed.wire == b""
    (back,) = read(write(tmp_path / "s.mcap", [changed]))
    assert back == changed


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    stamp_ns=st.integers(0, 2**62),
    seq=st.integers(0, 2**62),
    source=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_any_text_survives(
    text: str, stamp_ns: int, seq: int, source: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header = TextCommand(stamp_ns=stamp_ns, seq=seq, source=source, text=text)
    path = tmp_path_factory.mktemp("s") / "s.mcap"
    (back,) = read(write(path, [Message("text/say", header)]))
    assert back.header == header


def test_messages_of_the_same_moment_keep_their_order_across_lanes(tmp_path: Path) -> None:
    same = [
        Message(message.topic, message.header, message.payload, 1000)
        for message in [
            jpeg(0),
            streams.text(0, 1, "a"),
            streams.frame(0, 1),
            jpeg(1),
            streams.text(1, 2, "b"),
        ]
    ]
    back = list(read(write(tmp_path / "s.mcap", same)))
    assert [message.topic for message in back] == [message.topic for message in same]
    assert [message.received_ns for message in back] == [1000, 1001, 1002, 1003, 1004]


def test_topics_and_times_select(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mcap", scene())
    start_ns = streams.START_NS + SECOND_NS
    chosen = list(read(path, ["camera/*", streams.MICROPHONE], start_ns, start_ns + 2 * SECOND_NS))
    assert {message.topic for message in chosen} == {streams.CAMERA, streams.MICROPHONE}
    assert all(start_ns <= message.received_ns < start_ns + 2 * SECOND_NS for message in chosen)
    assert sum(message.topic == streams.CAMERA for message in chosen) == 60


def test_frames_that_are_jpeg_are_not_compressed_again_and_the_rest_is(tmp_path: Path) -> None:
    raw = [streams.frame(seq, streams.START_NS + seq * STEP_NS) for seq in range(20)]
    messages = [*scene(), *(jpeg(seq) for seq in range(20)), *raw]
    path = write(tmp_path / "s.mcap", messages)
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    by_topic: dict[str, set[str]] = {}
    for chunk in summary.chunk_indexes:
        for number in chunk.message_index_offsets:
            name = summary.schemas[summary.channels[number].schema_id].name
            by_topic.setdefault(name, set()).add(chunk.compression)
    assert by_topic == {
        "foxglove.CompressedImage": {""},
        "foxglove.RawImage": {"lz4"},
        "foxglove.RawAudio": {"zstd"},
        "foxglove.Log": {"zstd"},
    }


def test_no_chunk_is_longer_than_half_a_second_or_much_larger_than_its_bound(tmp_path: Path) -> None:
    messages = [jpeg(seq, size=300_000) for seq in range(100)]
    path = write(tmp_path / "s.mcap", messages)
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    for chunk in summary.chunk_indexes:
        assert chunk.message_end_time - chunk.message_start_time < 500_000_000
        assert chunk.uncompressed_size < (4 << 20) + 301_000


def test_the_independent_reader_sees_times_and_numbers_of_the_wire(tmp_path: Path) -> None:
    header = ClockTick(stamp_ns=1, seq=2**40 + 5, sent_ns=77)
    path = write(tmp_path / "s.mcap", [Message("clock/fusion", header, b"", 99)])
    with path.open("rb") as file:
        ((schema, channel, message),) = make_reader(file, validate_crcs=True).iter_messages()
    assert schema is not None
    assert (schema.name, channel.topic) == ("perception.ClockTick", "clock/fusion")
    assert (message.log_time, message.publish_time, message.sequence) == (99, 77, 5)


def test_a_viewer_finds_the_picture_under_the_published_field_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mcap", [jpeg(3)])
    with path.open("rb") as file:
        ((_, _, message),) = make_reader(file).iter_messages()
    fields = dict(protobuf.fields(memoryview(message.data)))
    assert bytes(fields[2]) == jpeg(3).payload
    assert bytes(fields[3]) == b"jpeg"
    assert bytes(fields[4]) == b"front"


def test_boxes_of_a_state_are_drawn_for_viewers_and_passed_over_by_readers(tmp_path: Path) -> None:
    parts = next(vector["parts"] for vector in golden_vectors() if vector["topic"] == "state/fused")
    state = codec.decode([bytes.fromhex(part) for part in parts], received_ns=5)
    path = write(tmp_path / "s.mcap", [state])
    with path.open("rb") as file:
        seen = {
            channel.topic: schema.name
            for schema, channel, _ in make_reader(file).iter_messages()
            if schema is not None
        }
    assert seen == {
        "state/fused": "perception.FusedState",
        "annotations/camera/front": "foxglove.ImageAnnotations",
    }
    with Session(path) as session:
        assert list(map(content, session.messages())) == [content(state)]
        assert session.counts == {"state/fused": 1}
        assert not session.damage


def state_with(boxes: bool, tick: int) -> Message[Header]:
    parts = next(vector["parts"] for vector in golden_vectors() if vector["topic"] == "state/fused")
    header = codec.decode([bytes.fromhex(part) for part in parts], received_ns=0).header
    assert isinstance(header, FusedState)
    changed = {}
    for name, modality in header.modalities.items():
        branches = {
            key: branch if boxes else structs.replace(branch, boxes=())
            for key, branch in modality.branches.items()
        }
        changed[name] = structs.replace(modality, branches=branches)
    return Message("state/fused", structs.replace(header, modalities=changed, seq=tick), b"", 10 + tick)


def viewed(path: Path, topic: str, name: str) -> list[Any]:
    """What a viewer with Foxglove's published schema sees of a topic."""
    kind = getattr(import_module(f"foxglove_schemas_protobuf.{name}_pb2"), name)
    with path.open("rb") as file:
        return [kind.FromString(one.data) for _, _, one in make_reader(file).iter_messages([topic])]


def test_boxes_that_ended_are_cleared_once(tmp_path: Path) -> None:
    states = [state_with(boxes, tick) for tick, boxes in enumerate((False, True, True, False, False, True))]
    path = write(tmp_path / "s.mcap", states)
    seen = viewed(path, "annotations/camera/front", "ImageAnnotations")
    assert [len(one.points) > 0 for one in seen] == [True, True, False, True]
    assert all(one.timestamp.seconds for one in seen)


def test_a_viewer_plays_every_microphone_and_the_wire_stays_as_it_was(tmp_path: Path) -> None:
    floats = np.array([0.0, 0.5, -1.0, 1.0, 2.0, -3.0, np.nan, 1e-5], "<f4")
    whole = np.array([1, -2, 300, -32768], "<i2")
    blocks: list[Message[Header]] = []
    for seq, (kind, data) in enumerate((("f32", floats), ("s16", whole), ("f32", floats))):
        fields = {"stamp_ns": 7, "seq": seq, "sample_index": 0, "samples": len(data)}
        header = checked(AudioBlock, fields | {"rate_hz": 16_000, "channels": 1, "format": kind})
        blocks.append(Message("microphone/m", header, data.tobytes(), seq + 1))
    path = write(tmp_path / "s.mcap", blocks)
    assert list(map(content, read(path))) == list(map(content, blocks))
    as_whole = [0, 16384, -32768, 32767, 32767, -32768, 0, 0]
    for heard, samples in zip(
        viewed(path, "microphone/m", "RawAudio"), (as_whole, whole.tolist(), as_whole), strict=True
    ):
        assert (heard.format, heard.sample_rate, heard.number_of_channels) == ("pcm-s16", 16_000, 1)
        assert np.frombuffer(heard.data, "<i2").tolist() == samples


def test_messages_of_our_own_schemas_carry_a_timestamp(tmp_path: Path) -> None:
    descriptors = import_module("google.protobuf.descriptor_pb2").FileDescriptorSet
    factory = import_module("google.protobuf.message_factory")
    path = write(
        tmp_path / "s.mcap", [state_with(False, 0), Message("clock/c", ClockTick(stamp_ns=-5), b"", 9)]
    )
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert schema is not None
            files = descriptors.FromString(schema.data)
            kind = factory.GetMessages(files.file)[schema.name]
            stamp = kind.FromString(message.data).timestamp
            stamp_ns = stamp.seconds * 10**9 + stamp.nanos
            (header,) = [one.header for one in read(path, [channel.topic])]
            assert stamp_ns == header.stamp_ns


def test_metadata_comes_back(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        writer.add_metadata("profile", {"domain": "d", "camera": {"front": {"source": "ä"}}})
        writer.write(streams.text(0, 1, "x"))
        writer.add_metadata("end", 5)
    with Session(tmp_path / "s.mcap") as session:
        assert session.metadata == {
            "profile": {"domain": "d", "camera": {"front": {"source": "ä"}}},
            "end": 5,
        }


def test_an_empty_session_is_a_session(tmp_path: Path) -> None:
    SessionWriter(tmp_path / "s.mcap").close()
    with Session(tmp_path / "s.mcap") as session:
        assert (session.counts, session.times_ns, list(session.messages())) == ({}, None, [])


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "s.mcap").write_bytes(b"mine")
    with pytest.raises(SessionError, match="exists"):
        SessionWriter(tmp_path / "s.mcap")
    assert (tmp_path / "s.mcap").read_bytes() == b"mine"


def test_what_is_no_session_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no session at all, " * 1000)
    with pytest.raises(SessionError, match="not an MCAP file"):
        Session(tmp_path / "a.txt")
    with pytest.raises(SessionError, match="cannot open"):
        Session(tmp_path / "none.mcap")


def test_labels_and_negative_stamps_are_kept(tmp_path: Path) -> None:
    label = Label(stamp_ns=-5, start_ns=-5, end_ns=7, name="clap", sent_ns=-1)
    (back,) = read(write(tmp_path / "s.mcap", [Message("label/truth", label, b"", 3)]))
    assert back.header == label


def test_protobuf_that_is_cut_or_wrong_is_refused() -> None:
    whole = schemas.view("text/say", TextCommand(stamp_ns=1, text="hello")).encode(b"wire")
    assert bytes(dict(protobuf.fields(memoryview(whole)))[schemas.HEADER_FIELD]) == b"wire"
    for end in range(1, len(whole)):
        parsed = _try(whole[:end])
        assert parsed is None or schemas.HEADER_FIELD not in parsed
    for wrong in (b"\xff" * 20, b"\x0b", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(ValueError, match="protobuf"):
            list(protobuf.fields(memoryview(wrong)))


def _try(data: bytes) -> dict[int, memoryview] | None:
    try:
        return dict(protobuf.fields(memoryview(data)))
    except ValueError:
        return None


def test_reading_ends_early_without_reading_on(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mcap", scene())
    messages: Iterator[Message[Header]] = read(path)
    assert next(messages).topic == streams.CAMERA


def test_a_session_of_the_first_release_is_read_as_it_was_written() -> None:
    """`golden/session.mcap` holds the golden vectors and a block of floats; it is never rewritten."""
    path = Path(__file__).parent / "golden" / "session.mcap"
    with Session(path) as session:
        back = list(session.messages())
        assert (session.damage, session.closed_properly) == ([], True)
        assert session.metadata == {"profile": {"domain": "x"}}
    wire = b"".join((message.wire or b"") + bytes(message.payload) for message in back)
    assert (len(back), zlib.crc32(wire)) == (12, 1421492675)
    assert np.frombuffer(back[-1].payload, "<f4").tolist() == pytest.approx([0.1, -0.5, 1.5, -2.0])
