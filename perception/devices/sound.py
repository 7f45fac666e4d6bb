"""The sound track of a media file as continuous samples."""

from collections.abc import Generator, Iterator
from typing import Final, Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from perception.devices.media import Track, cause, open_container, sound_s, streams_of
from perception.errors import DeviceError
from perception.units.arrays import RawSamples

# Stamps of consecutive packets are rounded to the container's tick; only a longer distance is a gap.
_HOLE_S: Final = 0.02
# Other rates are not sound: they need filters of 100 MB, or a thousand samples for one.
_RATES_HZ: Final = (100, 1_536_000)


def kind_of_sound(path: str, number: int = 0) -> tuple[int, int]:
    """Return rate in Hz and channels of a sound track, as the file says or else as its first frame does.

    Raises:
        DeviceError: there is none, neither says, or the rate is none that can be resampled.
    """
    with open_container(path) as container:
        streams = streams_of(container, "audio")
        if not streams:
            raise DeviceError(f"{path}: has no sound")
        stream = streams[number]
        assert isinstance(stream, AudioStream)
        if stream.rate and stream.channels:
            return _checked_rate(path, stream.rate), stream.channels
    track = Track[AudioFrame](path, "audio", loop=False, number=number)
    for _, frames in track.laps():
        for _, frame in frames:
            return _checked_rate(path, frame.sample_rate), frame.layout.nb_channels
    raise DeviceError("no sound can be decoded")


def _checked_rate(path: str, rate_hz: int) -> int:
    """Return the rate that a file claims; DeviceError if it is out of bounds."""
    if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
        raise DeviceError(f"{path}: claims {rate_hz} Hz, allowed are {_RATES_HZ[0]} to {_RATES_HZ[1]} Hz")
    return rate_hz


class Sound:
    """The sound track of a file as continuous samples: gaps are filled with silence.

    Args:
        path: the file.
        rate_hz: sample rate of the result.
        channels: number of channels of the result.
        sample_format: `s16` or `f32`.
        loop: start again at the end.
        start: first wanted sample, counted from the file's start through all laps.
        number: index of the sound track, from 0.
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
        number: int = 0,
    ) -> None:
        start_s = start / rate_hz
        self._track: Track[AudioFrame] = Track(path, "audio", loop=loop, start_s=start_s, number=number)
        self._path = path
        self._rate_hz = rate_hz
        self._channels = channels
        self._format = "s16" if sample_format == "s16" else "flt"
        self._loop = loop
        self._cursor = start
        self.holes = 0
        """Number of gaps after the beginning, which are filled with silence."""
        self.silence_s = 0.0
        """Seconds of silence in gaps."""
        self.overlaps = 0
        """Number of times that sound began before the end of earlier sound; it is left out."""

    @property
    def corrupt(self) -> int:
        """Number of packets that could not be decoded."""
        return self._track.corrupt

    def blocks(self, size: int) -> Generator[RawSamples, None, None]:
        """Yield blocks of `size` samples, shape (size, channels); only the last may be shorter."""
        rest = self._silence(0)
        for samples in self._unbroken():
            rest = np.concatenate([rest, samples])
            whole = len(rest) - len(rest) % size
            yield from (rest[at : at + size] for at in range(0, whole, size))
            rest = rest[whole:]
        if len(rest):
            yield rest

    def _unbroken(self) -> Iterator[RawSamples]:
        for lap_s, frames in self._track.laps():
            end = round((lap_s + self._track.lap_s) * self._rate_hz) if self._loop else None
            for at, samples in self._runs(lap_s, frames):
                known = samples[max(self._cursor - at, 0) : None if end is None else max(end - at, 0)]
                yield from self._silences(at - self._cursor)
                yield known
                self._cursor = max(self._cursor, at) + len(known)
            if end is not None:
                yield from self._silences(end - self._cursor)
                self._cursor = max(self._cursor, end)

    def _runs(
        self, lap_s: float, frames: Iterator[tuple[float, AudioFrame]]
    ) -> Iterator[tuple[int, RawSamples]]:
        """Yield (number of the first sample, resampled samples)."""
        resampler: av.AudioResampler | None = None
        at, next_s, kind = 0, 0.0, ("", "", 0)
        for seconds, frame in frames:
            # Time is counted in samples, so that stamps that drift from it are detected.
            apart_s = seconds - next_s
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or abs(apart_s) > _HOLE_S or now != kind:
                for samples in self._resampled(resampler, None):
                    yield at, samples
                    at += len(samples)
                if resampler is not None:
                    self._count(apart_s)
                resampler, kind = self._resampler(frame), now
                at, next_s = round((lap_s + seconds) * self._rate_hz), seconds
            next_s += sound_s(frame)
            for samples in self._resampled(resampler, frame):
                yield at, samples
                at += len(samples)
        for samples in self._resampled(resampler, None):
            yield at, samples
            at += len(samples)

    def _count(self, apart_s: float) -> None:
        if apart_s > _HOLE_S:
            self.holes += 1
            self.silence_s += apart_s
        self.overlaps += apart_s < -_HOLE_S

    def _resampler(self, frame: AudioFrame) -> av.AudioResampler:
        _checked_rate(self._path, frame.sample_rate)
        own = frame.layout.nb_channels == self._channels
        try:
            layout = frame.layout if own else av.AudioLayout(f"{self._channels}c")
        except ValueError as error:
            there = frame.layout.nb_channels
            raise DeviceError(f"{self._path}: its {there} channels cannot become {self._channels}") from error
        return av.AudioResampler(self._format, layout, self._rate_hz)

    def _resampled(
        self, resampler: av.AudioResampler | None, frame: AudioFrame | None
    ) -> Iterator[RawSamples]:
        if resampler is None:
            return
        if frame is not None:
            frame.pts = None  # time is counted in samples
        try:
            resampled = resampler.resample(frame)
        except (av.FFmpegError, ValueError) as error:
            what = frame.layout.name if frame is not None else "the end"
            raise DeviceError(
                f"{self._path}: cannot convert sound ({what}) to {self._channels} channels: {cause(error)}"
            ) from error
        for out in resampled:
            yield out.to_ndarray().reshape(-1, self._channels)

    def _silences(self, samples: int) -> Iterator[RawSamples]:
        """Yield this many samples of silence, in small pieces to save memory."""
        for done in range(0, samples, self._rate_hz):
            yield self._silence(min(samples - done, self._rate_hz))

    def _silence(self, samples: int) -> RawSamples:
        shape = (max(samples, 0), self._channels)
        return np.zeros(shape, np.int16) if self._format == "s16" else np.zeros(shape, np.float32)
