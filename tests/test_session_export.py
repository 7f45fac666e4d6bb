"""What leaves a session as files is what was recorded; what comes in from a video is what it held."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from msgspec import structs

from perception.bus import codec
from perception.bus.schema import golden_vectors
from perception.devices.scripted import messages
from perception.errors import DeviceError, SessionError
from perception.messages import AudioBlock, CameraFrame, Header, Label, Message, TextCommand
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from perception.session import (
    Session,
    SessionWriter,
    export_lerobot,
    export_media,
    export_webdataset,
    import_media,
    read,
)
from tests.media import write_clip
from tests.streams import MS, SECOND_NS, START_NS

SECONDS, RATE_HZ, FRAME_HZ = 4, 16_000, 10
Writer = Callable[[Session, Path], Iterator[str]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the scripted room, with a second of sound missing and some states."""
    played = messages(
        ScriptConfig(seed=5),
        CameraConfig(source="scripted", width=160, height=120, rate_hz=FRAME_HZ),
        MicrophoneConfig(source="scripted"),
        SECONDS,
        origin_ns=START_NS,
    )
    path = tmp_path_factory.mktemp("export") / "s.mcap"
    with SessionWriter(path) as writer:
        writer.add_metadata("profile", {"domain": "x"})
        for message in played:
            if not is_missing(message):
                writer.write(message)
            if isinstance(message.header, CameraFrame):
                writer.write(state(message.header.stamp_ns // (100 * MS)))
    return path


def is_missing(message: Message[Header]) -> bool:
    if not isinstance(message.header, AudioBlock):
        return False
    return START_NS + SECOND_NS <= message.header.stamp_ns < START_NS + 2 * SECOND_NS


def state(tick: int) -> Message[Header]:
    parts = next(vector["parts"] for vector in golden_vectors() if vector["topic"] == "state/fused")
    known = codec.decode([bytes.fromhex(part) for part in parts], received_ns=0)
    header = structs.replace(known.header, tick=tick, seq=tick, stamp_ns=tick * 100 * MS)
    return Message("state/fused", header, b"", header.stamp_ns)


def export(path: Path, target: Path, write: Writer) -> list[str]:
    with Session(path) as session:
        return list(write(session, target))


def recorded(path: Path, topic: str) -> list[Message[Header]]:
    return list(read(path, [topic]))


def test_pictures_become_a_film_in_which_every_frame_keeps_its_time(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", export_media.write)
    frames = recorded(path, "camera/*")
    begins = json.loads((tmp_path / "out" / "session.json").read_text())
    assert begins["files"]["camera-front.mp4"]["start_ns"] == frames[0].header.stamp_ns
    assert begins["metadata"] == {"profile": {"domain": "x"}}
    with av.open(str(tmp_path / "out" / "camera-front.mp4")) as container:
        shown = [(frame.time, frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)]
    assert len(shown) == len(frames)
    for (seconds, picture), message in zip(shown, frames, strict=True):
        assert seconds is not None
        assert abs(seconds - (message.header.stamp_ns - frames[0].header.stamp_ns) / 1e9) < 1e-4
        original = cv2.imdecode(np.frombuffer(message.payload, np.uint8), cv2.IMREAD_COLOR)
        assert original is not None
        assert np.abs(picture.astype(int) - original).mean() < 12


def test_sound_becomes_one_file_with_silence_where_it_was_lost(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", export_media.write)
    heard, rate_hz = soundfile.read(tmp_path / "out" / "microphone-main.flac", dtype="int16")
    assert rate_hz == RATE_HZ
    expected = np.zeros_like(heard)
    for message in recorded(path, "microphone/*"):
        assert isinstance(message.header, AudioBlock)
        at = message.header.sample_index
        expected[at : at + message.header.samples] = np.frombuffer(message.payload, "<i2")
    np.testing.assert_array_equal(heard, expected)
    assert not heard[RATE_HZ + 512 : 2 * RATE_HZ - 512].any()


def test_states_become_a_table_of_either_kind(path: Path, tmp_path: Path) -> None:
    with Session(path) as session:
        list(export_media.write(session, tmp_path / "parquet"))
        list(export_media.write(session, tmp_path / "csv", kind="csv"))
    states = recorded(path, "state/fused")
    table = pq.read_table(tmp_path / "parquet" / "state-fused.parquet").to_pylist()
    assert [row["tick"] for row in table] == [getattr(one.header, "tick", None) for one in states]
    assert {row["fused.label"] for row in table} == {"wave"}
    assert {row["fused.probability.idle"] for row in table} == {0.25}
    assert {row["modalities.camera.age_ms"] for row in table} == {16.5}
    assert json.loads(table[0]["modalities.camera.branches.faces.boxes"])[0]["label"] == "face"
    with (tmp_path / "csv" / "state-fused.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["stamp_ns"]) for row in rows] == [one.header.stamp_ns for one in states]
    assert (tmp_path / "csv" / "label-truth.csv").is_file()


def test_samples_for_training_hold_what_was_sensed_at_their_tick(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", export_webdataset.write)
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        for member in tar.getmembers():
            key, _, name = member.name.partition(".")
            data = tar.extractfile(member)
            assert data is not None
            samples.setdefault(key, {})[name] = data.read()
    assert SECONDS * 10 - 2 <= len(samples) <= SECONDS * 10 + 1
    frames = {message.header.stamp_ns: message for message in recorded(path, "camera/*")}
    labels = [message.header for message in recorded(path, "label/*")]
    for key, files in samples.items():
        end_ns = int(key)
        facts = json.loads(files["json"])
        newest = max((stamp_ns for stamp_ns in frames if stamp_ns <= end_ns), default=None)
        if newest is not None and "front.jpg" in files:
            assert files["front.jpg"] == bytes(frames[newest].payload)
        assert facts["state"] is None or facts["state"]["stamp_ns"] <= end_ns
        truth = [one.name for one in labels if isinstance(one, Label) and one.start_ns <= end_ns < one.end_ns]
        assert list(facts["labels"].values()) == truth
    sound, rate_hz = soundfile.read(io.BytesIO(samples[max(samples)]["main.wav"]), dtype="float32")
    assert (len(sound), rate_hz) == (RATE_HZ, RATE_HZ)
    assert np.abs(sound).max() > 0


def test_shards_are_split(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", lambda *to: export_webdataset.write(*to, shard_bytes=100_000))
    assert len(list((tmp_path / "out").iterdir())) > 2


def test_a_lerobot_dataset_has_its_layout_and_its_sound(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", export_lerobot.write)
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    table = pq.read_table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet").to_pylist()
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 10, len(table))
    assert [row["frame_index"] for row in table] == list(range(len(table)))
    assert [row["timestamp"] for row in table] == pytest.approx([n / 10 for n in range(len(table))])
    assert {len(row["observation.audio.main"]) for row in table} == {RATE_HZ // 10}
    assert table[-1]["observation.state"] == [0.25, 0.75]
    film = tmp_path / "out" / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4"
    with av.open(str(film)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([n / 10 for n in range(len(table))], abs=1e-4)
    sound = tmp_path / "out" / "audio" / "observation.audio.main" / "chunk-000" / "file-000.flac"
    assert soundfile.info(sound).samplerate == RATE_HZ
    tasks = pq.read_table(tmp_path / "out" / "meta" / "tasks.parquet").to_pylist()
    assert {row["task_index"] for row in table} == {row["task_index"] for row in tasks}
    (episode,) = pq.read_table(
        tmp_path / "out" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    ).to_pylist()
    assert (episode["length"], episode["dataset_to_index"]) == (len(table), len(table))
    statistics = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    assert np.shape(statistics["observation.images.front"]["mean"]) == (3, 1, 1)
    assert set(statistics) == set(info["features"])


def test_there_must_be_something_to_cut(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        writer.write(state(3))
    for write in (export_webdataset.write, export_lerobot.write):
        with Session(tmp_path / "s.mcap") as session, pytest.raises(SessionError, match="no camera"):
            list(write(session, tmp_path / "out"))


def clip(folder: Path) -> Path:
    """Two seconds: the picture brightens frame by frame, the sound is a ramp, two subtitles."""
    pictures = [np.full((48, 64, 3), 4 * number, np.uint8) for number in range(50)]
    ramp = np.arange(32_000, dtype=np.int16)
    (folder / "clip.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,000\nHello <i>there</i>,\nrobot\n\n"
        "2\n00:00:01,500 --> 00:00:02,000\nstop\n",
        encoding="utf-8",
    )
    return write_clip(folder / "clip.mkv", pictures, [(0.0, ramp)])


def test_a_video_with_sound_and_subtitles_becomes_a_session(tmp_path: Path) -> None:
    source = clip(tmp_path)
    list(import_media.read(source, tmp_path / "s.mcap"))
    messages = list(read(tmp_path / "s.mcap"))
    frames = [message for message in messages if isinstance(message.header, CameraFrame)]
    blocks = [message for message in messages if isinstance(message.header, AudioBlock)]
    words = [message.header for message in messages if isinstance(message.header, TextCommand)]
    start_ns = source.stat().st_mtime_ns
    assert [frame.header.stamp_ns - start_ns for frame in frames] == [n * 40 * MS for n in range(50)]
    shown = [cv2.imdecode(np.frombuffer(one.payload, np.uint8), cv2.IMREAD_GRAYSCALE) for one in frames]
    grey = [np.mean(picture) for picture in shown if picture is not None]
    assert np.abs(np.array(grey) - np.arange(50) * 4).max() < 3
    heard = np.concatenate([np.frombuffer(block.payload, "<i2") for block in blocks])
    np.testing.assert_array_equal(heard, np.arange(32_000, dtype=np.int16))
    assert [(line.text, line.stamp_ns - start_ns) for line in words] == [
        ("Hello there, robot", 500 * MS),
        ("stop", 1500 * MS),
    ]
    arrivals = [message.received_ns for message in messages]
    assert arrivals == sorted(arrivals)
    with Session(tmp_path / "s.mcap") as session:
        assert session.metadata["imported"]["subtitles"] == str(tmp_path / "clip.srt")


def test_an_import_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"none\.srt"):
        list(import_media.read(clip(tmp_path), tmp_path / "s.mcap", tmp_path / "none.srt"))
    assert not (tmp_path / "s.mcap").exists()


def test_what_is_no_video_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DeviceError, match="cannot be opened"):
        list(import_media.read(tmp_path / "a.mp4", tmp_path / "s.mcap"))
    with pytest.raises(DeviceError, match="no such file"):
        list(import_media.read(tmp_path / "b.mp4", tmp_path / "s.mcap"))
    assert not (tmp_path / "s.mcap").exists()
