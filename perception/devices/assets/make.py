"""Generate the assets of the scripted devices: `python make.py SCIKIT_IMAGE_DATA TEST_IMAGES`.

The arguments are the unpacked folders `skimage/data` (scikit-image wheel) and `tests/test_images`
(face_recognition source distribution). Needs espeak-ng on the path.
"""

import io
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import resample_poly

ASSETS: Final = Path(__file__).resolve().parent
RATE_HZ: Final = 16_000
LONGEST_PAUSE_S: Final = 0.18
# Name, source file, square crop (centre x, centre y, side) in pixels, stored side in pixels.
CROPS: Final = (
    ("face-0.jpg", "astronaut.png", (223, 114, 202), 320),
    ("face-1.jpg", "obama.jpg", (492, 245, 600), 320),
    ("poster-0.jpg", "chelsea.png", (250, 150, 300), 160),
    ("poster-1.jpg", "coffee.png", (300, 190, 360), 160),
)


def crop(image: npt.NDArray[np.uint8], centre: tuple[int, int, int], side: int) -> npt.NDArray[np.uint8]:
    """Cut a square, repeating the border where it reaches outside, and scale it to `side` pixels."""
    x, y, width = centre
    padded = cv2.copyMakeBorder(image, width, width, width, width, cv2.BORDER_REPLICATE)
    left, top = x + width // 2, y + width // 2
    square = padded[top : top + width, left : left + width]
    method = cv2.INTER_AREA if width > side else cv2.INTER_CUBIC
    return cv2.resize(square, (side, side), interpolation=method).astype(np.uint8)


def speak(voice: str, pitch: int, words_per_minute: int, text: str) -> npt.NDArray[np.float32]:
    """Return `text` spoken at 16 kHz, peak 0.5, its pauses shortened."""
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(words_per_minute), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    speech = resample_poly(samples, RATE_HZ, rate)
    return shorten_pauses(speech * (0.5 / np.abs(speech).max())).astype(np.float32)


def shorten_pauses(speech: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Drop the 10 ms frames that prolong a pause beyond LONGEST_PAUSE_S."""
    frames = speech[: speech.size // 160 * 160].reshape(-1, 160)
    kept, pause = [], 0
    for frame in frames:
        pause = pause + 1 if np.abs(frame).max() < 0.01 else 0
        if pause <= LONGEST_PAUSE_S * 100:
            kept.append(frame)
    return np.concatenate(kept)


def main() -> None:
    """Write every asset beside this file."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    for name, source, centre, side in CROPS:
        path = next(folder / source for folder in folders if (folder / source).is_file())
        image = cv2.imread(str(path))
        if image is None:
            raise SystemExit(f"{path}: not an image")
        square = crop(image.astype(np.uint8, copy=False), centre, side)
        cv2.imwrite(str(ASSETS / name), square, (cv2.IMWRITE_JPEG_QUALITY, 85))
    phrases = tomllib.loads((ASSETS / "phrases.toml").read_text(encoding="utf-8"))
    for number, voice in enumerate(phrases["voices"]):
        target = ASSETS / f"voice-{number}.ogg"
        soundfile.write(target, speak(**voice), RATE_HZ, format="OGG", subtype="OPUS", compression_level=0.9)


if __name__ == "__main__":
    main()
