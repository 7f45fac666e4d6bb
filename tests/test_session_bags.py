"""What ROS and Foxglove recorded becomes a session: each message as what it is, or refused by name."""

import base64
import json
import sqlite3
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pytest
import zstandard
from click.testing import CliRunner
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from perception.cli.session import session
from perception.errors import SessionError
from perception.messages import AudioBlock, CameraFrame, TextCommand
from perception.session import Session, SessionWriter, read
from perception.session.convert import import_bag, incoming
from perception.session.convert import ros_messages as ros
from perception.session.convert.incoming import Sound, UnusableError
from tests import streams

IMAGE: Final = np.random.default_rng(1).integers(0, 255, (12, 16, 3), dtype=np.uint8)
JPEG: Final = cv2.imencode(".jpg", IMAGE)[1].tobytes()
START_S: Final = 1_700_000_000
SAMPLES: Final = np.arange(1600, dtype="<i2").tobytes()
Row = tuple[str, str, dict[str, Any]]


def foxglove_rows(encoding: str) -> list[Row]:
    """A second of camera, sound and log, as another program's recorder has them."""
    rows: list[Row] = []
    for number in range(10):
        stamp = {"seconds": START_S, "nanos": number * 10**8}
        raw = {"width": 16, "height": 12, "encoding": "rgb8", "step": 48, "data": IMAGE[:, :, ::-1].tobytes()}
        sound = {"data": SAMPLES, "format": "pcm-s16", "sample_rate": 16_000, "number_of_channels": 1}
        rows.append(
            ("/cam/compressed", "CompressedImage", {"timestamp": stamp, "data": JPEG, "format": "jpeg"})
        )
        rows.append(("/cam/raw", "RawImage", {"timestamp": stamp} | raw))
        rows.append(("/mic", "RawAudio", {"timestamp": stamp} | sound))
    rows.append(
        ("/log", "Log", {"timestamp": {"seconds": START_S, "nanos": 5}, "level": 2, "message": "come"})
    )
    rows.append(("/tf", "FrameTransform", {"timestamp": {"seconds": START_S, "nanos": 5}}))
    return rows


def foxglove_file(path: Path, encoding: str, rows: list[Row], broken: int | None = None) -> Path:
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        channels: dict[str, int] = {}
        for number, (topic, name, values) in enumerate(rows):
            if topic not in channels:
                schema = writer.register_schema(f"foxglove.{name}", "jsonschema", b"{}")
                channels[topic] = writer.register_channel(topic, encoding, schema)
            data = encoded(name, values, encoding) if number != broken else b"\x0a\xff\xff"
            writer.add_message(channels[topic], (START_S + 1) * 10**9 + number, data, 0)
        writer.finish()  # type: ignore[no-untyped-call]
    return path


def encoded(name: str, values: dict[str, Any], encoding: str) -> bytes:
    if encoding == "protobuf":
        kind = getattr(import_module(f"foxglove_schemas_protobuf.{name}_pb2"), name)
        data: bytes = kind(**values).SerializeToString()
        return data
    stamp = values["timestamp"]
    plain = values | {"timestamp": {"sec": stamp["seconds"], "nsec": stamp["nanos"]}}
    if "data" in values:
        plain["data"] = base64.b64encode(values["data"]).decode()
    return json.dumps(plain).encode()


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_foxglove_s_own_recordings_become_sessions(tmp_path: Path, encoding: str) -> None:
    path = foxglove_file(tmp_path / "f.MCAP", encoding, foxglove_rows(encoding))
    result = CliRunner().invoke(session, ["import", str(path), str(tmp_path / "s.mcap")])
    assert result.exit_code == 0, result.output
    assert f"/tf: left out: foxglove.FrameTransform ({encoding}) has no counterpart" in result.output
    messages = list(read(tmp_path / "s.mcap"))
    frames = [message for message in messages if isinstance(message.header, CameraFrame)]
    assert {bytes(one.payload) for one in frames if one.topic == "camera/cam"} == {JPEG}
    assert {bytes(one.payload) for one in frames if one.topic == "camera/cam_raw"} == {IMAGE.tobytes()}
    stamps = [one.header.stamp_ns for one in frames if one.topic == "camera/cam"]
    assert stamps == [START_S * 10**9 + number * 10**8 for number in range(10)]
    blocks = [message.header for message in messages if isinstance(message.header, AudioBlock)]
    assert [block.sample_index for block in blocks] == [number * 1600 for number in range(10)]
    assert {(block.rate_hz, block.channels, block.format) for block in blocks} == {(16_000, 1, "s16")}
    words = [one.header for one in messages if isinstance(one.header, TextCommand)]
    assert [(one.text, one.stamp_ns) for one in words] == [("come", START_S * 10**9 + 5)]


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_one_broken_message_costs_itself(tmp_path: Path, encoding: str) -> None:
    path = foxglove_file(tmp_path / "f.mcap", encoding, foxglove_rows(encoding), broken=4)
    lines = list(import_bag.read(path, tmp_path / "s.mcap"))
    assert sum(1 for _ in read(tmp_path / "s.mcap")) == 30
    (lost,) = [line for line in lines if "/cam/raw: left out: not" in line]
    assert lost.endswith("(1 times)")
    with Session(tmp_path / "s.mcap") as made:
        assert lost in made.metadata["imported"]["notes"]
        assert made.metadata["imported"]["kind"] == "foxglove"


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({"message": None, "timestamp": None}, "text/log: 2 messages"),
        (
            {"message": "x", "timestamp": {"sec": -5, "nsec": 0}},
            "/log: left out: a stamp of -5 s, before 1970 (1 times)",
        ),
    ],
)
def test_null_is_absent_in_json_and_a_time_that_cannot_be_is_refused(
    tmp_path: Path, values: dict[str, Any], outcome: str
) -> None:
    path = tmp_path / "f.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema("foxglove.Log", "jsonschema", b"{}")
        channel = writer.register_channel("/log", "json", schema)
        for number, message in enumerate(({"message": "y"}, values)):
            writer.add_message(channel, number + 1, json.dumps(message).encode(), number + 1)
        writer.finish()  # type: ignore[no-untyped-call]
    assert outcome in "\n".join(import_bag.read(path, tmp_path / "s.mcap"))
    words = [one.header.text for one in read(tmp_path / "s.mcap") if isinstance(one.header, TextCommand)]
    assert words == ["y", ""][: len(words)]


def test_a_foreign_name_is_shown_harmlessly() -> None:
    with pytest.raises(UnusableError, match=r"'bgr8\\n\\x1b\[31m'"):
        incoming.raw(np.zeros(3, np.uint8), "bgr8\n\x1b[31m", (1, 1), 3, 1)


def test_a_foreign_topic_forges_no_line(tmp_path: Path) -> None:
    path = tmp_path / "f.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        for name, kind in (("/log", "foxglove.Log"), ("/x\n\x1b[31mred", "y\n\x07z")):
            schema = writer.register_schema(kind, "jsonschema", b"{}")
            writer.add_message(writer.register_channel(name, "json", schema), 1, b"{}", 1)
        writer.finish()  # type: ignore[no-untyped-call]
    result = CliRunner().invoke(session, ["info", str(path)])
    for line in (*import_bag.read(path, tmp_path / "s.mcap"), *result.output.splitlines()):
        assert line.isprintable()
        assert "red" not in line or "/x\ufffd" in line


def test_an_encoding_that_is_not_known_is_named(tmp_path: Path) -> None:
    rows = [row for row in foxglove_rows("json") if row[1] == "RawImage"]
    path = foxglove_file(tmp_path / "f.mcap", "flatbuffer", [])
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema("foxglove.RawImage", "flatbuffer", b"x")
        channel = writer.register_channel("/cam", "flatbuffer", schema)
        writer.add_message(channel, 1, encoded("RawImage", rows[0][2], "json"), 1)
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(SessionError, match=r"foxglove\.RawImage \(flatbuffer\)"):
        list(import_bag.read(path, tmp_path / "s.mcap"))
    assert not (tmp_path / "s.mcap").exists()


def test_a_session_is_no_source_of_itself(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        writer.write(streams.frame(0, 1))
    with pytest.raises(SessionError, match="already a session"):
        list(import_bag.read(tmp_path / "s.mcap", tmp_path / "t.mcap"))


COLOURS: Final = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "grey": (128, 128, 128),
}


def yuv(red: int, green: int, blue: int) -> tuple[int, int, int]:
    """BT.601, limited range, as cameras send it."""
    luma = 16 + (65.738 * red + 129.057 * green + 25.064 * blue) / 256
    u = 128 + (-37.945 * red - 74.494 * green + 112.439 * blue) / 256
    v = 128 + (112.439 * red - 94.154 * green - 18.285 * blue) / 256
    return round(luma), round(u), round(v)


def packed(encoding: str, rgb: tuple[int, int, int], padding: int) -> tuple[np.ndarray, int]:
    """A picture of 8 x 6 pixels of one colour, and the bytes of its rows."""
    luma, u, v = yuv(*rgb)
    red, green, blue = rgb
    rows: dict[str, list[list[int]]] = {
        "rgba8": [[red, green, blue, 9] * 8] * 6,
        "bgra8": [[blue, green, red, 9] * 8] * 6,
        "uyvy": [[u, luma, v, luma] * 4] * 6,
        "yuv422": [[u, luma, v, luma] * 4] * 6,
        "yuyv": [[luma, u, luma, v] * 4] * 6,
        "yuv422_yuy2": [[luma, u, luma, v] * 4] * 6,
        "NV12": [[luma] * 8] * 6 + [[u, v] * 4] * 3,
        "nv21": [[luma] * 8] * 6 + [[v, u] * 4] * 3,
        "bayer_rggb8": [[red, green] * 4, [green, blue] * 4] * 3,
        "bayer_bggr8": [[blue, green] * 4, [green, red] * 4] * 3,
        "bayer_gbrg8": [[green, blue] * 4, [red, green] * 4] * 3,
        "bayer_grbg8": [[green, red] * 4, [blue, green] * 4] * 3,
    }
    data = np.array(rows[encoding], np.uint8)
    return np.pad(data, ((0, 0), (0, padding))).reshape(-1), data.shape[1] + padding


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS.keys())
@pytest.mark.parametrize(
    "encoding",
    [
        "rgba8", "bgra8", "uyvy", "yuv422", "yuyv", "yuv422_yuy2", "NV12", "nv21",
        "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8",
    ],
)  # fmt: skip
def test_a_picture_keeps_its_colours_whatever_its_encoding(
    encoding: str, colour: tuple[int, int, int], padding: int
) -> None:
    data, step = packed(encoding, colour, padding)
    header, payload = incoming.raw(data, encoding, (8, 6), step, 1)
    assert isinstance(header, CameraFrame)
    assert (header.width, header.height, header.encoding) == (8, 6, "bgr8")
    middle = np.frombuffer(payload, np.uint8).reshape(6, 8, 3)[2:4, 2:6]
    assert np.abs(middle.astype(int) - colour[::-1]).max() <= 6


@pytest.mark.parametrize(
    ("encoding", "pixel_bytes"),
    [("mono16", 2), ("16UC1", 2), ("32FC1", 4), ("bayer_rggb16", 2), ("rgb16", 6), ("nv24", 3), ("8UC2", 2)],
)
def test_what_has_no_place_here_is_refused_by_name(encoding: str, pixel_bytes: int) -> None:
    data = np.zeros(6 * 8 * pixel_bytes, np.uint8)
    with pytest.raises(UnusableError, match=f"'{encoding}'"):
        incoming.raw(data, encoding, (8, 6), 8 * pixel_bytes, 1)


@pytest.mark.parametrize(
    ("encoding", "size", "step"),
    [
        ("yuyv", (7, 6), 14),
        ("nv12", (8, 5), 8),
        ("nv12", (8, 6), 8),
        ("bgr8", (0, 0), 0),
        ("rgb8", (8, 6), 3),
    ],
)
def test_a_picture_whose_size_cannot_be_is_refused(encoding: str, size: tuple[int, int], step: int) -> None:
    with pytest.raises(UnusableError, match="an image of"):
        incoming.raw(np.zeros(max(size[0] * size[1], 1) * 2, np.uint8), encoding, size, step, 1)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def test_a_depth_image_is_never_made_a_picture_of_8_bits() -> None:
    depth = np.arange(96, dtype=np.uint16).reshape(8, 12) * 100
    for data, kind in (
        (png(depth), "16UC1; png compressed "),
        (bytes(12) + png(depth), "16UC1; compressedDepth png"),
    ):
        with pytest.raises(UnusableError, match="16UC1"):
            incoming.compressed(data, kind, 1)
    grey, payload = incoming.compressed(png(depth.astype(np.uint8)), "png", 1)
    assert isinstance(grey, CameraFrame)
    assert (grey.encoding, len(payload)) == ("mono8", 96)


def test_a_jpeg_that_is_cut_or_damaged_is_no_picture() -> None:
    noise = np.random.default_rng(1).normal(0, 20, (240, 320))
    picture = np.clip(np.tile(np.arange(320) * 0.7, (240, 1)) + noise, 0, 255).astype(np.uint8)
    for image in (picture, np.dstack([picture] * 3)):
        whole = cv2.imencode(".jpg", image)[1].tobytes()
        header, payload = incoming.compressed(whole + bytes(20), "jpeg", 1)
        assert isinstance(header, CameraFrame)
        assert (header.width, header.height, payload) == (320, 240, whole + bytes(20))
        for part in (0.3, 0.9, 0.999):
            with pytest.raises(UnusableError):
                incoming.compressed(whole[: int(len(whole) * part)], "jpeg", 1)
        middle = len(whole) // 2
        with pytest.raises(UnusableError, match="damaged"):
            incoming.compressed(whole[:middle] + whole[middle + 2000 :], "jpeg", 1)


def bag(
    path: Path,
    rows: Iterable[tuple[str, str, Any]],
    plugin: StoragePlugin = StoragePlugin.MCAP,
    store: Typestore | None = None,
) -> Path:
    """A rosbag2, one message every 100 ms; a value that is bytes is written as it is."""
    types = store or ros.types()
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for number, (topic, kind, value) in enumerate(rows):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=types)
            data = value if isinstance(value, bytes) else types.serialize_cdr(value, kind)
            writer.write(connections[topic], START_S * 10**9 + number * 10**8, data)
    return path


def pictures(count: int) -> list[tuple[str, str, Any]]:
    kinds = ros.types().types
    rows = []
    for number in range(count):
        stamp = kinds["builtin_interfaces/msg/Time"](sec=START_S, nanosec=number)
        header = kinds["std_msgs/msg/Header"](stamp=stamp, frame_id="x")
        made = kinds[ros.COMPRESSED](header=header, format="jpeg", data=np.frombuffer(JPEG, np.uint8))
        rows.append(("/front/image_raw/compressed", ros.COMPRESSED, made))
    return rows


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_one_message_that_cannot_be_read_costs_itself(tmp_path: Path, plugin: StoragePlugin) -> None:
    rows = pictures(5)
    good = bytes(ros.types().serialize_cdr(rows[2][2], ros.COMPRESSED))
    rows[2] = (*rows[2][:2], good[:-100])
    lines = list(import_bag.read(bag(tmp_path / "bag", rows, plugin), tmp_path / "s.mcap"))
    stamps = [message.header.stamp_ns % 10**9 for message in read(tmp_path / "s.mcap")]
    assert stamps == [0, 1, 3, 4]
    assert any("left out: not a sensor_msgs/msg/CompressedImage" in line for line in lines)


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_a_stream_of_a_type_that_nobody_can_parse_costs_itself(tmp_path: Path, plugin: StoragePlugin) -> None:
    """Service events are of this kind: their definition names types that it does not bring."""
    path = bag(tmp_path / "bag", [*pictures(3), ("/chatter", ros.STRING, b"\0\1\0\0\4\0\0\0abc\0")], plugin)
    break_definition(path, plugin)
    lines = list(import_bag.read(path, tmp_path / "s.mcap"))
    assert len(list(read(tmp_path / "s.mcap", ["camera/*"]))) == 3
    assert any(line.startswith("/chatter: left out: pkg/srv/Ask_Event (cdr)") for line in lines)


def break_definition(path: Path, plugin: StoragePlugin) -> None:
    kind, text = "pkg/srv/Ask_Event", "service_msgs/ServiceEventInfo info\npkg/Ask_Request[<=1] request ~~\n"
    if plugin is StoragePlugin.SQLITE3:
        base = sqlite3.connect(next(path.glob("*.db3")))
        base.execute("UPDATE topics SET type = ? WHERE name = '/chatter'", (kind,))
        changes = "SET topic_type = ?, encoded_message_definition = ? WHERE topic_type = ?"
        base.execute(f"UPDATE message_definitions {changes}", (kind, text, ros.STRING))
        base.commit()
        base.close()
        return
    from mcap.reader import make_reader

    source = next(path.glob("*.mcap"))
    target = source.with_name("rewritten")
    with source.open("rb") as file, target.open("wb") as out:
        writer = McapWriter(out)
        writer.start("ros2")
        for schema, channel, message in make_reader(file).iter_messages():
            assert schema is not None
            is_event = channel.topic == "/chatter"
            name, data = (kind, text.encode()) if is_event else (schema.name, schema.data)
            number = writer.register_channel(
                channel.topic, "cdr", writer.register_schema(name, "ros2msg", data)
            )
            writer.add_message(number, message.log_time, message.data, message.publish_time)
        writer.finish()  # type: ignore[no-untyped-call]
    target.replace(source)


def cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_a_file_that_ends_too_early_gives_what_is_left(tmp_path: Path, plugin: StoragePlugin) -> None:
    path = bag(tmp_path / "bag", pictures(300), plugin)
    cut(next(one for one in path.iterdir() if one.suffix in (".mcap", ".db3")), 0.7)
    lines = list(import_bag.read(path, tmp_path / "s.mcap"))
    stamps = [message.header.stamp_ns % 10**9 for message in read(tmp_path / "s.mcap")]
    assert stamps == sorted(set(stamps))
    assert 150 < len(stamps) < 250
    assert any("damage: bag" in line for line in lines)


def test_a_folder_without_its_description_or_with_packed_files_is_read_too(tmp_path: Path) -> None:
    path = bag(tmp_path / "bag", pictures(4))
    (path / "metadata.yaml").unlink()
    (file,) = path.iterdir()
    packed = file.with_suffix(".mcap.zstd")
    packed.write_bytes(zstandard.compress(file.read_bytes()))
    file.unlink()
    for number, source in enumerate((path, packed)):
        target = tmp_path / f"{number}.mcap"
        assert CliRunner().invoke(session, ["import", str(source), str(target)]).exit_code == 0
        assert len(list(read(target))) == 4


def test_a_part_of_a_bag_that_cannot_be_read_at_all_costs_itself(tmp_path: Path) -> None:
    path = bag(tmp_path / "bag", pictures(4))
    (path / "bag_1.mcap").write_bytes(b"nothing of the kind")
    (path / "bag_2.db3").write_bytes(b"")
    lines = list(import_bag.read(path, tmp_path / "s.mcap"))
    assert len(list(read(tmp_path / "s.mcap"))) == 4
    assert sum(line.startswith("damage: ") for line in lines) == 2


def test_a_file_that_is_missing_from_a_folder_is_said(tmp_path: Path) -> None:
    path = bag(tmp_path / "bag", pictures(4))
    text = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(text.replace("  - bag.mcap", "  - bag.mcap\n  - bag_1.mcap"))
    lines = list(import_bag.read(path, tmp_path / "s.mcap"))
    assert "damage: bag_1.mcap: listed in metadata.yaml, but missing" in lines


def test_sound_that_nothing_describes_is_taken_at_the_rate_that_is_given(tmp_path: Path) -> None:
    kind = ros.types().types[ros.AUDIO]
    rows = [("/mic/audio", ros.AUDIO, kind(data=np.frombuffer(SAMPLES, np.uint8))) for _ in range(3)]
    path = bag(tmp_path / "bag", rows)
    with pytest.raises(SessionError, match=r"nothing to import: .*--audio-rate"):
        list(import_bag.read(path, tmp_path / "s.mcap"))
    assert not (tmp_path / "s.mcap").exists()
    arguments = ["import", str(path), str(tmp_path / "s.mcap"), "--audio-rate", "16000"]
    assert CliRunner().invoke(session, arguments).exit_code == 0
    blocks = [message.header for message in read(tmp_path / "s.mcap")]
    assert all(isinstance(one, AudioBlock) and one.rate_hz == 16_000 for one in blocks)
    assert b"".join(bytes(one.payload) for one in read(tmp_path / "s.mcap")) == SAMPLES * 3
    # nobody stamped it: its last sample was there when it was received
    ended_ns = [one.header.stamp_ns + 100_000_000 for one in read(tmp_path / "s.mcap")]
    assert ended_ns == [one.received_ns for one in read(tmp_path / "s.mcap")]


@pytest.mark.parametrize("stamped_ns", [0, 5_000_000_000])
def test_sound_without_a_stamp_ended_when_it_was_received(stamped_ns: int) -> None:
    header, _ = Sound().block(SAMPLES, "s16", 16_000, 1, stamped_ns, 9_000_000_000)
    assert header.stamp_ns == (stamped_ns or 8_900_000_000)


def nothing(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing")


def only_broken(folder: Path) -> None:
    (folder / "a.mcap").write_bytes(b"no mcap" * 1000)


def only_bad_messages(folder: Path) -> None:
    (row,) = pictures(1)
    bag(folder / "bag", [(*row[:2], b"\0\1\0\0")])
    for file in (folder / "bag").iterdir():
        file.rename(folder / file.name)


@pytest.mark.parametrize("fill", [nothing, only_broken, only_bad_messages])
def test_a_folder_that_yields_nothing_is_an_error(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder")
    with pytest.raises(SessionError) as caught:
        list(import_bag.read(tmp_path / "folder", tmp_path / "s.mcap"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.mcap").exists()


def test_info_of_a_folder_shows_each_session_of_it(tmp_path: Path) -> None:
    for number in range(2):
        with SessionWriter(tmp_path / f"r-{number:03d}.mcap") as writer:
            writer.write(streams.frame(number, 1))
    output = CliRunner().invoke(session, ["info", str(tmp_path)]).output
    assert [line.split(":")[0] for line in output.splitlines() if ".mcap" in line] == [
        str(tmp_path / "r-000.mcap"),
        str(tmp_path / "r-001.mcap"),
    ]
    found = json.loads(CliRunner().invoke(session, ["info", str(tmp_path), "--json"]).output)
    assert [one["counts"] for one in found] == [{"camera/front": 1}] * 2


def test_info_of_a_folder_is_not_spoilt_by_one_bad_file(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "a.mcap") as writer:
        writer.write(streams.frame(0, 1))
    (tmp_path / "b.mcap").write_bytes(b"nothing of the kind")
    result = CliRunner().invoke(session, ["info", str(tmp_path)], standalone_mode=False)
    assert (result.return_value, result.exception) == (SessionError.exit_code, None)
    assert "camera/front" in result.output
    assert f"perception: {tmp_path / 'b.mcap'}: not an MCAP file" in result.output


@pytest.mark.parametrize("whole", [True, False])
def test_info_of_a_bag_says_what_would_become_of_it(tmp_path: Path, whole: bool) -> None:
    path = bag(tmp_path / "bag", [*pictures(3), ("/tf", "std_msgs/msg/Empty", b"\0\1\0\0\0")])
    named = path if whole else next(path.glob("*.mcap"))
    lines = CliRunner().invoke(session, ["info", str(named)]).output.splitlines()
    assert "not a session; a recording of 0.3 s" in lines[0]
    assert lines[1].split() == [
        "/front/image_raw/compressed", "sensor_msgs/msg/CompressedImage", "(cdr)", "->", "camera/front"
    ]  # fmt: skip
    assert lines[2].endswith("has no counterpart")


def test_info_of_a_folder_of_nothing_is_an_error(tmp_path: Path) -> None:
    nothing(tmp_path)
    result = CliRunner().invoke(session, ["info", str(tmp_path)])
    assert isinstance(result.exception, SessionError)


@pytest.mark.parametrize("in_mcap", [False, True])
def test_a_bag_of_ros_1_is_read_as_well(tmp_path: Path, in_mcap: bool) -> None:
    store = get_typestore(Stores.ROS1_NOETIC)
    kinds = store.types
    rows: list[tuple[str, str, bytes]] = []
    for number in range(4):
        stamp = kinds["builtin_interfaces/msg/Time"](sec=START_S, nanosec=number)
        header = kinds["std_msgs/msg/Header"](seq=7, stamp=stamp, frame_id="x")
        made = kinds[ros.COMPRESSED](header=header, format="jpeg", data=np.frombuffer(JPEG, np.uint8))
        data = bytes(store.serialize_ros1(made, ros.COMPRESSED))
        rows.append(("/front/image_raw/compressed", ros.COMPRESSED, data))
    rows[1] = (*rows[1][:2], rows[1][2][:-50])
    words = store.serialize_ros1(kinds[ros.STRING](data="hello"), ros.STRING)
    rows.append(("/chatter", ros.STRING, bytes(words)))
    path = ros1_mcap(tmp_path / "b.mcap", rows) if in_mcap else ros1_bag(tmp_path / "b.bag", rows, store)
    lines = list(import_bag.read(path, tmp_path / "s.mcap"))
    frames = list(read(tmp_path / "s.mcap", ["camera/front"]))
    assert [one.header.stamp_ns % 10**9 for one in frames] == [0, 2, 3]
    assert {bytes(one.payload) for one in frames} == {JPEG}
    (line,) = [one.header for one in read(tmp_path / "s.mcap", ["text/*"])]
    assert isinstance(line, TextCommand)
    assert line.text == "hello"
    assert any("left out: not a sensor_msgs/msg/CompressedImage" in one for one in lines)


def ros1_bag(path: Path, rows: list[tuple[str, str, bytes]], store: Typestore) -> Path:
    with Ros1Writer(path) as writer:
        connections: dict[str, Any] = {}
        for number, (topic, kind, data) in enumerate(rows):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], START_S * 10**9 + number, data)
    return path


def ros1_mcap(path: Path, rows: list[tuple[str, str, bytes]]) -> Path:
    store = get_typestore(Stores.ROS1_NOETIC)
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start("ros1")
        for number, (topic, kind, data) in enumerate(rows):
            text = store.generate_msgdef(kind, ros_version=1)[0]
            schema = writer.register_schema(kind.replace("/msg/", "/"), "ros1msg", text.encode())
            channel = writer.register_channel(topic, "ros1", schema)
            writer.add_message(channel, START_S * 10**9 + number, data, 0)
        writer.finish()  # type: ignore[no-untyped-call]
    return path
