"""Faults of cameras, and harmless changes, made of good pictures: for tests and for the benchmark."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Pictures = Sequence[Picture]
Fault = Callable[[Pictures, int, np.random.Generator], list[Picture]]
"""Returns the pictures of a fault that begins at a number, of the good pictures of the same times."""


def clipped(values: npt.NDArray[np.generic] | npt.NDArray[np.float64]) -> Picture:
    """Return values as a picture."""
    return np.clip(values, 0, 255).astype(np.uint8)


def jpeg(picture: Picture, quality: int) -> Picture:
    """Return a picture after JPEG."""
    _, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)


def each(change: Callable[[Picture, np.random.Generator], Picture]) -> Fault:
    """Return the fault that changes every picture alike."""
    return lambda good, start, rng: [change(picture, rng) for picture in good[start:]]


def of_last(change: Callable[[Picture, int, np.random.Generator], Picture]) -> Fault:
    """Return the fault that shows the last good picture, changed by its number."""
    return lambda good, start, rng: [
        change(good[start - 1], number, rng) for number in range(len(good) - start)
    ]


def clock(picture: Picture, number: int, _: np.random.Generator | None = None) -> Picture:
    """Return a picture with a clock that counts in a corner."""
    shown = picture.copy()
    size = picture.shape[0] / 480
    text = f"12:00:{number // 25:02d}.{number % 25 * 4:02d}"
    cv2.putText(shown, text, (8, 8 + int(22 * size)), cv2.FONT_HERSHEY_SIMPLEX, 0.8 * size, (255,) * 3, 2)
    return shown


def _looped(good: Pictures, start: int, _: np.random.Generator, length: int = 25) -> list[Picture]:
    return [good[start - length + number % length] for number in range(len(good) - start)]


def _noise(picture: Picture, rng: np.random.Generator, mean: float, sigma: float) -> Picture:
    return clipped(rng.normal(mean, sigma, picture.shape))


def _hand(picture: Picture, rng: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    light = np.linspace(0.7, 1.3, width)[None, :, None] * np.linspace(1.2, 0.8, height)[:, None, None]
    skin = np.array((18, 26, 52)) if picture.ndim == 3 else np.array((30,))
    shown = (light * skin + rng.normal(0, 2, (height, width, len(skin)))).reshape(picture.shape)
    return clipped(shown)


def _hand_of_light(picture: Picture, rng: np.random.Generator) -> Picture:
    soft = cv2.GaussianBlur(picture, (0, 0), picture.shape[0] / 10).astype(float)
    return clipped(soft * 0.15 + 15 + rng.normal(0, 1.5, picture.shape))


def _salt(picture: Picture, rng: np.random.Generator, share: float = 0.5) -> Picture:
    shown = picture.copy()
    drawn = rng.random(picture.shape[:2])
    shown[drawn < share / 2] = 0
    shown[drawn > 1 - share / 2] = 255
    return shown


def _snow(picture: Picture, rng: np.random.Generator) -> Picture:
    grey = rng.integers(0, 256, picture.shape[:2]).astype(np.uint8)
    return grey if picture.ndim == 2 else np.repeat(grey[..., None], 3, axis=2)


def _blurred(picture: Picture, _: np.random.Generator, sigma: float = 6.0) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma * picture.shape[0] / 480), np.uint8)


def _channel(picture: Picture, _: np.random.Generator, channel: int, value: int) -> Picture:
    shown = picture.copy()
    shown[..., channel] = value
    return shown


def _torn_old(good: Pictures, start: int, _: np.random.Generator, lag: int) -> list[Picture]:
    shown = []
    for number in range(start, len(good)):
        picture = good[number].copy()
        half = picture.shape[0] // 2
        picture[half:] = good[number - lag][half:]
        shown.append(picture)
    return shown


def _torn_shift(good: Pictures, start: int, rng: np.random.Generator, moving: bool) -> list[Picture]:
    shown = []
    shift = good[0].shape[1] // 10
    for number in range(start, len(good)):
        picture = good[number].copy()
        height = picture.shape[0]
        cut = int(rng.integers(height // 4, height * 3 // 4)) if moving else height // 2
        picture[cut:] = np.roll(picture[cut:], shift, axis=1)
        shown.append(picture)
    return shown


def _half_frozen(good: Pictures, start: int, _: np.random.Generator) -> list[Picture]:
    shown = []
    for number in range(start, len(good)):
        picture = good[number].copy()
        half = picture.shape[0] // 2
        picture[half:] = good[start - 1][half:]
        shown.append(picture)
    return shown


def _half_missing(picture: Picture, _: np.random.Generator, colour: tuple[int, int, int]) -> Picture:
    shown = picture.copy()
    shown[picture.shape[0] // 2 :] = colour if picture.ndim == 3 else colour[1]
    return shown


def _bars(picture: Picture, _: int, __: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    shown = np.zeros((height, width, 3), np.uint8)
    for bar in range(8):
        colour = [255 * (1 - (bar >> bit & 1)) for bit in (1, 2, 0)]
        shown[:, bar * width // 8 : (bar + 1) * width // 8] = colour
    return shown if picture.ndim == 3 else np.asarray(cv2.cvtColor(shown, cv2.COLOR_BGR2GRAY), np.uint8)


def _fade(good: Pictures, start: int, _: np.random.Generator) -> list[Picture]:
    return [
        clipped(picture * max(0.0, 1 - number / 12)) for number, picture in enumerate(good[start:], start=1)
    ]


FROZEN: Final = {"frozen"}
FAULTS: Final[dict[str, tuple[set[str], Fault]]] = {
    "identical": (FROZEN, of_last(lambda last, _, __: last)),
    "clock over frozen": (FROZEN, of_last(clock)),
    "frozen, coded again": (FROZEN, of_last(lambda last, _, rng: jpeg(last, int(rng.integers(60, 96))))),
    "frozen, quality counts": (FROZEN, of_last(lambda last, number, _: jpeg(last, 95 - number % 60))),
    "two buffers": (
        FROZEN,
        lambda good, start, _: [good[start - 1 - 3 * (n % 2)] for n in range(len(good) - start)],
    ),
    "looped second": (FROZEN, _looped),
    "frozen, denoised": (FROZEN, of_last(lambda last, _, __: np.asarray(cv2.medianBlur(last, 3), np.uint8))),
    "black": ({"black"}, each(lambda picture, _: np.zeros_like(picture))),
    "black with noise": ({"black"}, each(partial(_noise, mean=3, sigma=2))),
    "black of video range": ({"black"}, each(lambda picture, _: np.full_like(picture, 16))),
    "cap with noise": ({"covered"}, each(partial(_noise, mean=14, sigma=6))),
    "hand": ({"covered"}, each(_hand)),
    "hand, light through": ({"covered"}, each(_hand_of_light)),
    "over-exposed": ({"blown out"}, each(lambda picture, _: clipped(picture.astype(float) * 4 + 60))),
    "over-exposed, less": ({"blown out"}, each(lambda picture, _: clipped(picture.astype(float) * 4))),
    "white": ({"blown out"}, each(lambda picture, _: np.full_like(picture, 255))),
    "white noise": ({"noise"}, each(lambda picture, rng: rng.integers(0, 256, picture.shape, np.uint8))),
    "gaussian noise": ({"noise"}, each(partial(_noise, mean=128, sigma=40))),
    "snow": ({"noise"}, each(_snow)),
    "salt and pepper": ({"noise"}, each(_salt)),
    "defocus": ({"blurred"}, each(_blurred)),
    "slight defocus": ({"blurred"}, each(partial(_blurred, sigma=3.0))),
    "dead red": ({"dead channel"}, each(partial(_channel, channel=2, value=0))),
    "dead green": ({"dead channel"}, each(partial(_channel, channel=1, value=0))),
    "dead blue": ({"dead channel"}, each(partial(_channel, channel=0, value=0))),
    "red stuck at 255": ({"dead channel"}, each(partial(_channel, channel=2, value=255))),
    "torn, shifted": ({"torn"}, partial(_torn_shift, moving=False)),
    "torn, moving": ({"torn"}, partial(_torn_shift, moving=True)),
    "torn, one picture late": ({"torn"}, partial(_torn_old, lag=1)),
    "torn, ten late": ({"torn"}, partial(_torn_old, lag=10)),
    "lower half frozen": ({"torn", "frozen"}, _half_frozen),
    "half green": ({"torn"}, each(partial(_half_missing, colour=(0, 135, 0)))),
    "half grey": ({"torn"}, each(partial(_half_missing, colour=(128, 128, 128)))),
    "test card": (FROZEN, of_last(_bars)),
    "grey": (FROZEN, each(lambda picture, _: np.full_like(picture, 128))),
    "fade to black": ({"black"}, _fade),
}
"""Name of a fault: the conditions that name it rightly, and how it is made."""
