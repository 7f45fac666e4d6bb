"""Files decoded by time: continuous sound, picture and sound in sync, laps, damage."""

import re
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from av.video.frame import VideoFrame

from perception.devices.media import Track
from perception.devices.pixels import FilmPixels, Layout
from perception.devices.sound import Sound
from perception.devices.video import FileSource
from perception.errors import DeviceError, SessionError
from perception.profile import CameraConfig
from perception.retrieval.search import sound_query
from perception.session.convert import import_media
from perception.training.media import MediaSource
from tests.media import FRAME_HZ, RATE_HZ, grey, noise, write_clip, write_film, write_wav


def sound_of(path: Path, *, loop: bool = False, start: int = 0, channels: int = 1) -> Sound:
    return Sound(str(path), rate_hz=RATE_HZ, channels=channels, sample_format="s16", loop=loop, start=start)


def samples_of(sound: Sound, limit: int = 1 << 30) -> npt.NDArray[np.int16]:
    """Return the sound, mono, up to `limit`."""
    played: list[npt.NDArray[np.generic]] = []
    for block in sound.blocks(512):
        played.append(block[:, 0])
        if sum(map(len, played)) >= limit:
            break
    return np.concatenate(played)[:limit].astype(np.int16)


def brightness(path: Path, *, loop: bool = False, start_s: float = 0.0) -> list[tuple[float, int]]:
    """Return time and mean level of every frame of the first two laps."""
    track: Track[VideoFrame] = Track(str(path), "video", loop=loop, start_s=start_s)
    seen = []
    for lap_s, frames in track.laps():
        seen += [(lap_s + at, round(float(frame.to_ndarray(format="gray").mean()))) for at, frame in frames]
        if lap_s > start_s:
            break
    return seen


def test_a_wav_of_the_wanted_rate_passes_bit_for_bit(tmp_path: Path) -> None:
    samples = noise(5000)
    assert np.array_equal(samples_of(sound_of(write_wav(tmp_path / "a.wav", samples))), samples)


def test_blocks_are_of_one_size_but_the_last(tmp_path: Path) -> None:
    sound = sound_of(write_wav(tmp_path / "a.wav", noise(1200)))
    assert [block.shape for block in sound.blocks(512)] == [(512, 1), (512, 1), (176, 1)]


def test_other_rates_and_channels_are_resampled_and_mixed(tmp_path: Path) -> None:
    at_s = np.arange(48_000) / 48_000
    sine = (8000 * np.sin(2 * np.pi * 440 * at_s)).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", np.stack([sine, sine], axis=1), rate_hz=48_000)
    received = samples_of(sound_of(path)).astype(np.float64)
    wanted = 8000 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    assert len(received) == RATE_HZ
    assert np.corrcoef(received[100:-100], wanted[100:-100])[0, 1] > 0.9999


def test_mono_becomes_as_many_channels_as_wanted(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(1024))
    blocks = list(sound_of(path, channels=2).blocks(512))
    assert [block.shape for block in blocks] == [(512, 2), (512, 2)]
    assert np.array_equal(blocks[0][:, 0], blocks[0][:, 1])


def test_sound_that_starts_after_the_picture_is_preceded_by_silence(tmp_path: Path) -> None:
    samples = noise(4000)
    path = write_clip(tmp_path / "a.mkv", [grey(90)] * 10, [(0.2, samples)])
    received = samples_of(sound_of(path))
    assert not received[:3200].any()
    assert np.array_equal(received[3200:], samples)


def test_a_hole_in_the_sound_is_filled_with_silence(tmp_path: Path) -> None:
    first, second = noise(3200, seed=1), noise(3200, seed=2)
    received = samples_of(sound_of(write_clip(tmp_path / "a.mkv", sounds=[(0.0, first), (0.5, second)])))
    assert np.array_equal(received[:3200], first)
    assert not received[3200:8000].any()
    assert np.array_equal(received[8000:], second)


def test_a_flash_and_a_click_at_one_time_stay_together(tmp_path: Path) -> None:
    pictures = [grey(230 if number == 6 else 20) for number in range(12)]
    click = np.zeros(round(0.48 * RATE_HZ), np.int16)
    click[round(6 / FRAME_HZ * RATE_HZ)] = 20_000
    path = write_clip(tmp_path / "a.mkv", pictures, [(0.0, click)])
    flash_s = [at for at, level in brightness(path, loop=True) if level > 150]
    received = samples_of(sound_of(path, loop=True), 2 * len(click))
    click_s = np.flatnonzero(received > 10_000) / RATE_HZ
    assert len(flash_s) == len(click_s) == 2
    assert flash_s == pytest.approx(click_s, abs=1e-3)


def test_a_lap_lasts_as_long_as_the_longer_track(tmp_path: Path) -> None:
    samples = noise(3200)
    path = write_clip(tmp_path / "a.mkv", [grey(90)] * 10, [(0.0, samples)])
    received = samples_of(sound_of(path, loop=True), 9600)
    assert np.array_equal(received[:3200], samples)
    assert not received[3200:6400].any()
    assert np.array_equal(received[6400:9600], samples)


@pytest.mark.parametrize("start", [1, 700, 4999, 5000, 5001, 123_456])
def test_a_device_that_joins_late_hears_what_it_would_have_heard(tmp_path: Path, start: int) -> None:
    samples = noise(5000)
    path = write_wav(tmp_path / "a.wav", samples)
    received = samples_of(sound_of(path, loop=True, start=start), 6000)
    lap = round(5000 / RATE_HZ * 1e6) / 1e6 * RATE_HZ
    assert lap == 5000
    assert np.array_equal(received, np.resize(np.roll(samples, -start), 6000))


def test_a_camera_that_joins_late_sees_what_it_would_have_seen(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(20 * number) for number in range(10)])
    late = brightness(path, loop=True, start_s=0.55)
    assert late[0][0] == pytest.approx(0.56)
    assert [level for _, level in late[:8]] == pytest.approx([80, 100, 120, 140, 160, 180, 0, 20], abs=3)


def test_damaged_packets_are_counted_and_the_rest_is_played(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(20 * number) for number in range(10)])
    data = bytearray(path.read_bytes())
    sizes = [found.end() for found in re.finditer(rb"\xff\xc0...", bytes(data), re.DOTALL)]
    data[sizes[4] : sizes[4] + 4] = bytes(4)  # the header of the fifth picture has 0 x 0
    path.write_bytes(data)
    track: Track[VideoFrame] = Track(str(path), "video", loop=False)
    times = [at for _, frames in track.laps() for at, _ in frames]
    assert track.corrupt == 1
    assert times == pytest.approx([number / FRAME_HZ for number in range(10) if number != 4], abs=1e-3)


def test_what_cannot_be_played_is_one_clear_line(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "sound.wav", noise(1000))
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no film " * 500)
    with pytest.raises(DeviceError, match=r"none\.mp4: no such file"):
        Track(str(tmp_path / "none.mp4"), "video", loop=False)
    with pytest.raises(DeviceError, match=r"sound\.wav: has no video track"):
        Track(str(wav), "video", loop=False)
    with pytest.raises(DeviceError, match=r"garbage\.mp4: cannot be opened: Invalid data"):
        Track(str(garbage), "video", loop=False)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi"])
def test_what_is_built_on_a_damaged_picture_is_left_out_and_counted(tmp_path: Path, suffix: str) -> None:
    """The pictures between the damage and the next key frame would contain parts of other pictures."""
    moving = np.random.default_rng(1).integers(0, 255, (48, 300, 3)).astype(np.uint8).repeat(2, axis=1)
    pictures = [np.ascontiguousarray(moving[:, 4 * number : 4 * number + 64]) for number in range(50)]
    path = write_film(tmp_path / f"film.{suffix}", "libx264", pictures)
    whole = levels(path)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    data = path.read_bytes()
    lost = packets[15]
    at = data.index(lost[40:120])
    path.write_bytes(data[:at] + b"\xa5" * (len(lost) // 2) + data[at + len(lost) // 2 :])
    found = levels(path)
    assert set(found) <= set(whole)
    assert max(float(np.abs(found[at_s] - whole[at_s]).max()) for at_s in found) < 3
    assert len(found) < 50
    track: Track[VideoFrame] = Track(str(path), "video", loop=False)
    assert [at_s for _, frames in track.laps() for at_s, _ in frames] == pytest.approx(list(found), abs=1e-3)
    assert track.corrupt == 50 - len(found)


def levels(path: Path) -> dict[float, npt.NDArray[np.float64]]:
    """Return the grey pictures of a film by their times."""
    track: Track[VideoFrame] = Track(str(path), "video", loop=False)
    return {
        round(at_s, 3): frame.to_ndarray(format="gray").astype(np.float64)
        for _, frames in track.laps()
        for at_s, frame in frames
    }


def film_of_sizes(path: Path, *sizes: tuple[int, int]) -> Path:
    """Write black pictures of some (width, height) into one track, whose header has the size of the first."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        for number, (width, height) in enumerate(sizes):
            packet = Packet(cv2.imencode(".jpg", np.zeros((height, width), np.uint8))[1].tobytes())
            packet.stream, packet.time_base = stream, Fraction(1, 5)
            packet.pts = packet.dts = number
            container.mux(packet)
    return path


def test_a_film_of_absurd_size_is_refused_by_name_on_every_path(tmp_path: Path) -> None:
    path = film_of_sizes(tmp_path / "huge.mkv", (8400, 8000))
    refused = r"huge\.mkv: no video can be decoded; .* larger than 67108864 pixels"
    with pytest.raises(SessionError, match=refused):
        list(import_media.read(path, tmp_path / "huge.mcap"))
    with pytest.raises(DeviceError, match=refused):
        list(MediaSource(path, tmp_path, "camera/front", None, 0.0).messages())
    with pytest.raises(DeviceError, match=refused):
        FileSource(
            str(path), CameraConfig(source=str(path)), clock=lambda: 0, origin_ns=0, stop=threading.Event()
        )


def h264_of_size(path: Path, width: int, height: int) -> Path:
    """Write the head of an H.264 stream, ITU-T H.264, 7.3.2: a picture of black macroblocks would follow."""

    def unsigned(*values: int) -> str:
        return "".join(f"{value + 1:0{2 * (value + 1).bit_length() - 1}b}" for value in values)

    units = [
        f"{0x67:08b}{66:08b}{0:08b}{62:08b}{unsigned(0, 0, 2, 1)}0"
        f"{unsigned(width // 16 - 1, height // 16 - 1)}1100",
        f"{0x68:08b}{unsigned(0, 0)}00{unsigned(0, 0, 0)}000{unsigned(0, 0, 0)}000",
        f"{0x65:08b}{unsigned(0, 7, 0)}0000{unsigned(0)}00{unsigned(0)}",
    ]
    padded = [f"{unit}1{'0' * (-(len(unit) + 1) % 8)}" for unit in units]
    path.write_bytes(b"".join(b"\0\0\0\1" + int(unit, 2).to_bytes(len(unit) // 8, "big") for unit in padded))
    return path


def test_a_film_that_says_its_absurd_size_is_refused_by_that(tmp_path: Path) -> None:
    path = h264_of_size(tmp_path / "huge.h264", 16000, 16000)
    with pytest.raises(
        DeviceError, match=r"huge\.h264: its pictures are 16000 x 16000, allowed are 67108864"
    ):
        Track(str(path), "video", loop=False)


def test_a_picture_that_grows_beyond_the_bound_within_a_film_is_left_out_and_counted(tmp_path: Path) -> None:
    path = film_of_sizes(tmp_path / "grows.mkv", (64, 48), (8400, 8000), (64, 48))
    track: Track[VideoFrame] = Track(str(path), "video", loop=False)
    sizes = [(frame.width, frame.height) for _, frames in track.laps() for _, frame in frames]
    assert sizes == [(64, 48)] * 2
    assert track.corrupt == 1


def test_wide_pixels_never_make_a_picture_larger_than_the_bound() -> None:
    pixels = FilmPixels(Layout((64, 64)), pixel_aspect=8.0)
    assert pixels(VideoFrame(8192, 1024, "gray")).shape == (64, 64, 3)
    assert pixels.size == (65_536, 1024)
    pixels(VideoFrame(8192, 2048, "gray"))
    assert pixels.size == (8192, 256)


def test_channels_that_cannot_be_mixed_are_one_clear_line(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.stack([noise(800)] * 3, axis=1))
    assert [block.shape for block in sound_of(path, channels=8).blocks(512)] == [(512, 8), (288, 8)]
    with pytest.raises(DeviceError, match=r"a\.wav: its 3 channels cannot become 9"):
        list(sound_of(path, channels=9).blocks(512))


def test_a_time_far_ahead_is_damage_and_no_hole(tmp_path: Path) -> None:
    """If used, it would give endless silence, and a camera would wait for years."""
    first, lost, last = noise(1600, seed=1), noise(1600, seed=2), noise(1600, seed=3)
    sounds = [(0.0, first), (0.1, last), (2e6, lost)]
    path = write_clip(tmp_path / "a.mkv", sounds=sounds)
    sound = sound_of(path)
    assert np.array_equal(samples_of(sound), np.concatenate([first, last]))
    assert sound.corrupt == 1
    assert sound.holes == 0


def test_a_long_hole_takes_little_memory(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sounds=[(0.0, noise(1600)), (600.0, noise(1600))])
    tracemalloc.start()
    played = sum(len(block) for block in sound_of(path).blocks(512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert played == 600 * RATE_HZ + 1600
    assert peak < 4_000_000


def claiming_wav(path: Path, rate_hz: int, channels: int, bytes_: int = 32_000) -> Path:
    """Write 16-bit samples, 1 s of 16 kHz, with a false header."""
    frame = 2 * channels
    kind = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * frame & 0xFFFFFFFF, frame & 0xFFFF, 16)
    head = b"RIFF" + struct.pack("<I", bytes_ + 36 & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + kind
    path.write_bytes(head + b"data" + struct.pack("<I", bytes_) + bytes(32_000))
    return path


def claiming_caf(path: Path, rate_hz: float) -> Path:
    """Core Audio files hold the rate as a double, and -1 as a length that is not known."""
    kind = struct.pack(">d4sIIIII", rate_hz, b"lpcm", 0, 2, 1, 1, 16)
    body = b"desc" + struct.pack(">q", len(kind)) + kind + b"data" + struct.pack(">qI", -1, 0) + bytes(32_000)
    path.write_bytes(b"caff\0\1\0\0" + body)
    return path


def heard_on_every_path(path: Path) -> Iterator[Callable[[], object]]:
    yield lambda: list(sound_of(path).blocks(512))
    yield lambda: list(MediaSource(path, path.parent, None, "microphone/room", 1.0).messages())
    yield lambda: sound_query(path)
    yield lambda: list(import_media.read(path, path.with_suffix(".mcap")))


UNREADABLE = "no audio can be decoded|cannot be opened"


@pytest.mark.parametrize(
    ("rate_hz", "channels", "why"),
    [
        (2**31 - 1, 1, "claims 2147483647 Hz, allowed are 100 to 1536000 Hz"),
        (2**32 - 1, 1, UNREADABLE),
        (99, 1, "claims 99 Hz"),
        (0, 1, UNREADABLE),
        (16_000, 65_535, f"65535 channels, more than 64|{UNREADABLE}"),
        (16_000, 1000, f"no way from its sound|1000 channels, more than 64|{UNREADABLE}"),
        (2**31 - 1, 65_535, f"claims 2147483647 Hz|{UNREADABLE}"),
    ],
)
def test_sound_that_claims_what_cannot_be_is_refused_by_name_on_every_path(
    rate_hz: int, channels: int, why: str, tmp_path: Path
) -> None:
    path = claiming_wav(tmp_path / "claims.wav", rate_hz, channels)
    for hear in heard_on_every_path(path):
        with pytest.raises(DeviceError, match=rf"claims\.wav: .*({why})"):
            hear()


@pytest.mark.parametrize("rate_hz", [2.0**31 - 1, float("inf"), float("nan"), -5.0, 1e-300])
def test_a_rate_that_is_no_number_of_samples_is_refused_too(rate_hz: float, tmp_path: Path) -> None:
    path = claiming_caf(tmp_path / "claims.caf", rate_hz)
    for hear in heard_on_every_path(path):
        with pytest.raises(DeviceError, match=rf"claims\.caf: .*(Hz, allowed are|{UNREADABLE})"):
            hear()


def test_sound_that_claims_to_be_endless_is_what_is_there(tmp_path: Path) -> None:
    path = claiming_wav(tmp_path / "claims.wav", RATE_HZ, 1, bytes_=0xFFFFFFF0)
    assert sum(map(len, sound_of(path).blocks(512))) == 16_000
    sound = sound_query(path).sound
    assert sound is not None
    assert len(sound[0]) == 16_000


def test_a_query_by_sound_keeps_the_end_of_a_long_file(tmp_path: Path) -> None:
    samples = noise(RATE_HZ)
    path = write_clip(tmp_path / "a.mkv", sounds=[(0.0, noise(1600)), (3000.0, samples)])
    tracemalloc.start()
    sound = sound_query(path).sound
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sound is not None
    assert len(sound[0]) == 60 * RATE_HZ
    np.testing.assert_allclose(sound[0][-RATE_HZ:], samples / 32768, atol=1e-6)
    assert peak < 20_000_000
