"""Two seconds of sound and what is measured in them once for all tests. Pure."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from perception.profile.signal import MicrophoneSignal
from perception.units.arrays import RawSamples, Samples

ValueT = TypeVar("ValueT", bound=np.generic)
FULL_SCALE: Final = 32768.0
"""In steps of 16-bit sound (LSB): all levels are in these steps, whatever the format of the samples."""
ONE_STEP: Final = 1.5
"""Samples that differ by less are at most one LSB apart."""
WHITE_DB: Final = 3.0
"""Measured: noise that is white stays below 2 dB, an hour of rain, waves and fire above 5.9 dB."""


@dataclass(frozen=True)
class Excerpt:
    """The sound that is judged.

    Args:
        raw: (samples, channels) as captured.
        rate_hz: nominal rate.
        limits: thresholds of the profile.
    """

    raw: RawSamples
    rate_hz: int
    limits: MicrophoneSignal

    @cached_property
    def samples(self) -> npt.NDArray[np.float32]:
        """(channels, samples) in LSB."""
        scale = np.float32(1.0 if self.raw.dtype == np.int16 else FULL_SCALE)
        return np.multiply(self.raw.T, scale, dtype=np.float32, order="C")

    @cached_property
    def means(self) -> npt.NDArray[np.float32]:
        """Mean of each channel."""
        return np.asarray(self.samples.mean(axis=1))

    @cached_property
    def powers(self) -> npt.NDArray[np.float32]:
        """Mean square of each channel around its mean."""
        squares = np.einsum("cs,cs->c", self.samples, self.samples) / self.samples.shape[1]
        return np.asarray(squares - self.means**2)

    @cached_property
    def main(self) -> Samples:
        """The loudest channel."""
        return np.asarray(self.samples[int(self.powers.argmax())])

    @cached_property
    def rms(self) -> float:
        """RMS of the loudest channel around its mean."""
        return float(np.sqrt(max(self.powers.max(), 0.0)))

    @cached_property
    def low(self) -> float:
        """Least sample of the loudest channel."""
        return float(self.main.min())

    @cached_property
    def high(self) -> float:
        """Greatest sample of the loudest channel."""
        return float(self.main.max())

    @cached_property
    def steps(self) -> Samples:
        """Differences of consecutive samples of the loudest channel."""
        return np.diff(self.main)

    @cached_property
    def still(self) -> npt.NDArray[np.bool_]:
        """Whether each sample of the loudest channel but the first equals the one before."""
        return np.asarray(self.steps == 0)

    @cached_property
    def spectrum(self) -> tuple[Samples, float]:
        """Power per bin of the loudest channel, and the width of a bin in Hz."""
        return spectrum(self.main - self.main.mean(), self.rate_hz)


def spectrum(samples: Samples, rate_hz: int) -> tuple[Samples, float]:
    """Return the mean power per bin of pieces of about 0.1 s, Hann window, and the width of a bin in Hz."""
    size = 1 << (rate_hz // 10).bit_length()
    size = min(size, 1 << (len(samples).bit_length() - 1))
    starts = np.linspace(0, len(samples) - size, -(-len(samples) // size)).astype(np.intp)
    pieces = np.stack([samples[start : start + size] for start in starts])
    lines = np.fft.rfft(pieces * _hann(size), axis=1).view(np.float32)
    squares = np.einsum("pl,pl->l", lines, lines).reshape(-1, 2).sum(axis=1)
    return squares * np.float32(2 / (0.375 * size * size * len(pieces))), rate_hz / size


@lru_cache(maxsize=4)
def _hann(size: int) -> Samples:
    return np.hanning(size).astype(np.float32)


def whiteness_db(sound: Excerpt) -> float:
    """Return by how many dB 12 equal bands differ; inf if they hold only a part of the power."""
    power, _ = sound.spectrum
    at = (np.linspace(0.03, 0.88, 13) * (len(power) - 1)).astype(np.intp)
    if float(power[at[0] : at[-1]].sum()) < 0.75 * float(power.sum()):
        return float("inf")
    bands = np.add.reduceat(power, at)[:-1] / np.diff(at)
    return float(10 * np.log10(bands.max() / max(bands.min(), 1e-9)))


def kurtosis(sound: Excerpt) -> float:
    """Return the fourth moment over the squared second: 1.8 if all levels are equally frequent."""
    squares = np.square((sound.main - sound.main.mean()) / max(sound.rms, 1e-9))
    return float(np.mean(np.square(squares)))


def in_pieces(values: npt.NDArray[ValueT], size: int) -> npt.NDArray[ValueT]:
    """Return consecutive pieces, (size, pieces): numpy reduces the first axis faster than the last."""
    return np.ascontiguousarray(values[: len(values) // size * size].reshape(-1, size).T)


def is_tone(sound: Excerpt) -> bool:
    """Return whether eight lines hold everything but rounding.

    Tones that were computed repeat exactly, and take few levels, without being stuck or clipped.
    """
    newest = sound.main[-(1 << (sound.rate_hz // 2).bit_length() - 1) :]
    lines = np.square(np.abs(np.fft.rfft((newest - newest.mean()) * np.blackman(len(newest)))))
    total = float(lines.sum())
    for _ in range(8):
        peak = int(lines.argmax())
        lines[max(peak - 6, 0) : peak + 7] = 0
    return float(lines.sum()) <= total / max(sound.rms, 1.0) ** 2
