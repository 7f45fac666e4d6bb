"""Frames without a time, and files that cannot seek: no device loses anything."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from perception.devices.camera import open_camera
from perception.devices.media import Track, length_s
from perception.devices.microphone import open_microphone
from perception.devices.sound import Sound
from perception.errors import DeviceError
from perception.messages import AudioBlock, CameraFrame
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from perception.session import Session, read
from perception.session.convert import import_media
from perception.training.media import MediaSource
from perception.units import SECOND_NS
from tests.media import RATE_HZ, grey, tone, write_clip, write_film, write_sound

LEVELS = [5 * number for number in range(50)]
FILMS = [
    ("h264", "libx264", 0),
    ("h264", "libx264", 2),
    ("m2v", "mpeg2video", 2),
    ("mjpeg", "mjpeg", 0),
    ("y4m", "wrapped_avframe", 0),
    ("avi", "libx264", 2),
    ("avi", "mpeg4", 2),
    ("ts", "libx264", 2),
    ("mp4", "libx264", 2),
    ("mkv", "libx264", 2),
]
SOUNDS = [
    ("wav", "adpcm_ima_wav", "s16p", 44_100),  # two frames in a packet
    ("wav", "adpcm_ms", "s16p", 44_100),
    ("mp3", "libmp3lame", "s16p", RATE_HZ),
    ("aac", "aac", "fltp", RATE_HZ),
]


@pytest.fixture(params=FILMS, ids=lambda one: "-".join(map(str, one)))
def film(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    suffix, codec, bframes = request.param
    path = tmp_path / f"film.{suffix}"
    return write_film(path, codec, [grey(level) for level in LEVELS], rate_hz=10, bframes=bframes)


def seen(
    path: Path, *, loop: bool = False, start_s: float = 0.0, until_s: float = 1e9
) -> list[tuple[float, int]]:
    """Return time and level of the frames of a track."""
    track: Track[VideoFrame] = Track(str(path), "video", loop=loop, start_s=start_s)
    found: list[tuple[float, int]] = []
    for lap_s, frames in track.laps():
        for at_s, frame in frames:
            if lap_s + at_s >= until_s:
                return found
            found.append((lap_s + at_s, round(float(frame.to_ndarray(format="gray").mean()) / 5)))
    return found


def test_every_frame_of_a_film_is_there_at_its_time(film: Path) -> None:
    rate_hz = 25 if film.suffix == ".mjpeg" else 10  # its pictures have no rate
    assert [number for _, number in seen(film)] == list(range(50))
    times_s = [at_s for at_s, _ in seen(film)]
    assert times_s == pytest.approx([number / rate_hz for number in range(50)], abs=1e-3)


def test_who_joins_a_film_late_sees_what_is_on_then(film: Path) -> None:
    whole = seen(film)
    start_s = whole[32][0] + 0.01
    late = seen(film, start_s=start_s)
    assert [number for _, number in late] == list(range(33, 50))
    assert [at_s for at_s, _ in late] == pytest.approx([at_s for at_s, _ in whole[33:]], abs=1e-3)


def test_a_film_loops_whether_or_not_it_says_how_long_it_is(film: Path) -> None:
    lap_s = length_s(str(film))
    assert lap_s == pytest.approx(2.0 if film.suffix == ".mjpeg" else 5.0, abs=0.11)
    twice = [number for _, number in seen(film, loop=True, start_s=1.5 * lap_s, until_s=2.4 * lap_s)]
    assert twice == pytest.approx([*range(twice[0], 50), *range(len(twice) - 50 + twice[0])])
    assert 22 <= twice[0] <= 28
    assert len(twice) >= 40


@pytest.mark.parametrize("start_s", [4.97, 7.5, 1000.0])
def test_who_joins_after_the_end_finds_it_over(film: Path, start_s: float) -> None:
    assert seen(film, start_s=start_s) == []
    config = CameraConfig(source=str(film), width=64, height=48)
    now_ns = round(start_s * SECOND_NS)
    with (
        open_camera(config, ScriptConfig(), clock=lambda: now_ns, origin_ns=0) as camera,
        pytest.raises(EOFError, match="end of file"),
    ):
        camera.read(60)


def test_a_film_without_times_is_imported_and_trained_on_whole(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.h264", "libx264", [grey(level) for level in LEVELS])
    lines = list(import_media.read(path, tmp_path / "s.mcap"))
    assert lines == [
        "camera/video: 50 messages",
        "camera/video: 50 pictures have no time of their own: each follows the one before it",
    ]
    for messages in (
        read(tmp_path / "s.mcap"),
        MediaSource(path, tmp_path, "camera/front", None, 0.0).messages(),
    ):
        headers = [message.header for message in messages]
        stamps_ns = [header.stamp_ns for header in headers if isinstance(header, CameraFrame)]
        assert {later - sooner for sooner, later in pairwise(stamps_ns)} == {40_000_000}
        assert len(stamps_ns) == 50


@pytest.fixture(params=SOUNDS, ids=lambda one: one[1])
def sound(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    suffix, codec, sample_format, rate_hz = request.param
    return write_sound(tmp_path / f"sound.{suffix}", codec, tone(3.0, rate_hz), sample_format, rate_hz)


def received(path: Path, start: int = 0) -> np.ndarray:
    played = Sound(str(path), rate_hz=RATE_HZ, channels=1, sample_format="s16", loop=False, start=start)
    return np.concatenate([block[:, 0] for block in played.blocks(512)])


def is_whole(samples: np.ndarray) -> bool:
    """Whether no stretch of 8 ms is silent."""
    pieces = samples[: len(samples) // 128 * 128].reshape(-1, 128)
    return bool(np.abs(pieces.astype(int)).max(axis=1).min() > 4000)


def test_sound_with_several_frames_in_a_packet_is_heard_whole(sound: Path) -> None:
    samples = received(sound)
    assert len(samples) == pytest.approx(3 * RATE_HZ, abs=2500)  # coders pad their last block
    assert is_whole(samples[3000:45000])


def test_who_joins_sound_late_hears_what_is_on_then(sound: Path) -> None:
    start = round(2.5 * RATE_HZ)
    late, whole = received(sound, start=start), received(sound)[start:]
    assert len(late) == pytest.approx(len(whole), abs=160)  # the target of a seek is exact to 10 ms
    assert is_whole(late[:7000])
    config = MicrophoneConfig(source=str(sound))
    with open_microphone(config, ScriptConfig(), clock=Ahead(2.5), origin_ns=0) as microphone:
        block = microphone.read(60)
    assert block is not None
    assert (block.sample_index, len(block.samples)) == (start, 512)
    assert is_whole(block.samples[:, 0])


class Ahead:
    """A clock that stands at the start of a device while it opens, and is far ahead afterwards."""

    def __init__(self, seconds: float) -> None:
        self._now_ns = [0, round(seconds * SECOND_NS)]

    def __call__(self) -> int:
        return self._now_ns.pop() if self._now_ns[1:] else 100 * SECOND_NS


def test_the_cover_of_an_album_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=RATE_HZ, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(VideoFrame.from_ndarray(grey(99), format="bgr24")))
        container.mux(cover.encode(None))
        piece = av.AudioFrame.from_ndarray(tone(1.0).reshape(1, -1), format="s16p", layout="mono")
        piece.sample_rate = RATE_HZ
        for frame in av.AudioResampler("s16p", "mono", RATE_HZ, frame_size=audio.frame_size).resample(piece):
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    for loop in (False, True):
        config = CameraConfig(source=str(path), loop=loop)
        with pytest.raises(DeviceError, match=r"song\.mp3: has no video track"):
            open_camera(config, ScriptConfig(), clock=lambda: 0, origin_ns=0)
    lines = list(import_media.read(path, tmp_path / "s.mcap"))
    assert "left out: video track (stream 1): a cover picture" in lines
    with Session(tmp_path / "s.mcap") as session:
        assert set(session.counts) == {"microphone/video"}
    played = MediaSource(path, tmp_path, "camera/front", "microphone/main", 0.0).messages()
    assert {type(message.header) for message in played} == {AudioBlock}


def test_a_microphone_counts_the_holes_of_its_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sounds=[(0.0, tone(0.2)), (0.5, tone(0.2))])
    config = MicrophoneConfig(source=str(path))
    with open_microphone(config, ScriptConfig(), clock=Ahead(0.0), origin_ns=0) as microphone:
        while True:
            try:
                microphone.read(60)
            except EOFError:
                break
        assert microphone.report().counts == {"corrupt": 0, "holes": 1, "overlaps": 0}


@pytest.mark.parametrize(("rate_hz", "first"), [(30, 2), (30, 5), (24, 1), (15, 1)])
def test_a_film_whose_beginning_is_rounded_up_keeps_its_first_frame(
    tmp_path: Path, rate_hz: int, first: int
) -> None:
    path = tmp_path / "film.mov"
    write_film(path, "libx264", [grey(level) for level in LEVELS[:5]], rate_hz=rate_hz, first=first)
    assert [number for _, number in seen(path)] == list(range(5))
    assert [at_s for at_s, _ in seen(path)] == pytest.approx([n / rate_hz for n in range(5)], abs=1e-4)
    list(import_media.read(path, tmp_path / "s.mcap"))
    assert len(list(read(tmp_path / "s.mcap"))) == 5
