"""GRID clips (Cooke et al. 2006): words with their times, the mouth in every frame, the sound.

One clip is `NAME.mpg` with `NAME.align` beside it, whose times count 1/25000 s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np

from perception.errors import PerceptionError
from perception.io.progress import progress
from perception.io.text_file import read_text
from perception.training.workers import Step, spread
from perception.units.arrays import Image, Samples

TICKS_PER_S: Final = 25_000
RATE_HZ: Final = 16_000
FRAME_RATE_HZ: Final = 25
MOUTH: Final = (64, 40)
"""Width and height of the mouth pictures, pixels."""
_FACE_FRAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Clip:
    """One spoken command."""

    name: str
    words: tuple[tuple[float, float, str], ...]
    """Start s, end s, word; silences included."""
    mouth: Image
    """(frames, 40, 64) grey, 25 per second."""
    waveform: Samples
    """(samples,) mono at 16 kHz."""

    @property
    def spoken(self) -> list[tuple[float, float, str]]:
        """The words without the silences."""
        return [word for word in self.words if word[2] not in ("sil", "sp")]


def load(data: Path, workers: int = 1) -> list[Clip]:
    """Read every clip of a folder, in the order of names.

    Raises:
        PerceptionError: there are no clips.
    """
    files = sorted(file for file in data.glob("*.mpg") if file.with_suffix(".align").exists())
    if not files:
        raise PerceptionError(f"{data}: no GRID clips there; expected NAME.mpg with NAME.align")
    with progress("reading clips", len(files)) as advance:
        return spread(_read, files, workers, on_done=lambda file: advance())


def _read(file: Path, step: Step) -> Clip:
    return read(file)


def read(file: Path) -> Clip:
    """Read one clip."""
    cv2.setNumThreads(1)
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    with av.open(str(file)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE_HZ)
        parts = [
            piece.to_ndarray()[0]
            for frame in [*container.decode(audio=0), None]
            for piece in resampler.resample(frame)
        ]
    words = tuple(
        (int(start) / TICKS_PER_S, int(end) / TICKS_PER_S, word)
        for start, end, word in map(str.split, read_text(file.with_suffix(".align")).splitlines())
    )
    return Clip(file.stem, words, mouths(frames), np.concatenate(parts).astype(np.float32))


def mouths(frames: Sequence[Image]) -> Image:
    """Return the mouth, (frames, 40, 64), of frames (height, width); faces in some frames give its place."""
    folder = Path(cv2.__file__).parent / "data"
    cascade = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_default.xml"))
    found = []
    for frame in frames[:: max(1, len(frames) // _FACE_FRAMES)]:
        boxes = cascade.detectMultiScale(frame, 1.1, 5, minSize=(80, 80))
        found += [max(boxes, key=lambda box: box[2])] if len(boxes) else []
    height, width = frames[0].shape
    x, y, w, h = np.median(found, axis=0) if found else (0.25 * width, 0.15 * height, width / 2, width / 2)
    # The mouth is in the middle half of the width of the face, at 0.65 to 0.975 of its height.
    left, right = round(x + 0.24 * w), round(x + 0.76 * w)
    top, bottom = round(y + 0.65 * h), round(min(height, y + 0.975 * h))
    cut = [cv2.resize(frame[top:bottom, left:right], MOUTH, interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(cut).astype(np.uint8)
