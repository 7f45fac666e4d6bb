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
from perception.session import Session, SessionWriter, read
from perception.session.convert import export_lerobot, export_media, export_webdataset, import_media
from perception.session.convert.film import SoundFormat, VideoFile
from perception.units import SECOND_NS
from tests import streams
from tests.media import write_clip
from tests.streams import MS, START_NS

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


def test_a_leap_of_the_clock_inside_a_recording_makes_no_year_of_silence(tmp_path: Path) -> None:
    year_ns = 365 * 86_400 * SECOND_NS
    with SessionWriter(tmp_path / "leap.mcap") as writer:
        for seq, at_ns in enumerate((streams.START_NS, streams.START_NS + year_ns)):
            writer.write(streams.block(seq, at_ns, np.ones(512), 0, source=f"mic#{seq}"))
    with pytest.raises(SessionError, match=r"microphone/main: 365 days without sound .* session trim --from"):
        export(tmp_path / "leap.mcap", tmp_path / "out", export_media.write)


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
        assert facts["inputs"]["camera/front"]["condition"] in ("ok", "starting")
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
    names = info["features"]["observation.conditions"]["names"]
    assert names == ["camera/front", "microphone/main"]
    ok = json.loads((tmp_path / "out" / "meta" / "session.json").read_text())["conditions"].index("ok")
    assert [ok, ok] in [row["observation.conditions"] for row in table]
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


def test_a_film_has_its_sound_beside_the_picture(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", export_media.write)
    with av.open(str(tmp_path / "out" / "camera-front.mp4")) as film:
        sound = film.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", RATE_HZ, 1)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(sound)])
        assert abs(float((sound.start_time or 0) * sound.time_base)) < 0.03
    expected, _ = soundfile.read(tmp_path / "out" / "microphone-main.flac", dtype="float32")
    length = min(len(heard), len(expected))
    assert abs(len(heard) - len(expected)) < 0.1 * RATE_HZ
    loudness = [
        np.sqrt(np.mean(np.square(one[:length].reshape(-1, length // 32)[:, :1000]), axis=1))
        for one in (heard[: length // 32 * 32], expected[: length // 32 * 32])
    ]
    assert np.corrcoef(*loudness)[0, 1] > 0.98, "sound lies where it was heard, the lost second silent"


def test_a_film_has_the_sound_of_the_microphone_of_its_name(tmp_path: Path) -> None:
    stamps = [START_NS + number * 100 * MS for number in range(5)]
    with SessionWriter(tmp_path / "s.mcap") as writer:
        for seq, stamp_ns in enumerate(stamps):
            for name in ("left", "right"):
                writer.write(structs.replace(streams.frame(seq, stamp_ns), topic=f"camera/{name}"))
            for name, rate_hz in (("aaa", 8000), ("right", 16_000)):
                samples = np.zeros(rate_hz // 10)
                block = streams.block(seq, stamp_ns, samples, seq * rate_hz // 10, rate_hz)
                writer.write(structs.replace(block, topic=f"microphone/{name}"))
    export(tmp_path / "s.mcap", tmp_path / "out", export_media.write)
    for name, rate_hz in (("left", 8000), ("right", 16_000)):
        with av.open(str(tmp_path / "out" / f"camera-{name}.mp4")) as film:
            assert film.streams.audio[0].rate == rate_hz


@pytest.mark.parametrize(
    ("channels", "kind", "rate_hz"), [(1, "<f4", 8000), (2, "<i2", 44_100), (4, "<f4", 10_000)]
)
def test_any_sound_fits_into_a_film(tmp_path: Path, channels: int, kind: str, rate_hz: int) -> None:
    tone = np.sin(np.arange(rate_hz) * 2 * np.pi * 440 / rate_hz) * 0.5
    samples = np.repeat(tone[:, None], channels, axis=1)
    whole = (samples * 32767).astype(kind) if kind == "<i2" else samples.astype(kind)
    with VideoFile(tmp_path / "f.mp4", 32, 32, sound=SoundFormat(rate_hz, channels)) as film:
        for number in range(10):
            film.write(np.zeros((32, 32, 3), np.uint8), number * 100 * MS)
            film.write_sound(whole[number * rate_hz // 10 : (number + 1) * rate_hz // 10])
    with av.open(str(tmp_path / "f.mp4")) as made:
        sound = made.streams.audio[0]
        assert sound.channels == (2 if channels == 2 else 1)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in made.decode(sound)])
        loud = heard[sound.rate // 4 : sound.rate * 3 // 4]
    assert abs(len(heard) / sound.rate - 1.0) < 0.1
    assert abs(np.sqrt(np.mean(np.square(loud))) - 0.5 / np.sqrt(2)) < 0.03


def test_a_film_says_its_colours_and_keeps_them(tmp_path: Path) -> None:
    colours = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (30, 200, 220), (128, 128, 128)]
    with VideoFile(tmp_path / "f.mp4", 64, 48) as film:
        for number, colour in enumerate(colours):
            film.write(np.full((48, 64, 3), colour, np.uint8), number * 100 * MS)
    with av.open(str(tmp_path / "f.mp4")) as made:
        context = made.streams.video[0].codec_context
        tags = context.color_primaries, context.color_trc, context.colorspace, context.color_range
        shown = [frame.to_ndarray(format="bgr24") for frame in made.decode(video=0)]
    assert tags == (1, 1, 1, 1), "BT.709, limited range"
    for picture, colour in zip(shown, colours, strict=True):
        assert np.abs(picture[20:28, 28:36].astype(int) - colour).max() <= 6


def test_sessions_become_episodes_of_one_lerobot_dataset(path: Path, tmp_path: Path) -> None:
    with Session(path) as one, Session(path) as other:
        lines = list(export_lerobot.write_all([one, other], tmp_path / "out"))
    assert "in 2 episodes" in lines[0]
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    rows = pq.read_table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet").to_pylist()
    frames = len(rows) // 2
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (2, len(rows), {"train": "0:2"})
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert [row["episode_index"] for row in rows] == [0] * frames + [1] * frames
    assert [row["frame_index"] for row in rows] == 2 * list(range(frames))
    episodes = pq.read_table(
        tmp_path / "out" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    ).to_pylist()
    key = "videos/observation.images.front"
    assert [(one["dataset_from_index"], one["dataset_to_index"], one["length"]) for one in episodes] == [
        (0, frames, frames),
        (frames, 2 * frames, frames),
    ]
    assert [one[f"{key}/from_timestamp"] for one in episodes] == [0.0, frames / 10]
    with av.open(
        str(tmp_path / "out" / "videos" / key.partition("/")[2] / "chunk-000" / "file-000.mp4")
    ) as film:
        times = [frame.time for frame in film.decode(video=0)]
    assert times == pytest.approx([number / 10 for number in range(2 * frames)], abs=1e-4)
    for number in range(2):
        sound = (
            tmp_path / "out" / "audio" / "observation.audio.main" / "chunk-000" / f"file-{number:03d}.flac"
        )
        assert soundfile.info(sound).samplerate == RATE_HZ


def test_every_second_frame_of_a_lerobot_film_can_be_decoded_alone(path: Path, tmp_path: Path) -> None:
    """The loader of LeRobot jumps about in a film, and its own encoder sets a key frame so often."""
    export(path, tmp_path / "out", export_lerobot.write)
    film = tmp_path / "out" / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4"
    with av.open(str(film)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.pts is not None]
    assert len(keys) > 20
    assert all(keys[::2])


def test_sessions_that_differ_are_no_dataset(path: Path, tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "b.mcap") as writer:
        for message in read(path, ["camera/*"]):
            writer.write(message)
    with (
        Session(path) as one,
        Session(tmp_path / "b.mcap") as other,
        pytest.raises(SessionError, match=r"b\.mcap: differs from .*observation\.audio\.main is missing"),
    ):
        list(export_lerobot.write_all([one, other], tmp_path / "out"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.mcap"]


def test_a_camera_that_changes_its_size_is_neither_squashed_nor_lost(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        for seq, (width, height) in enumerate([(65, 48)] * 10 + [(48, 65)] * 10 + [(130, 96)] * 10):
            pixels = np.full(width * height, 200, np.uint8).tobytes()
            frame = streams.frame(seq, START_NS + seq * 100 * MS, width=width, height=height)
            writer.write(Message(frame.topic, frame.header, pixels, frame.header.stamp_ns))
    export(tmp_path / "s.mcap", tmp_path / "media", export_media.write)
    export(tmp_path / "s.mcap", tmp_path / "lerobot", export_lerobot.write)
    key = "observation.images.front"
    films = [
        tmp_path / "media" / "camera-front.mp4",
        tmp_path / "lerobot" / "videos" / key / "chunk-000" / "file-000.mp4",
    ]
    for film in films:
        with av.open(str(film)) as container:
            shown = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        for picture, is_upright in ((shown[2], False), (shown[13], True), (shown[-2], False)):
            assert picture.shape == (48, 64)
            assert picture[24, 32] > 190
            assert (picture[24, 3] < 40) == is_upright, "bars beside the upright picture"
