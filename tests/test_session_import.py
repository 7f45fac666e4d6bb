"""What people's media files are like: nothing good is lost with what is broken, and every loss is said."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from av.audio.frame import AudioFrame
from av.stream import Disposition
from av.video.frame import VideoFrame
from click.testing import CliRunner

from perception.cli.session import session as command
from perception.errors import DeviceError, SessionError
from perception.messages import AudioBlock, CameraFrame, TextCommand
from perception.session import Session, read
from perception.session.convert import import_media
from perception.session.convert.selection import Selection
from perception.units import SECOND_NS
from tests.media import FRAME_HZ, RATE_HZ, grey, noise, tone, write_clip, write_film, write_wav


def write_tracks(
    path: Path,
    films: Sequence[Sequence[npt.NDArray[np.uint8]]],
    sounds: Sequence[npt.NDArray[np.int16]],
    times_s: Sequence[float] | None = None,
) -> Path:
    """Write several tracks of each kind; frames at `times_s`, else at 25 Hz."""
    with av.open(str(path), "w") as container:
        videos = [container.add_stream("mjpeg", rate=FRAME_HZ) for _ in films]
        audios = [container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono") for _ in sounds]
        for video, pictures in zip(videos, films, strict=True):
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt = "yuvj420p"
            video.codec_context.time_base = Fraction(1, 1000)
        for video, pictures in zip(videos, films, strict=True):
            for number, picture in enumerate(pictures):
                frame = VideoFrame.from_ndarray(picture, format="bgr24")
                at_s = number / FRAME_HZ if times_s is None else times_s[number]
                frame.pts, frame.time_base = round(at_s * 1000), Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for audio, heard in zip(audios, sounds, strict=True):
            piece = AudioFrame.from_ndarray(heard.reshape(1, -1), format="s16", layout="mono")
            piece.sample_rate, piece.pts = RATE_HZ, 0
            container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


def imported(path: Path, selection: Selection | None = None) -> tuple[list[str], dict[str, int]]:
    """Return the lines of an import, and the messages by topic."""
    target = path.with_suffix(".mcap")
    target.unlink(missing_ok=True)
    lines = list(import_media.read(path, target, None, selection or Selection()))
    with Session(target) as session:
        return lines, dict(session.counts)


@pytest.mark.parametrize(
    ("created", "at_s"),
    [("2024-05-06T07:08:09Z", 1_714_979_289), ("1970-01-01T00:00:00Z", 99), ("1904-01-01T00:00:00Z", 99)],
)
def test_stamps_begin_when_the_film_was_made_or_the_file_where_it_does_not_say(
    tmp_path: Path, created: str, at_s: int
) -> None:
    """Writers that do not know the time leave the zero of 1970 or of 1904."""
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["creation_time"] = created
        sound = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        piece = AudioFrame.from_ndarray(noise(RATE_HZ).reshape(1, -1), format="s16", layout="mono")
        piece.sample_rate, piece.pts = RATE_HZ, 0
        container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    os.utime(path, (99, 99))
    imported(path)
    assert next(read(path.with_suffix(".mcap"))).header.stamp_ns == at_s * SECOND_NS


def damage_sound(path: Path) -> Path:
    """Let a .mov say that its 16-bit sound is of a codec that nobody knows."""
    data = bytearray(path.read_bytes())
    at = data.index(b"sowt", data.index(b"stsd", data.index(b"soun")))
    data[at : at + 4] = b"zzzz"
    path.write_bytes(data)
    return path


def test_sound_without_a_decoder_leaves_the_picture(tmp_path: Path) -> None:
    path = write_tracks(tmp_path / "film.mov", [[grey(9)] * 10], [noise(6400)])
    lines, counts = imported(damage_sound(path))
    assert counts == {"camera/video": 10}
    assert lines == ["camera/video: 10 messages", "left out: audio track (stream 1): no decoder for it"]
    with Session(path.with_suffix(".mcap")) as session:
        assert session.metadata["imported"]["notes"] == lines[1:]


def test_sound_that_is_promised_and_never_comes_leaves_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "film.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg2video", rate=FRAME_HZ)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for picture in [VideoFrame.from_ndarray(grey(9), format="bgr24") for _ in range(10)]:
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == 0
    lines, counts = imported(path)
    assert counts == {"camera/video": 10}
    assert lines[1].startswith("left out: audio track (stream 1): ")


def test_a_pipe_is_said_to_be_one(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "film.mp4")
    with pytest.raises(
        DeviceError, match=r"film\.mp4: is a pipe or a device, not a file that can be played$"
    ):
        imported(path)


def test_a_file_of_which_nothing_can_be_decoded_says_why(tmp_path: Path) -> None:
    path = damage_sound(write_tracks(tmp_path / "film.mov", [], [noise(6400)]))
    with pytest.raises(DeviceError, match=r"nothing in it can be decoded: left out: audio .* no decoder"):
        imported(path)
    assert not path.with_suffix(".mcap").exists()


@pytest.mark.parametrize("rate_hz", [1000, 6000, 11_025, 96_000, 384_000, 768_000])
def test_sound_keeps_its_rate(tmp_path: Path, rate_hz: int) -> None:
    path = write_wav(tmp_path / "a.wav", noise(4000), rate_hz)
    lines, _ = imported(path)
    messages = list(read(path.with_suffix(".mcap")))
    assert {one.header.rate_hz for one in messages if isinstance(one.header, AudioBlock)} == {rate_hz}
    heard = np.concatenate([np.frombuffer(one.payload, "<i2") for one in messages])
    np.testing.assert_array_equal(heard, noise(4000))
    assert len(lines) == 1


@pytest.mark.parametrize(("rate_hz", "becomes_hz"), [(500, 1000), (1_536_000, 768_000)])
def test_sound_of_a_rate_that_no_message_can_say_is_resampled(
    tmp_path: Path, rate_hz: int, becomes_hz: int
) -> None:
    lines, _ = imported(write_wav(tmp_path / "a.wav", noise(4000), rate_hz))
    assert lines[1] == f"microphone/video: resampled from {rate_hz} Hz to {becomes_hz} Hz"


def test_the_default_track_of_a_film_is_its_first(tmp_path: Path) -> None:
    """Some films begin with a track that is one picture, the poster, and not marked as one."""
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("mjpeg", rate=FRAME_HZ) for _ in range(2)]
        for track, disposition in zip(tracks, (Disposition.comment, Disposition.default), strict=True):
            track.width, track.height, track.pix_fmt = 64, 48, "yuvj420p"
            track.disposition = disposition
        for track, levels in zip(tracks, ([9], range(20, 120, 10)), strict=True):
            for picture in [VideoFrame.from_ndarray(grey(level), format="bgr24") for level in levels]:
                container.mux(track.encode(picture))
            container.mux(track.encode(None))
    _, counts = imported(path)
    assert counts == {"camera/video": 10, "camera/video-2": 1}


@pytest.mark.parametrize("channels", [6, 32, 64])
def test_sound_keeps_its_channels(tmp_path: Path, channels: int) -> None:
    heard = np.arange(800 * channels, dtype=np.int16).reshape(800, channels)
    soundfile.write(tmp_path / "a.wav", heard, RATE_HZ)
    imported(tmp_path / "a.wav")
    messages = list(read(tmp_path / "a.mcap"))
    assert {one.header.channels for one in messages if isinstance(one.header, AudioBlock)} == {channels}
    found = np.concatenate([np.frombuffer(one.payload, "<i2") for one in messages])
    np.testing.assert_array_equal(found.reshape(800, channels), heard)


def test_more_channels_than_a_message_can_say_are_refused_in_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((800, 65), np.int16), RATE_HZ)
    with pytest.raises(DeviceError, match=r"left out: audio track \(stream 0\): 65 channels, more than 64"):
        imported(tmp_path / "a.wav")


def test_every_track_is_taken(tmp_path: Path) -> None:
    films = [[grey(20)] * 5, [grey(200)] * 5]
    path = write_tracks(tmp_path / "film.mkv", films, [noise(3200, 1), noise(3200, 2)])
    _, counts = imported(path)
    assert counts == {"camera/video": 5, "camera/video-2": 5, "microphone/video": 7, "microphone/video-2": 7}
    second = [one for one in read(path.with_suffix(".mcap")) if one.topic == "microphone/video-2"]
    heard = np.concatenate([np.frombuffer(one.payload, "<i2") for one in second])
    np.testing.assert_array_equal(heard, noise(3200, 2))


def test_streams_are_named_and_chosen_as_the_profile_wants_them(tmp_path: Path) -> None:
    film = write_tracks(tmp_path / "film.mkv", [[grey(20)] * 50], [tone(2.0), tone(2.0)])
    film.with_suffix(".srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,000\none\n\n2\n00:00:01,500 --> 00:00:01,900\ntwo\n", encoding="utf-8"
    )
    target = tmp_path / "s.mcap"
    options = [
        "--camera",
        "front",
        "--microphone",
        "audio-2=main",
        "--text",
        "say",
        "--from",
        "1",
        "--to",
        "-0.2",
    ]
    named = ["--topics", "camera/*", "--topics", "microphone/main", "--topics", "text/say"]
    result = CliRunner().invoke(command, ["import", str(film), str(target), *options, *named])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "camera/front: 20 messages",
        "microphone/main: 25 messages",
        "text/say: 1 messages",
    ]
    origin_ns = film.stat().st_mtime_ns
    headers = [message.header for message in read(target)]
    assert all(origin_ns + SECOND_NS <= header.stamp_ns < origin_ns + 1.8 * SECOND_NS for header in headers)
    first = next(header for header in headers if isinstance(header, AudioBlock))
    assert (first.stamp_ns, first.sample_index) == (origin_ns + SECOND_NS, RATE_HZ)
    assert [header.text for header in headers if isinstance(header, TextCommand)] == ["two"]


def test_an_import_of_nothing_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.mkv", [grey(9)] * 10)
    with pytest.raises(SessionError, match=r"matches none of: video \(camera/video\)"):
        imported(path, Selection(topics=("text/*",)))
    with pytest.raises(SessionError, match="nothing to import"):
        imported(path, Selection(start_s=5.0))
    assert not path.with_suffix(".mcap").exists()


def test_a_damaged_picture_is_counted_and_the_others_are_kept(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.mkv", [grey(20 * number) for number in range(10)])
    data = bytearray(path.read_bytes())
    at = [found for found in range(len(data)) if data[found : found + 2] == b"\xff\xc0"][4]
    data[at + 5 : at + 9] = bytes(4)  # the fifth picture says that it is 0 x 0
    path.write_bytes(data)
    lines, counts = imported(path)
    assert counts == {"camera/video": 9}
    assert "camera/video: 1 packets or frames left out: damaged, or dependent on a damaged one" in lines


@pytest.mark.parametrize("suffix", ["flac", "mp3", "aiff", "au"])
def test_sound_that_is_cut_off_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(4 * RATE_HZ), RATE_HZ)
    assert len(imported(path)[0]) == 1
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    there = " bytes are present" if suffix in ("aiff", "au") else " s"
    assert imported(path)[0][-1].endswith(f"{there}: is it cut off?")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
def test_a_last_picture_that_is_shown_long_is_no_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        video = container.add_stream("flv1" if suffix == "flv" else "mpeg4", rate=1)
        video.width, video.height = 64, 48
        for number in range(4):
            frame = VideoFrame.from_ndarray(grey(9 * number), format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert imported(path)[0] == ["camera/video: 4 messages"]


@pytest.mark.parametrize("suffix", ["mkv", "wav", "avi", "flv"])
def test_a_file_that_is_cut_off_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        write_wav(path, noise(4 * RATE_HZ))
    else:
        codec = "flv1" if suffix == "flv" else "mpeg4"
        noisy = np.random.default_rng(1).integers(0, 255, (100, 48, 64, 3), np.uint8)
        write_film(path, codec, list(noisy))
    whole_lines, whole = imported(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    lines, counts = imported(path)
    (topic,) = whole
    assert len(whole_lines) == 1
    assert 0.3 * whole[topic] < counts[topic] < 0.7 * whole[topic]
    there = f"{len(data) // 2} of {len(data)} bytes are present" if suffix in ("wav", "avi") else "of 4.0"
    assert there in lines[-1]
    assert lines[-1].endswith(": is it cut off?")


CUT_SHORT = {
    "caf": " bytes are present",
    "w64": " bytes are present",
    "asf": " bytes are present",
    "wmv": " bytes are present",
    "mp4": " bytes are present",
    "gif": "its end is missing",
    "ts": "its last packet is incomplete",
    "mpg": "its last packet is incomplete",
    "y4m": "its last picture is incomplete",
    "mjpeg": "its last picture is incomplete",
    "aac": "its last frame is incomplete",
    "ogg": "its last page is incomplete",
    "ogv": "its last page is incomplete",
}


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


@needs_ffmpeg
@pytest.mark.parametrize("suffix", CUT_SHORT)
def test_a_file_that_lacks_its_last_bytes_says_so(tmp_path: Path, suffix: str) -> None:
    path = made_by_ffmpeg(tmp_path / f"a.{suffix}")
    assert not [line for line in imported(path)[0] if "cut off" in line]
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert imported(path)[0][-1].endswith(f"{CUT_SHORT[suffix]}: is it cut off?")


@needs_ffmpeg
def test_an_ogg_that_ends_between_two_pages_says_so(tmp_path: Path) -> None:
    path = made_by_ffmpeg(tmp_path / "a.ogg")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"OggS")])
    assert imported(path)[0][-1] == f"{path}: its last page is missing: is it cut off?"


def made_by_ffmpeg(path: Path) -> Path:
    """A picture and a sound, where the format takes them."""
    picture = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1"]
    sound = ["-f", "lavfi", "-i", "anoisesrc=d=2:r=16000:seed=1:a=0.3"]
    asked = {"mp4": ["-movflags", "faststart"], "ogg": ["-f", "ogg", "-page_duration", "200000"]}
    inputs = {
        **dict.fromkeys(("caf", "w64", "ogg", "aac"), sound),
        **dict.fromkeys(("asf", "wmv", "ts", "mpg", "ogv"), picture + sound),
    }
    command = [
        "ffmpeg",
        "-v",
        "error",
        *inputs.get(path.suffix[1:], picture),
        *asked.get(path.suffix[1:], []),
    ]
    subprocess.run([*command, str(path)], check=True)
    return path


def test_holes_are_said_and_irregular_times_kept(tmp_path: Path) -> None:
    times_s = [0.0, 0.1, 0.15, 0.5, 0.52, 3.6, 3.7]
    path = write_tracks(tmp_path / "film.mkv", [[grey(9)] * 7], [], times_s)
    lines, _ = imported(path)
    origin_ns = path.stat().st_mtime_ns
    frames = [one.header for one in read(path.with_suffix(".mcap")) if isinstance(one.header, CameraFrame)]
    assert [(frame.stamp_ns - origin_ns) / 1e9 for frame in frames] == pytest.approx(times_s, abs=1e-6)
    assert lines[1:] == ["camera/video: 1 holes between pictures, the longest 3.08 s"]


def test_a_slow_film_has_no_holes(tmp_path: Path) -> None:
    path = write_tracks(tmp_path / "film.mkv", [[grey(9)] * 4], [], [0.0, 2.0, 4.0, 6.0])
    assert imported(path)[0] == ["camera/video: 4 messages"]


def test_a_hole_in_the_sound_is_filled_and_said(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sounds=[(0.0, noise(3200)), (0.5, noise(3200))])
    assert imported(path)[0][1:] == ["microphone/video: 1 holes, 0.30 s in all, are filled with silence"]


def test_sound_that_drifts_from_its_stamps_stays_with_the_picture(tmp_path: Path) -> None:
    """Every piece begins 2 ms later than the one before it ends, which alone is no hole."""
    pieces = [(0.102 * number, tone(0.1)) for number in range(100)]
    path = write_clip(tmp_path / "a.mkv", sounds=pieces)
    imported(path)
    heard = np.concatenate([np.frombuffer(one.payload, "<i2") for one in read(path.with_suffix(".mcap"))])
    assert len(heard) / RATE_HZ == pytest.approx(0.102 * 99 + 0.1, abs=0.025)


def test_tags_that_are_not_utf_8_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLEXX"
        audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        piece = AudioFrame.from_ndarray(noise(3200).reshape(1, -1), format="s16", layout="mono")
        piece.sample_rate = RATE_HZ
        container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLEXX", b"TIT\xe9\xff\xfeX"))
    assert imported(path)[1] == {"microphone/video": 7}


def test_subtitles_within_a_film_count_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    (tmp_path / "a.srt").write_text("1\n00:00:11,000 --> 00:00:12,000\nstop\n", encoding="utf-8")
    with av.open(str(path), "w") as container, av.open(str(tmp_path / "a.srt")) as words:
        video = container.add_stream("mjpeg", rate=FRAME_HZ)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        text = container.add_stream_from_template(words.streams[0])
        for number in range(50):
            frame = VideoFrame.from_ndarray(grey(9), format="bgr24")
            frame.pts, frame.time_base = 250 + number, Fraction(1, FRAME_HZ)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for packet in words.demux():
            if packet.size:
                packet.stream = text
                container.mux(packet)
    lines, _ = imported(path)
    said = next(one.header for one in read(path.with_suffix(".mcap")) if isinstance(one.header, TextCommand))
    assert said.stamp_ns - path.stat().st_mtime_ns == SECOND_NS
    assert lines == ["camera/video: 50 messages", "text/subtitles: 1 messages"]
