"""A session becomes a rosbag2 that ROS tools read, and a rosbag2 made elsewhere becomes a session."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from msgspec.structs import asdict
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer

from perception.bus import codec
from perception.bus.schema import golden_vectors
from perception.errors import SessionError
from perception.messages import AudioBlock, CameraFrame, FusedState, Header, Message, TextCommand
from perception.session import Session, SessionWriter, read
from perception.session.convert import import_bag, rosbag
from perception.session.convert import ros_messages as ros
from perception.session.convert.bag import BagStream
from perception.session.convert.incoming import AUDIO_INFO

IMAGE = np.random.default_rng(1).integers(0, 255, (12, 16, 3), dtype=np.uint8)
JPEG = cv2.imencode(".jpg", IMAGE)[1].tobytes()


def everything() -> list[Message[Header]]:
    vectors = [[bytes.fromhex(part) for part in vector["parts"]] for vector in golden_vectors()]
    messages = [codec.decode(parts, received_ns=number) for number, parts in enumerate(vectors, start=1000)]
    header = CameraFrame(stamp_ns=2_000_000_001, width=16, height=12, encoding="jpeg")
    return [*messages, Message("camera/jpeg", header, JPEG, 2000)]


def session(path: Path, messages: list[Message[Header]]) -> Path:
    with SessionWriter(path) as writer:
        for message in messages:
            writer.write(message)
    return path


def test_ours_is_read_back_by_an_independent_reader(tmp_path: Path) -> None:
    with Session(session(tmp_path / "s.mcap", everything())) as opened:
        list(rosbag.write(opened, tmp_path / "bag"))
    found: dict[str, Any] = {}
    with AnyReader([tmp_path / "bag"]) as bag:
        for connection, time_ns, data in bag.messages():
            found[connection.topic] = (
                time_ns,
                connection.msgtype,
                bag.deserialize(data, connection.msgtype),
            )
    time_ns, kind, picture = found["/camera/jpeg/image_raw/compressed"]
    assert (time_ns, kind, picture.data.tobytes()) == (2000, "sensor_msgs/msg/CompressedImage", JPEG)
    assert (picture.header.stamp.sec, picture.header.stamp.nanosec) == (2, 1)
    _, kind, raw = found["/camera/front/image_raw"]
    assert (kind, raw.encoding, raw.width, raw.height, raw.step) == (
        "sensor_msgs/msg/Image",
        "bgr8",
        2,
        1,
        6,
    )
    _, kind, sound = found["/microphone/desk/audio"]
    assert (kind, len(sound.audio.data)) == ("audio_common_msgs/msg/AudioDataStamped", 8)
    _, kind, info = found["/microphone/desk/audio_info"]
    assert (info.sample_rate, info.channels, info.sample_format) == (16_000, 2, "S16LE")
    _, kind, words = found["/text/say"]
    assert (kind, words.data) == ("std_msgs/msg/String", "Komm näher, 来て")
    assert '"label":"wave"' in found["/state/fused"][2].data
    _, kind, seen = found["/state/fused/detections/front"]
    (state,) = (one.header for one in everything() if isinstance(one.header, FusedState))
    boxes = [
        box
        for modality in state.modalities.values()
        for branch in modality.branches.values()
        for box in branch.boxes
    ]
    assert kind == "vision_msgs/msg/Detection2DArray"
    assert boxes
    assert [
        (one.results[0].hypothesis.class_id, one.bbox.center.position.x, one.bbox.size_y)
        for one in seen.detections
    ] == [(box.label, box.x + box.width / 2, box.height) for box in boxes]


def test_detections_carry_the_type_and_hash_that_ros_knows(tmp_path: Path) -> None:
    with Session(session(tmp_path / "s.mcap", everything())) as opened:
        list(rosbag.write(opened, tmp_path / "bag"))
    with AnyReader([tmp_path / "bag"]) as bag:
        (found,) = [one for one in bag.connections if one.msgtype == "vision_msgs/msg/Detection2DArray"]
    assert re.fullmatch(r"RIHS01_[0-9a-f]{64}", found.digest)
    assert "MSG: vision_msgs/ObjectHypothesisWithPose" in found.msgdef.data


def test_there_and_back_keeps_inputs_and_states(tmp_path: Path) -> None:
    with Session(session(tmp_path / "s.mcap", everything())) as opened:
        list(rosbag.write(opened, tmp_path / "bag"))
    lines = list(import_bag.read(tmp_path / "bag", tmp_path / "back.mcap"))
    back = {message.topic: message for message in read(tmp_path / "back.mcap")}
    own = {"seq", "sent_ns", "source", "sample_index", "gap", "exposure_ns", "language", "condition"}
    assert any("journal/fusion: left out: a journal refers to publishers" in line for line in lines), (
        "the sources it names are not in the bag, so that no replay could follow it"
    )
    for message in everything():
        if message.topic == "journal/fusion":
            continue
        copy = back[message.topic]
        if message.topic == "text/say":
            assert copy.received_ns == copy.header.stamp_ns, "a std_msgs/String has no stamp of its own"
            continue
        theirs, ours = asdict(copy.header), asdict(message.header)
        assert theirs | dict.fromkeys(own) == ours | dict.fromkeys(own)
        if not message.topic.startswith("state"):
            assert bytes(copy.payload) == bytes(message.payload)


def foreign(path: Path, plugin: StoragePlugin) -> Path:
    """A bag as a robot's drivers write it: rgb8, padded rows, PNG, a custom topic."""
    store = ros.types()
    kinds = store.types

    def stamped(number: int) -> Any:
        time = kinds["builtin_interfaces/msg/Time"](sec=10 + number, nanosec=5)
        return kinds["std_msgs/msg/Header"](stamp=time, frame_id="x")

    rows = np.zeros((12, 50), np.uint8)
    rows[:, :48] = IMAGE[:, :, ::-1].reshape(12, 48)
    png = cv2.imencode(".png", IMAGE)[1].reshape(-1)
    raw = {"height": 12, "width": 16, "is_bigendian": 0}
    outgoing = [
        ("/cam/color/image_raw", ros.IMAGE, {"encoding": "rgb8", "step": 50, "data": rows.reshape(-1)} | raw),
        ("/cam/color/image_raw", ros.IMAGE, {"encoding": "bayer", "step": 16, "data": rows[0]} | raw),
        ("/cam/color/image_raw", ros.IMAGE, {"encoding": "bgr8", "step": 9, "data": rows[0]} | raw),
        ("/cam/color/image_raw/compressed", ros.COMPRESSED, {"format": "png", "data": png}),
        ("/cam/color/image_raw/compressed", ros.COMPRESSED, {"format": "jpeg", "data": rows[0]}),
    ]
    with Writer(path, version=9, storage_plugin=plugin) as bag:
        connections = {
            topic: bag.add_connection(topic, kind, typestore=store)
            for topic, kind in {(topic, kind) for topic, kind, _ in outgoing}
        }
        for number, (topic, kind, fields) in enumerate(outgoing):
            message = kinds[kind](header=stamped(number), **fields)
            bag.write(connections[topic], 1_000 + number, store.serialize_cdr(message, kind))
        speech = bag.add_connection("/chatter", ros.STRING, typestore=store)
        bag.write(speech, 2_000, store.serialize_cdr(kinds[ros.STRING](data="hello"), ros.STRING))
        info = bag.add_connection("/mic/audio_info", AUDIO_INFO, typestore=store)
        sound = bag.add_connection("/mic/audio", ros.AUDIO, typestore=store)
        about = kinds[AUDIO_INFO](
            channels=1, sample_rate=16_000, sample_format="S16LE", bitrate=0, coding_format="wave"
        )
        bag.write(info, 2_500, store.serialize_cdr(about, AUDIO_INFO))
        for number in (0, 1, 3):
            piece = kinds[ros.AUDIO](data=np.full(3200, number, np.uint8))
            bag.write(sound, 10**9 + number * 10**8, store.serialize_cdr(piece, ros.AUDIO))
    return path


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_a_bag_made_elsewhere_becomes_a_session(tmp_path: Path, plugin: StoragePlugin) -> None:
    lines = list(import_bag.read(foreign(tmp_path / "bag", plugin), tmp_path / "s.mcap"))
    messages = list(read(tmp_path / "s.mcap"))
    frames = [message for message in messages if isinstance(message.header, CameraFrame)]
    assert sorted(message.topic for message in frames) == ["camera/cam_color", "camera/cam_color-2"]
    assert all(bytes(message.payload) == IMAGE.tobytes() for message in frames)
    assert sorted(message.header.stamp_ns for message in frames) == [10_000_000_005, 13_000_000_005]
    words = [
        (message.topic, message.header.text)
        for message in messages
        if isinstance(message.header, TextCommand)
    ]
    assert words == [("text/chatter", "hello")]
    blocks = [message.header for message in messages if isinstance(message.header, AudioBlock)]
    assert [(block.sample_index, block.samples, block.gap) for block in blocks] == [
        (0, 1600, 0),
        (1600, 1600, 0),
        (4800, 1600, 1600),
    ]
    assert sum("left out" in line for line in lines) == 3


def test_what_is_no_bag_or_holds_nothing_usable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SessionError, match=r"no \.mcap, \.db3, \.bag file in this folder"):
        list(import_bag.read(tmp_path / "empty", tmp_path / "s.mcap"))
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP):
        pass
    with pytest.raises(SessionError, match="no camera, sound or text"):
        list(import_bag.read(tmp_path / "bag", tmp_path / "s.mcap"))
    assert not (tmp_path / "s.mcap").exists()


@pytest.mark.parametrize(
    ("topic", "kind", "ours"),
    [
        ("/camera/front/image_raw/compressed", ros.COMPRESSED, "camera/front"),
        ("/robot1/left_cam/image_raw", ros.IMAGE, "camera/robot1_left_cam"),
        ("/state/fused", ros.STRING, "state/fused"),
        ("/camera/front", ros.STRING, "text/camera_front"),
        ("/a" * 60, ros.STRING, "text/" + "_a" * 25 + "_a"[1:]),
        ("/äö/", ros.STRING, "text/unnamed"),
    ],
)
def test_topics_are_renamed_only_where_they_must(topic: str, kind: str, ours: str) -> None:
    from perception.topics import lookup

    found = import_bag.default_topic(BagStream(topic, kind, "cdr"))
    assert lookup(found)
    if len(topic) < 60:
        assert found == ours
