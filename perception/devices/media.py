"""Media files and network streams through PyAV: opening with one-line errors, decoding, looping."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Generic, Literal, TypeVar

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from perception.devices.damage import Damage, expose_damage
from perception.devices.device import no_file
from perception.errors import DeviceError
from perception.features.jpeg import MAX_PIXELS

OPEN_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 2.0
_US_PER_S: Final = 1_000_000

_SEEK_LEAD_S: Final = 1.0
"""A seek goes this long before the wanted time: some containers overshoot, MP3 needs earlier frames."""
_LEAP_S: Final = 3600.0
"""A time that is further ahead than this is damage, not a gap."""
_USUAL_RATE_HZ: Final = 25
_NO_TIMESTAMPS: Final = 0x80  # AVFMT_NOTIMESTAMPS of libavformat/avformat.h
_ANY_TAGS: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)
"""Titles and comments may have any encoding and are not used. PyAV 19 and later accept any."""
_BOUND: Final = {"max_pixels": str(MAX_PIXELS)}
"""Option of every decoder: no picture is larger, whatever the headers say."""

Kind = Literal["video", "audio"]
FrameT = TypeVar("FrameT", VideoFrame, AudioFrame)


def open_container(
    source: str | BinaryIO,
    options: dict[str, str] | None = None,
    *,
    name: str = "",
    form: str | None = None,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> InputContainer:
    """Open a file, a URL or a file object; DeviceError with a one-line reason if that fails.

    Decoders refuse pictures of more than `MAX_PIXELS`, also while FFmpeg detects what the file holds.

    Args:
        source: path, URL or file object.
        options: of FFmpeg.
        name: of a file object, for the error.
        form: FFmpeg's name of the format; None detects it.
        read_timeout_s: time limit of each read of a network stream.
    """
    try:
        timeout = (OPEN_TIMEOUT_S, read_timeout_s)
        container: InputContainer = av.open(
            source, "r", format=form, options=_BOUND | (options or {}), timeout=timeout, **_ANY_TAGS
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DeviceError(f"{name or source}: cannot be opened: {cause(error)}") from error
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = _BOUND
    return container


def check_file(path: str | Path) -> None:
    """Raise DeviceError unless `path` is a regular file: playing requires seeking."""
    if not os.path.isfile(path):
        raise DeviceError(f"{path}: {no_file(path)}")


def cause(error: Exception) -> str:
    """Return FFmpeg's reason without the address it contains."""
    return str(getattr(error, "strerror", None) or error)


def streams_of(container: InputContainer, kind: str) -> list[Stream]:
    """Return the decodable streams of one kind without cover pictures; the default stream first."""
    streams = [
        stream
        for stream in container.streams
        if stream.type == kind
        and stream.codec_context is not None
        and not stream.disposition & Disposition.attached_pic
    ]
    return sorted(streams, key=lambda stream: not stream.disposition & Disposition.default)


def length_s(path: str) -> float:
    """Return the duration of a file in seconds, from its packets if the header has none.

    Raises DeviceError as `open_container` does.
    """
    with open_container(path) as container:
        # Writers of Matroska differ in whether the duration includes the time before the first frame.
        doubtful = container.format.name.startswith("matroska") and container.start_time
        if container.duration and not doubtful:
            return container.duration / _US_PER_S
        ends: dict[int, float] = {}
        origin_s = origin_of(container)
        with suppress(av.FFmpegError):
            for packet in container.demux():
                base_s = float(packet.time_base or 0)
                before = ends.get(packet.stream_index, 0.0)
                begin = before if packet.pts is None else packet.pts * base_s - origin_s
                ends[packet.stream_index] = max(before, begin + (packet.duration or 0) * base_s)
        return max(ends.values(), default=0.0)


def origin_of(container: InputContainer) -> float:
    """Return the file's start time in seconds, without rounding to microseconds."""
    start_us = container.start_time or 0
    starts = (
        float(stream.start_time * stream.time_base) * _US_PER_S
        for stream in container.streams
        if stream.start_time is not None and stream.time_base is not None
    )
    return next((exact for exact in starts if abs(exact - start_us) <= 1), start_us) / _US_PER_S


class Track(Generic[FrameT]):
    """One stream of a media file, decoded on demand, repeated if it loops.

    Times are seconds since the file's start, with the same zero for picture and sound: so a camera and a
    microphone that play one file stay synchronous. A frame without a time begins at the end of the previous
    one.

    Args:
        path: the file.
        kind: `video` or `audio`.
        loop: start again at the end; a lap lasts as long as the whole file.
        start_s: leave out frames before this time, for a device that starts late.
        number: index of the stream among those of its kind, from 0.
    """

    def __init__(self, path: str, kind: Kind, *, loop: bool, start_s: float = 0.0, number: int = 0) -> None:
        check_file(path)
        self._path = path
        self._kind = kind
        self._number = number
        self._loop = loop
        self._start_s = start_s
        self.corrupt = 0
        """Number of packets that could not be decoded and of frames that are damaged or depend on damage."""
        self.untimed = 0
        """Number of frames without a time of their own."""
        with open_container(path) as container:
            stream = self._stream_of(container)
            aspect = stream.sample_aspect_ratio if isinstance(stream, VideoStream) else None
            self.pixel_aspect = float(aspect) if aspect else None
            """Pixel aspect ratio, width / height; None if unknown."""
        self.lap_s = length_s(path) if loop else 0.0
        if loop and not self.lap_s:
            raise DeviceError(f"{path}: duration unknown, so it cannot loop")

    def laps(self) -> Iterator[tuple[float, Iterator[tuple[float, FrameT]]]]:
        """Yield (start of the lap in s, iterator of (seconds since that start, frame)); exhaust each one.

        Raises:
            DeviceError: no frame of a lap can be decoded.
        """
        lap = int(self._start_s // self.lap_s) if self._loop else 0
        while True:
            lap_start_s = lap * self.lap_s
            skip_s = self._start_s - lap_start_s
            self._decoded = 0
            yield lap_start_s, self._one_lap(skip_s)
            if not self._decoded and skip_s <= 0:
                size = f", or its pictures larger than {MAX_PIXELS} pixels" * (self._kind == "video")
                raise DeviceError(f"{self._path}: no {self._kind} can be decoded; is the file damaged{size}?")
            if not self._loop:
                return
            lap += 1

    def _stream_of(self, container: InputContainer) -> Stream:
        streams = streams_of(container, self._kind)
        if not streams:
            there = any(one.type == self._kind and one.codec_context is None for one in container.streams)
            why = f"no decoder for its {self._kind} track" if there else f"has no {self._kind} track"
            raise DeviceError(f"{self._path}: {why}")
        context = streams[self._number].codec_context
        if isinstance(context, VideoCodecContext) and context.width * context.height > MAX_PIXELS:
            size = f"{context.width} x {context.height}"
            raise DeviceError(f"{self._path}: its pictures are {size}, allowed are {MAX_PIXELS} pixels")
        return streams[self._number]

    def _one_lap(self, skip_s: float) -> Iterator[tuple[float, FrameT]]:
        with open_container(self._path) as container:
            stream = self._stream_of(container)
            timing = _Timing(container, stream)
            if skip_s > 2 * _SEEK_LEAD_S and timing.can_seek:
                first = next(self._one_lap(0.0), None) if timing.by_decoding else None
                timing.prepare_seek(first and first[1])
                _seek(container, timing.origin_s + skip_s - _SEEK_LEAD_S)
            damage = Damage()
            if isinstance(stream, VideoStream):
                expose_damage(stream.codec_context)
            reached_s = max(skip_s, 0.0)
            for frame in self._decode(container.demux(stream), damage):
                seconds = timing.begin_s(frame)
                whole = damage.admits(frame) if isinstance(frame, VideoFrame) else not frame.is_corrupt
                if not whole or (seconds or 0.0) > reached_s + _LEAP_S:
                    self.corrupt += 1
                elif seconds is not None:
                    self._decoded += 1
                    reached_s = max(reached_s, seconds)
                    if skip_s <= 0 or seconds >= skip_s or seconds + sound_s(frame) > skip_s:
                        yield seconds, frame
            self.untimed += timing.untimed

    def _decode(self, packets: "Iterator[Packet[Stream]]", damage: Damage) -> Iterator[FrameT]:
        while True:
            try:
                packet = next(packets, None)
                if packet is not None:
                    damage.note(packet)
                frames = packet.decode() if packet is not None else None
            except (av.FFmpegError, ValueError):  # ValueError: PyAV 19 has no decoder for it
                damage.failed()
                self.corrupt += 1
                continue
            if frames is None:
                return
            yield from frames  # type: ignore[misc]


class _Timing:
    """Begin of each frame, in seconds from the file's start.

    Raw streams and AVI store decoding times only, no display times: there the first picture is at 0, and the
    offset of its decoding time applies to all.
    """

    def __init__(self, container: InputContainer, stream: Stream) -> None:
        self._stream = stream
        self.origin_s = origin_of(container)
        timeless = bool(container.format.flags & _NO_TIMESTAMPS)
        self.can_seek = not timeless
        self.by_decoding = stream.type == "video" and (timeless or container.format.name == "avi")
        self.untimed = 0
        """Number of frames whose time is the end of the previous one."""
        self._next_s: float | None = 0.0
        self._late_s: float | None = None

    def prepare_seek(self, first: VideoFrame | AudioFrame | None) -> None:
        """Prepare for a seek; `first` is the file's first frame if times are decoding times, else None."""
        self._next_s = None
        if first is not None:
            self._own_s(first)

    def begin_s(self, frame: VideoFrame | AudioFrame) -> float | None:
        """Return when the next frame begins; None after a seek until a frame has a time."""
        own_s = self._own_s(frame)
        begin_s = self._next_s if own_s is None else own_s
        if begin_s is not None:
            self.untimed += own_s is None
            self._next_s = begin_s + _duration_s(frame, self._stream)
        return begin_s

    def _own_s(self, frame: VideoFrame | AudioFrame) -> float | None:
        ticks = frame.dts if self.by_decoding else frame.pts
        if ticks is None or frame.time_base is None:
            return None
        own_s = float(ticks * frame.time_base) - self.origin_s
        if self.by_decoding:
            self._late_s = own_s if self._late_s is None else self._late_s
            own_s -= self._late_s
        return own_s


def _seek(container: InputContainer, seconds: float) -> None:
    """Seek to shortly before this time; a container that cannot seek continues from its start."""
    with suppress(av.FFmpegError):
        container.seek(int(seconds * _US_PER_S))


def picture_s(frame: VideoFrame) -> float:
    """Return the display duration of a picture in seconds, 0 if unknown."""
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def sound_s(frame: VideoFrame | AudioFrame) -> float:
    """Return the duration of the sound in a frame in seconds, 0 for a picture."""
    return frame.samples / frame.sample_rate if isinstance(frame, AudioFrame) else 0.0


def _duration_s(frame: VideoFrame | AudioFrame, stream: Stream) -> float:
    """Return the duration of a frame in seconds; for a picture without one, from the frame rate."""
    if isinstance(frame, AudioFrame):
        return sound_s(frame)
    rate = isinstance(stream, VideoStream) and (stream.guessed_rate or stream.average_rate)
    return picture_s(frame) or float(1 / (rate or _USUAL_RATE_HZ))
