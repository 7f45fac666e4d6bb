"""Media files and network streams through PyAV: opened with one clear line, decoded lap after lap."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from perception.devices.device import Samples
from perception.errors import DeviceError

OPEN_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 2.0
_US_PER_S: Final = 1_000_000
# Stamps of consecutive packets are rounded to the container's tick; only more than this is a hole.
_HOLE_S: Final = 0.02

FrameT = TypeVar("FrameT", VideoFrame, AudioFrame)


def open_container(source: str, options: dict[str, str] | None = None) -> InputContainer:
    """Open a file or URL; DeviceError says what stands in the way."""
    try:
        timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        container: InputContainer = av.open(source, "r", options=options or {}, timeout=timeout)
        return container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DeviceError(f"{source}: cannot be opened: {cause(error)}") from error


def cause(error: Exception) -> str:
    """Return what FFmpeg says went wrong, without the address it repeats."""
    return str(getattr(error, "strerror", None) or error)


class Track(Generic[FrameT]):
    """One stream of a media file, decoded on demand, lap after lap if it loops.

    Times are seconds since the file's start, the same zero for picture and sound: that is what keeps
    a camera and a microphone that play one file together.

    Args:
        path: the file.
        kind: which of its streams.
        loop: start again at the end; a lap lasts as long as the whole file.
        start_s: leave out what lies before, for a device that joins late.
    """

    def __init__(
        self, path: str, kind: Literal["video", "audio"], *, loop: bool, start_s: float = 0.0
    ) -> None:
        if not Path(path).is_file():
            raise DeviceError(f"{path}: no such file")
        self._path = path
        self._kind = kind
        self._loop = loop
        self._start_s = start_s
        self.corrupt = 0
        with open_container(path) as container:
            self._stream_of(container)
            self.lap_s = (container.duration or 0) / _US_PER_S
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
            self._decoded = 0
            yield lap_start_s, self._one_lap(self._start_s - lap_start_s)
            if not self._decoded:
                raise DeviceError(f"{self._path}: no {self._kind} can be decoded; is the file damaged?")
            if not self._loop:
                return
            lap += 1

    def _stream_of(self, container: InputContainer) -> Stream:
        streams = [stream for stream in container.streams if stream.type == self._kind]
        if not streams:
            raise DeviceError(f"{self._path}: has no {self._kind} track")
        return streams[0]

    def _one_lap(self, skip_s: float) -> Iterator[tuple[float, FrameT]]:
        with open_container(self._path) as container:
            stream = self._stream_of(container)
            origin_us = container.start_time or 0
            if skip_s > 1.0:
                container.seek(origin_us + int(skip_s * _US_PER_S))
            for frame in self._decode(container.demux(stream)):
                self._decoded += 1
                if frame.is_corrupt:
                    self.corrupt += 1
                elif frame.time is not None:
                    seconds = frame.time - origin_us / _US_PER_S
                    if seconds >= skip_s or seconds + _duration_s(frame) > skip_s:
                        yield seconds, frame

    def _decode(self, packets: "Iterator[Packet[Stream]]") -> Iterator[FrameT]:
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet is not None else None
            except av.FFmpegError:
                self.corrupt += 1
                continue
            if frames is None:
                return
            yield from frames  # type: ignore[misc]


class Sound:
    """The sound track of a file as one unbroken run of samples: holes are filled with silence.

    Args:
        path: the file.
        rate_hz: it is resampled to this rate.
        channels: and mixed to as many channels.
        sample_format: `s16` or `f32`.
        loop: start again at the end.
        start: first sample wanted, counted from the file's start through all laps.
    """

    def __init__(
        self,
        path: str,
        *,
        rate_hz: int,
        channels: int,
        sample_format: Literal["s16", "f32"],
        loop: bool,
        start: int,
    ) -> None:
        self._track: Track[AudioFrame] = Track(path, "audio", loop=loop, start_s=start / rate_hz)
        self._rate_hz = rate_hz
        self._channels = channels
        self._format = "s16" if sample_format == "s16" else "flt"
        self._loop = loop
        self._cursor = start

    @property
    def corrupt(self) -> int:
        """Packets that could not be decoded so far."""
        return self._track.corrupt

    def blocks(self, size: int) -> Generator[Samples, None, None]:
        """Yield blocks of `size` samples, shape (size, channels); only the last may be shorter."""
        rest = self._silence(0)
        for samples in self._unbroken():
            rest = np.concatenate([rest, samples])
            whole = len(rest) - len(rest) % size
            yield from (rest[at : at + size] for at in range(0, whole, size))
            rest = rest[whole:]
        if len(rest):
            yield rest

    def _unbroken(self) -> Iterator[Samples]:
        for lap_s, frames in self._track.laps():
            end = round((lap_s + self._track.lap_s) * self._rate_hz) if self._loop else None
            for at, samples in self._runs(lap_s, frames):
                known = samples[max(self._cursor - at, 0) : None if end is None else max(end - at, 0)]
                yield self._silence(at - self._cursor)
                yield known
                self._cursor = max(self._cursor, at) + len(known)
            if end is not None:
                yield self._silence(end - self._cursor)
                self._cursor = max(self._cursor, end)

    def _runs(
        self, lap_s: float, frames: Iterator[tuple[float, AudioFrame]]
    ) -> Iterator[tuple[int, Samples]]:
        """Yield each piece of resampled sound with the number of its first sample."""
        resampler: av.AudioResampler | None = None
        at, next_s = 0, 0.0
        for seconds, frame in frames:
            if resampler is None or abs(seconds - next_s) > _HOLE_S:
                for samples in self._resampled(resampler, None):
                    yield at, samples
                    at += len(samples)
                resampler = av.AudioResampler(self._format, f"{self._channels}c", self._rate_hz)
                at = round((lap_s + seconds) * self._rate_hz)
            next_s = seconds + _duration_s(frame)
            for samples in self._resampled(resampler, frame):
                yield at, samples
                at += len(samples)
        for samples in self._resampled(resampler, None):
            yield at, samples
            at += len(samples)

    def _resampled(self, resampler: av.AudioResampler | None, frame: AudioFrame | None) -> Iterator[Samples]:
        if resampler is None:
            return
        if frame is not None:
            frame.pts = None  # we keep the time
        for out in resampler.resample(frame):
            yield out.to_ndarray().reshape(-1, self._channels)

    def _silence(self, samples: int) -> Samples:
        shape = (max(samples, 0), self._channels)
        return np.zeros(shape, np.int16) if self._format == "s16" else np.zeros(shape, np.float32)


def _duration_s(frame: VideoFrame | AudioFrame) -> float:
    return frame.samples / frame.sample_rate if isinstance(frame, AudioFrame) else 0.0
