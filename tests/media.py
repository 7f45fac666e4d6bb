"""Small real media files, written by PyAV, whose content is known."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

FRAME_HZ = 25
RATE_HZ = 16_000
WIDTH, HEIGHT = 64, 48


def write_clip(
    path: Path,
    pictures: Sequence[npt.NDArray[np.uint8]] = (),
    sounds: Sequence[tuple[float, npt.NDArray[np.int16]]] = (),
) -> Path:
    """Write frames at 25 Hz, and pieces of mono 16 kHz sound each at its time in seconds.

    Matroska keeps both exactly: every frame its own MJPEG picture, sound as plain samples.
    """
    with av.open(str(path), "w", format="matroska") as container:
        video = audio = None
        if len(pictures):
            video = container.add_stream("mjpeg", rate=FRAME_HZ)
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        if len(sounds):
            audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for number, picture in enumerate(pictures):
            assert video is not None
            frame = VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, FRAME_HZ)
            container.mux(video.encode(frame))
        for seconds, samples in sounds:
            assert audio is not None
            piece = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
            piece.sample_rate, piece.time_base = RATE_HZ, Fraction(1, RATE_HZ)
            piece.pts = round(seconds * RATE_HZ)
            container.mux(audio.encode(piece))
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def write_wav(path: Path, samples: npt.NDArray[np.int16], rate_hz: int = RATE_HZ) -> Path:
    """Write 16-bit samples, (n,) or (n, channels)."""
    layout = "mono" if samples.ndim == 1 else f"{samples.shape[1]}c"
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=rate_hz, layout=layout)
        piece = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        piece.sample_rate = rate_hz
        container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def grey(level: int) -> npt.NDArray[np.uint8]:
    """Return one plain picture."""
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def noise(samples: int, seed: int = 1) -> npt.NDArray[np.int16]:
    """Return sound that is nowhere alike."""
    return np.random.default_rng(seed).integers(-9000, 9000, samples).astype(np.int16)
