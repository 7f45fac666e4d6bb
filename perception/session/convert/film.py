"""Write an MP4 file of one camera, with the sound of one microphone."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from perception.devices.pixels import Layout
from perception.session.file.pcm import as_s16
from perception.units import SECOND_NS
from perception.units.arrays import Image, RawSamples
from perception.units.closing import Closing

_TICKS_HZ: Final = 90_000
# ISO/IEC 14496-3, table 1.18.
_AAC_RATES: Final = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_OTHER_RATE: Final = 48_000
_BT709: Final = 1
"""Code of primaries, transfer and matrix, ITU-T H.273."""


class SoundFormat(NamedTuple):
    """Format of the sound of a film."""

    rate_hz: int
    channels: int


def fitted(picture: Image, width: int, height: int) -> Image:
    """Return a picture in the size of a film, with bars; an odd last row or column is cut instead."""
    if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
        return picture[:height, :width]
    return Layout((width, height)).of_image(picture)


class VideoFile(Closing):
    """An MP4 file (H.264, BT.709, AAC); every frame keeps its own time.

    Args:
        path: file to write.
        width: pixels; made even, as the format requires.
        height: likewise.
        rate_hz: nominal rate in the header; every frame has its own time.
        sound: format of the sound, None for a film without sound.
        key_every: frames from one key frame to the next, None for the default of the encoder.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        rate_hz: int = 30,
        *,
        sound: SoundFormat | None = None,
        key_every: int | None = None,
    ) -> None:
        self.path = path
        self._size = (max(width & ~1, 2), max(height & ~1, 2))
        with _as_os_error():
            self._container = av.open(str(path), "w")
        self._stream = self._add_video(rate_hz, key_every)
        self._sound = sound
        self._audio = None if sound is None else self._add_audio(sound)
        self._last_ticks = -1
        self._samples = 0

    def write(self, picture: Image, time_ns: int) -> bool:
        """Append a frame at `time_ns` after the start; return False if it is not later than the last."""
        ticks = round(time_ns * _TICKS_HZ / SECOND_NS)
        if ticks <= self._last_ticks:
            return False
        self._last_ticks = ticks
        shown = np.ascontiguousarray(fitted(picture, *self._size))
        frame = VideoFrame.from_ndarray(shown, format="bgr24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = ticks, Fraction(1, _TICKS_HZ)
        with _as_os_error():
            self._container.mux(self._stream.encode(frame))
        return True

    def write_sound(self, samples: RawSamples) -> None:
        """Append sound, shape (samples, channels), in the format `sound`; it begins at the start."""
        if self._audio is None or self._sound is None or not len(samples):
            return
        frame = AudioFrame.from_ndarray(
            _interleaved(samples), format="s16", layout=_layout(self._sound.channels)
        )
        frame.sample_rate = self._sound.rate_hz
        frame.pts, frame.time_base = self._samples, Fraction(1, self._sound.rate_hz)
        self._samples += len(samples)
        with _as_os_error():
            self._container.mux(self._audio.encode(frame))

    def close(self) -> None:
        """Write the rest and close the file."""
        with _as_os_error():
            try:
                self._container.mux(self._stream.encode())
                if self._audio is not None:
                    self._container.mux(self._audio.encode())
            finally:
                self._container.close()

    def _add_video(self, rate_hz: int, key_every: int | None) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=rate_hz)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS_HZ)
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        if key_every is not None:
            context.gop_size = key_every
        return stream

    def _add_audio(self, sound: SoundFormat) -> AudioStream:
        rate_hz = sound.rate_hz if sound.rate_hz in _AAC_RATES else _OTHER_RATE
        stream = self._container.add_stream("aac", rate=rate_hz, layout=_layout(sound.channels))
        assert isinstance(stream, AudioStream)
        return stream


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _layout(channels: int) -> str:
    return "stereo" if channels == 2 else "mono"


def _interleaved(samples: RawSamples) -> npt.NDArray[np.int16]:
    """Return (1, samples * channels), one or two channels interleaved; more channels are mixed to one."""
    if samples.shape[1] > 2:
        samples = samples.mean(axis=1, keepdims=True).astype(samples.dtype)
    whole = samples if samples.dtype == np.int16 else as_s16(samples)
    return np.ascontiguousarray(whole, np.int16).reshape(1, -1)
