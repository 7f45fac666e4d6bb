"""Media files and network streams through PyAV: opened with one clear line, decoded lap after lap."""

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
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from perception.devices.damage import Damage, expose_damage
from perception.devices.device import no_file
from perception.errors import DeviceError

OPEN_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 2.0
_US_PER_S: Final = 1_000_000

_LEAD_S: Final = 1.0
"""A leap goes this long before what is wanted: some containers overshoot, MP3 needs what came before."""
_LEAP_S: Final = 3600.0
"""A time that is further ahead than this is damage, not a hole."""
_USUAL_RATE_HZ: Final = 25
_NO_TIMESTAMPS: Final = 0x80  # AVFMT_NOTIMESTAMPS of libavformat/avformat.h
_ANY_TAGS: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)
"""Titles and comments are in whatever encoding somebody had; nobody reads them. From 19 on PyAV takes any."""

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
    """Open a file or URL, or what is in memory under a name; DeviceError says what stands in the way.

    `form` is FFmpeg's name of the format where it need not be found out.
    """
    try:
        timeout = (OPEN_TIMEOUT_S, read_timeout_s)
        container: InputContainer = av.open(
            source, "r", format=form, options=options or {}, timeout=timeout, **_ANY_TAGS
        )
        return container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DeviceError(f"{name or source}: cannot be opened: {cause(error)}") from error


def check_file(path: str | Path) -> None:
    """Raise DeviceError unless a regular file is there: what is played is read from anywhere in it."""
    if not os.path.isfile(path):
        raise DeviceError(f"{path}: {no_file(path)}")


def cause(error: Exception) -> str:
    """Return what FFmpeg says went wrong, without the address it repeats."""
    return str(getattr(error, "strerror", None) or error)


def streams_of(container: InputContainer, kind: str) -> list[Stream]:
    """Return the streams of one kind that can be decoded and are no cover picture; the default first."""
    streams = [
        stream
        for stream in container.streams
        if stream.type == kind
        and stream.codec_context is not None
        and not stream.disposition & Disposition.attached_pic
    ]
    return sorted(streams, key=lambda stream: not stream.disposition & Disposition.default)


def length_s(path: str) -> float:
    """Return how long a file is; where it does not say, its packets do. DeviceError as `open_container`."""
    with open_container(path) as container:
        # Writers of Matroska do not agree whether the time before its beginning counts.
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
    """Return the time in seconds that is the file's zero, free of the rounding to microseconds."""
    start_us = container.start_time or 0
    starts = (
        float(stream.start_time * stream.time_base) * _US_PER_S
        for stream in container.streams
        if stream.start_time is not None and stream.time_base is not None
    )
    return next((exact for exact in starts if abs(exact - start_us) <= 1), start_us) / _US_PER_S


class Track(Generic[FrameT]):
    """One stream of a media file, decoded on demand, lap after lap if it loops.

    Times are seconds since the file's start, the same zero for picture and sound: that is what keeps
    a camera and a microphone that play one file together. A frame without a time begins where the one
    before it ended.

    Args:
        path: the file.
        kind: which of its streams.
        loop: start again at the end; a lap lasts as long as the whole file.
        start_s: leave out what lies before, for a device that joins late.
        number: of its streams of that kind, from 0.
    """

    def __init__(self, path: str, kind: Kind, *, loop: bool, start_s: float = 0.0, number: int = 0) -> None:
        check_file(path)
        self._path = path
        self._kind = kind
        self._number = number
        self._loop = loop
        self._start_s = start_s
        self.corrupt = 0
        """Packets that could not be decoded and frames that are damaged or rest on damage so far."""
        self.untimed = 0
        """Frames whose time was derived so far."""
        with open_container(path) as container:
            stream = self._stream_of(container)
            aspect = stream.sample_aspect_ratio if isinstance(stream, VideoStream) else None
            self.pixel_aspect = float(aspect) if aspect else None
            """Width of a pixel by its height, None if unknown."""
        self.lap_s = length_s(path) if loop else 0.0
        if loop and not self.lap_s:
            raise DeviceError(f"{path}: does not say how long it is, so it cannot loop")

    def laps(self) -> Iterator[tuple[float, Iterator[tuple[float, FrameT]]]]:
        """Yield each lap's start and its `(seconds since the lap's start, frame)`; take each lap whole.

        Raises:
            DeviceError: a lap held nothing that can be decoded.
        """
        lap = int(self._start_s // self.lap_s) if self._loop else 0
        while True:
            lap_start_s = lap * self.lap_s
            skip_s = self._start_s - lap_start_s
            self._decoded = 0
            yield lap_start_s, self._one_lap(skip_s)
            if not self._decoded and skip_s <= 0:
                raise DeviceError(f"{self._path}: no {self._kind} can be decoded; is the file damaged?")
            if not self._loop:
                return
            lap += 1

    def _stream_of(self, container: InputContainer) -> Stream:
        streams = streams_of(container, self._kind)
        if not streams:
            there = any(one.type == self._kind and one.codec_context is None for one in container.streams)
            why = f"no decoder for its {self._kind} track" if there else f"has no {self._kind} track"
            raise DeviceError(f"{self._path}: {why}")
        return streams[self._number]

    def _one_lap(self, skip_s: float) -> Iterator[tuple[float, FrameT]]:
        with open_container(self._path) as container:
            stream = self._stream_of(container)
            timing = _Timing(container, stream)
            if skip_s > 2 * _LEAD_S and timing.may_leap:
                first = next(self._one_lap(0.0), None) if timing.by_decoding else None
                timing.leap(first and first[1])
                _seek(container, timing.origin_s + skip_s - _LEAD_S)
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
                    if skip_s <= 0 or seconds >= skip_s or seconds + sounding_s(frame) > skip_s:
                        yield seconds, frame
            self.untimed += timing.untimed

    def _decode(self, packets: "Iterator[Packet[Stream]]", damage: Damage) -> Iterator[FrameT]:
        while True:
            try:
                packet = next(packets, None)
                if packet is not None:
                    damage.note(packet)
                frames = packet.decode() if packet is not None else None
            except av.FFmpegError:
                damage.failed()
                self.corrupt += 1
                continue
            if frames is None:
                return
            yield from frames  # type: ignore[misc]


class _Timing:
    """When each frame begins, in seconds from the file's start.

    Neither raw streams nor AVI know when a picture is shown, only when it is decoded: there the first one is
    shown at the beginning, and all are decoded as much later than shown as that one.
    """

    def __init__(self, container: InputContainer, stream: Stream) -> None:
        self._stream = stream
        self.origin_s = origin_of(container)
        timeless = bool(container.format.flags & _NO_TIMESTAMPS)
        self.may_leap = not timeless
        self.by_decoding = stream.type == "video" and (timeless or container.format.name == "avi")
        self.untimed = 0
        """Frames so far whose time is the end of the one before."""
        self._next_s: float | None = 0.0
        self._late_s: float | None = None

    def leap(self, first: VideoFrame | AudioFrame | None) -> None:
        """Expect a frame from anywhere next; `first` is the file's first one, if decoding gives the times."""
        self._next_s = None
        if first is not None:
            self._own_s(first)

    def begin_s(self, frame: VideoFrame | AudioFrame) -> float | None:
        """Return when the next frame begins; None after a leap as long as no frame has a time."""
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
    """Let reading go on shortly before this time; what cannot leap goes on from the beginning."""
    with suppress(av.FFmpegError):
        container.seek(int(seconds * _US_PER_S))


def lasting_s(frame: VideoFrame) -> float:
    """Return how many seconds a picture is shown, 0 if the file does not say."""
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def sounding_s(frame: VideoFrame | AudioFrame) -> float:
    """Return how many seconds of sound a frame holds."""
    return frame.samples / frame.sample_rate if isinstance(frame, AudioFrame) else 0.0


def _duration_s(frame: VideoFrame | AudioFrame, stream: Stream) -> float:
    """Return how long a frame lasts; a picture as long as the file says, else as its rate says."""
    if isinstance(frame, AudioFrame):
        return sounding_s(frame)
    rate = isinstance(stream, VideoStream) and (stream.guessed_rate or stream.average_rate)
    return lasting_s(frame) or float(1 / (rate or _USUAL_RATE_HZ))
