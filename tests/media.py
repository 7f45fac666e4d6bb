"""Small real media files with known content, written by PyAV."""

import struct
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


def write_coded(
    path: Path,
    codec: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    rate_hz: int,
    options: dict[str, str],
    form: str = "matroska",
) -> Path:
    """Write pictures of one size with an encoder and its options."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate_hz, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
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


def write_turned(path: Path, picture: npt.NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> Path:
    """Write three frames of one picture to a .mov whose display matrix is (a, b, c, d) of its `tkhd` box."""
    height, width = picture.shape[:2]
    with av.open(str(path), "w", format="mov") as container:
        video = container.add_stream("mjpeg", rate=FRAME_HZ)
        video.width, video.height, video.pix_fmt = width, height, "yuvj420p"
        video.codec_context.qmin = video.codec_context.qmax = 2
        for number in range(3):
            frame = VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, FRAME_HZ)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


COLOURS: dict[str, tuple[int, int, int]] = {
    "R": (0, 0, 255),
    "G": (0, 255, 0),
    "B": (255, 0, 0),
    "W": (255, 255, 255),
    "K": (0, 0, 0),
}


def quarters(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a picture that is red, green (above), blue and white (below)."""
    picture = np.empty((height, width, 3), np.uint8)
    for number, name in enumerate("RGBW"):
        y, x = divmod(number, 2)
        picture[y * height // 2 :, x * width // 2 :] = COLOURS[name]
    return picture


def corners(picture: npt.NDArray[np.uint8]) -> str:
    """Return the colours of a picture's quarters in reading order: `RGBW` if upright."""
    height, width = picture.shape[:2]

    def name(y: int, x: int) -> str:
        pixel = picture[y, x].astype(int)
        return min(COLOURS, key=lambda one: int(np.abs(pixel - COLOURS[one]).sum()))

    return "".join(name(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4))


def grey(level: int) -> npt.NDArray[np.uint8]:
    """Return one plain picture."""
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def noise(samples: int, seed: int = 1) -> npt.NDArray[np.int16]:
    """Return sound without repetition."""
    return np.random.default_rng(seed).integers(-9000, 9000, samples).astype(np.int16)


def write_film(
    path: Path,
    codec: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    rate_hz: int = FRAME_HZ,
    bframes: int = 0,
    first: int = 0,
) -> Path:
    """Write frames, counted from `first`, in the container of the path's suffix; key frames every 0.5 s."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate_hz)
        video.width, video.height = WIDTH, HEIGHT
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.gop_size = rate_hz // 2
        video.codec_context.max_b_frames = bframes
        if codec == "libx264":
            video.options = {"bf": str(bframes), "crf": "3"}
        else:
            video.codec_context.qmin = video.codec_context.qmax = 2
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = first + number, Fraction(1, rate_hz)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def write_sound(
    path: Path,
    codec: str,
    samples: npt.NDArray[np.int16],
    sample_format: str = "s16p",
    rate_hz: int = RATE_HZ,
) -> Path:
    """Write mono sound in the container that the path's suffix names."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        converter = av.AudioResampler(sample_format, "mono", rate_hz, frame_size=stream.frame_size or None)
        piece = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        piece.sample_rate = rate_hz
        for frame in [*converter.resample(piece), *converter.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, rate_hz: int = RATE_HZ) -> npt.NDArray[np.int16]:
    """Return a sine of 440 Hz, never silent for longer than a sample."""
    return (9000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.int16)
