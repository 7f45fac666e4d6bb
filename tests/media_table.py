"""Sixty media files made by ffmpeg, and how their import compares with ffprobe.

`python -m tests.media_table` prints the table: files by container and codec, worst deviations.
"""

import json
import random
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.messages import AudioBlock, CameraFrame
from perception.session import read
from perception.session.convert import import_media

SEED = 12
FILES = 60
_FRAME_HZ = 25
# Container, video codecs, sound codecs, whether it keeps irregular times; an empty codec is no such track.
_KINDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], bool], ...] = (
    ("mp4", ("libx264", "libx265", "mpeg4"), ("aac", "libmp3lame", "ac3", "alac", ""), True),
    ("mov", ("mjpeg", "prores_ks", "libx264"), ("pcm_s16be", "pcm_f32le", "aac", ""), True),
    ("mkv", ("libx264", "ffv1", "mjpeg", "libvpx"), ("flac", "libopus", "pcm_s24le", "libvorbis", ""), True),
    ("webm", ("libvpx", "libvpx-vp9"), ("libopus", "libvorbis", ""), True),
    ("avi", ("mpeg4", "mjpeg", "libx264", "ffv1"), ("pcm_s16le", "libmp3lame", "adpcm_ima_wav", ""), False),
    ("ts", ("libx264", "mpeg2video"), ("aac", "mp2", "ac3", ""), False),
    ("mpg", ("mpeg2video",), ("mp2", ""), False),
    ("flv", ("flv1", "libx264"), ("aac", "libmp3lame", ""), True),
    ("wmv", ("wmv2", "msmpeg4"), ("wmav2",), False),
    ("ogv", ("libtheora",), ("libvorbis", "flac", ""), False),
    ("gif", ("gif",), ("",), True),
    ("h264", ("libx264",), ("",), False),
    ("hevc", ("libx265",), ("",), False),
    ("m2v", ("mpeg2video",), ("",), False),
    ("mjpeg", ("mjpeg",), ("",), False),
    ("y4m", ("wrapped_avframe",), ("",), False),
    ("wav", ("",), ("pcm_s16le", "pcm_u8", "pcm_f32le", "adpcm_ima_wav", "adpcm_ms", "pcm_alaw"), False),
    ("flac", ("",), ("flac",), False),
    ("mp3", ("",), ("libmp3lame",), False),
    ("m4a", ("",), ("aac", "alac"), False),
    ("ogg", ("",), ("libvorbis", "libopus", "flac"), False),
    ("aac", ("",), ("aac",), False),
    ("aiff", ("",), ("pcm_s16be",), False),
    ("au", ("",), ("pcm_s16be", "pcm_mulaw"), False),
)
_RATES_HZ = {
    "libopus": (48_000,),
    "libmp3lame": (22_050, 44_100, 48_000),
    "mp2": (44_100, 48_000),
    "ac3": (44_100, 48_000),
    "wmav2": (22_050, 44_100),
    "aac": (16_000, 44_100, 48_000, 96_000),
    "flv": (22_050, 44_100),
}
_ANY_RATE_HZ = (6000, 8000, 11_025, 16_000, 44_100, 96_000, 192_000)
_MOST_CHANNELS = {"libmp3lame": 2, "mp2": 2, "wmav2": 2, "adpcm_ima_wav": 2, "adpcm_ms": 2, "libvorbis": 2}
_KEEP_OFFSETS = ("mp4", "mov", "mkv", "webm", "ts", "mpg", "flv")
_TURNS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1))


@dataclass(frozen=True)
class Case:
    """One file to make."""

    number: int
    container: str
    video: str
    audio: str
    rate_hz: int
    channels: int
    turn: tuple[int, int, int, int]
    offset_s: float
    late_s: float
    """How much later the sound begins."""
    vfr: bool

    @property
    def name(self) -> str:
        """What identifies it."""
        parts = [f"{self.number:02}", self.container, self.video, self.audio]
        if self.audio:
            parts.append(f"{self.rate_hz}x{self.channels}")
        if self.turn != _TURNS[0]:
            parts.append("turned")
        if self.offset_s:
            parts.append(f"from{self.offset_s:g}s")
        if self.late_s:
            parts.append(f"sound{self.late_s:g}s")
        if self.vfr:
            parts.append("vfr")
        return "-".join(part for part in parts if part)


def cases(seed: int = SEED, files: int = FILES) -> list[Case]:
    """Return what to make, the same in every run: every container in turn, the rest drawn."""
    draw = random.Random(seed)
    made = []
    for number in range(files):
        container, videos, audios, irregular = _KINDS[number % len(_KINDS)]
        video, audio = draw.choice(videos), draw.choice(audios)
        rates = _RATES_HZ.get(container, _RATES_HZ.get(audio, _ANY_RATE_HZ))
        most = _MOST_CHANNELS.get(audio, 2 if container in ("flv", "wmv") else 6)
        made.append(
            Case(
                number,
                container,
                video,
                audio,
                draw.choice(rates),
                draw.choice([channels for channels in (1, 2, 6) if channels <= most]),
                draw.choice(_TURNS) if container in ("mp4", "mov") else _TURNS[0],
                draw.choice((0.0, 0.0, 3.7, 100.0)) if container in ("mkv", "ts", "mpg", "flv") else 0.0,
                draw.choice((0.0, 0.3)) if video and audio and container in _KEEP_OFFSETS else 0.0,
                irregular and draw.random() < 0.5,
            )
        )
    return made


def make(case: Case, folder: Path) -> Path:
    """Write the file with ffmpeg."""
    path = folder / f"{case.name}.{case.container}"
    seconds = 1 + case.number % 3 * 0.4
    command = ["ffmpeg", "-v", "error", "-y"]
    if case.video:
        command += ["-f", "lavfi", "-i", f"testsrc=s=64x48:r={_FRAME_HZ}:d={seconds}"]
    if case.audio:
        command += ["-itsoffset", str(case.late_s)] if case.late_s else []
        command += ["-f", "lavfi", "-i", f"sine=440:r={case.rate_hz}:d={seconds}"]
    if case.vfr:
        command += ["-vf", "select='not(mod(n,3))+lt(mod(n,7),1)'"]
    if case.video:
        command += ["-c:v", case.video]
    if case.video == "prores_ks":
        command += ["-pix_fmt", "yuv422p10le"]
    elif case.video not in ("gif", "mjpeg"):
        command += ["-pix_fmt", "yuv420p"]
    if case.video == "libx265":
        command += ["-x265-params", "log-level=none"]
    if case.audio:
        command += ["-c:a", case.audio, "-ac", str(case.channels), "-ar", str(case.rate_hz)]
    if case.offset_s:
        command += ["-output_ts_offset", str(case.offset_s)]
    command += ["-strict", "-2", "-shortest", "-threads", "1", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    if case.turn != _TURNS[0]:
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 44
        a, b, c, d = (value << 16 for value in case.turn)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    return path


@dataclass(frozen=True)
class Facts:
    """What a file holds; times in seconds from its start."""

    frames: int
    size: tuple[int, int]
    times_s: tuple[float, ...]
    rate_hz: int
    channels: int
    sound_s: tuple[float, float]
    """Where the sound begins and ends."""
    end_s: float


def probed(path: Path) -> Facts:
    """Return what ffprobe finds, frame by frame."""
    command = ["ffprobe", "-v", "error", "-show_frames", "-show_streams", "-show_format", "-of", "json"]
    found = json.loads(subprocess.run([*command, str(path)], check=True, capture_output=True).stdout)
    zero_s = float(found["format"].get("start_time", 0.0))
    video = [frame for frame in found["frames"] if frame["media_type"] == "video"]
    audio = [frame for frame in found["frames"] if frame["media_type"] == "audio"]
    streams = {stream["codec_type"]: stream for stream in found["streams"]}
    times_s = _times(video, zero_s, 1 / _FRAME_HZ)
    if video and "pts" not in video[0]:
        # Only decoding has times, which are as much later as frames wait for others; the stream knows better.
        begin_s = float(streams["video"].get("start_time", zero_s)) - zero_s
        times_s = [begin_s + at_s - times_s[0] for at_s in times_s]
    size, begin_s, end_s, rate_hz, channels = (0, 0), 0.0, 0.0, 0, 0
    if video:
        size = (video[0]["width"], video[0]["height"])
        turns = [one.get("rotation", 0) for one in streams["video"].get("side_data_list", [])]
        size = size[::-1] if any(turn % 180 for turn in turns) else size
    if audio:
        rate_hz, channels = int(streams["audio"]["sample_rate"]), streams["audio"]["channels"]
        begin_s = _times(audio, zero_s, 0.0)[0]
        end_s = begin_s + sum(frame["nb_samples"] for frame in audio) / rate_hz
    last_s = max([*times_s, 0.0])
    return Facts(len(video), size, tuple(times_s), rate_hz, channels, (begin_s, end_s), max(last_s, end_s))


def _times(frames: list[dict[str, Any]], zero_s: float, period_s: float) -> list[float]:
    times_s: list[float] = []
    for frame in frames:
        own = frame.get("best_effort_timestamp_time")
        follows = times_s[-1] + period_s if times_s else 0.0
        times_s.append(float(own) - zero_s if own is not None else follows)
    return times_s


def imported(path: Path, target: Path) -> Facts:
    """Return what the session of a file holds."""
    list(import_media.read(path, target))
    origin_ns = path.stat().st_mtime_ns
    times_s: list[float] = []
    pieces: list[np.ndarray[Any, np.dtype[np.int16]]] = []
    size, rate_hz, channels = (0, 0), 0, 0
    for message in read(target):
        header = message.header
        if isinstance(header, CameraFrame):
            times_s.append((header.stamp_ns - origin_ns) / 1e9)
            size = (header.width, header.height)
        elif isinstance(header, AudioBlock):
            rate_hz, channels = header.rate_hz, header.channels
            pieces.append(np.frombuffer(message.payload, "<i2").reshape(-1, channels))
    sound = np.concatenate(pieces) if pieces else np.zeros((0, 1), np.int16)
    heard = np.flatnonzero(np.abs(sound.astype(np.int32)).max(axis=1) > 0)
    begin_s = heard[0] / rate_hz if len(heard) else 0.0
    end_s = len(sound) / rate_hz if rate_hz else 0.0
    last_s = max([*times_s, 0.0])
    return Facts(len(times_s), size, tuple(times_s), rate_hz, channels, (begin_s, end_s), max(last_s, end_s))


@dataclass(frozen=True)
class Deviation:
    """How far an import is from ffprobe, in seconds."""

    frames: int
    times_s: float
    duration_s: float
    offset_s: float

    @property
    def is_within_a_frame(self) -> bool:
        """Whether nothing is further apart than a frame."""
        period_s = 1 / _FRAME_HZ + 1e-6
        return not self.frames and max(self.times_s, self.duration_s, self.offset_s) <= period_s


def compare(ours: Facts, theirs: Facts) -> Deviation:
    """Return the deviations of one file."""
    both = zip(ours.times_s, theirs.times_s, strict=False)
    offset_s = 0.0
    if ours.times_s and theirs.times_s and ours.rate_hz:
        offset_s = (ours.times_s[0] - ours.sound_s[0]) - (theirs.times_s[0] - theirs.sound_s[0])
    return Deviation(
        ours.frames - theirs.frames,
        max((abs(one - other) for one, other in both), default=0.0),
        abs(ours.end_s - theirs.end_s),
        abs(offset_s),
    )


def main() -> None:
    """Print the table."""
    rows: defaultdict[str, list[Deviation]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(*map(int, sys.argv[1:])):
            path = make(case, Path(folder))
            found = compare(imported(path, path.with_suffix(".mcap")), probed(path))
            if not found.is_within_a_frame:
                print(case.name, found)
            rows[f"{case.container}: {case.video or '-'} {case.audio or '-'}"].append(found)
    print("| container: picture sound | files | frames off | worst time | duration | A/V offset (ms) |")
    print("|---|---|---|---|---|---|")
    for kind, found_all in sorted(rows.items()):
        names = ("times_s", "duration_s", "offset_s")
        worst = [max(getattr(one, name) for one in found_all) * 1000 for name in names]
        off = max(abs(one.frames) for one in found_all)
        print(f"| {kind} | {len(found_all)} | {off} | {worst[0]:.1f} | {worst[1]:.1f} | {worst[2]:.1f} |")


if __name__ == "__main__":
    main()
