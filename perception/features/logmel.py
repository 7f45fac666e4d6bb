"""Streaming log-mel spectra on the absolute sample grid: each frame computed once, bit-equal to a batch.

Frame k covers the samples `[k * hop, k * hop + window)`, whatever blocks they arrived in.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse

from perception.features.window import ring_spans

Real = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Frames = npt.NDArray[np.float32]
_ROWS: Final = 32
"""Frames transformed at once: enough to amortise the calls, few enough to stay in the cache."""


@dataclass(frozen=True, slots=True)
class LogMelConfig:
    """What a log-mel frame is: a periodic Hann window, an FFT, triangular HTK mel bands, ln(x + offset).

    Mel is 1127 ln(1 + f / 700 Hz). Triangles peak at 1 and are not normalised by area.
    """

    rate_hz: int
    window: int
    """Samples per frame, at least `hop`."""
    hop: int
    """Samples from one frame to the next."""
    fft: int
    """FFT length in samples, at least `window`; frames are padded with zeros at their end."""
    bands: int
    low_hz: float
    high_hz: float
    triangles: Literal["mel", "hz"] = "mel"
    """Whether the sides of a triangle are straight over mel (VGGish) or over Hz (torchaudio)."""
    power: Literal[1, 2] = 1
    """1 = magnitude, 2 = power spectrum."""
    log_offset: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.fft:
            raise ValueError(f"need 0 < hop {self.hop} <= window {self.window} <= fft {self.fft}")
        if not 0 <= self.low_hz < self.high_hz <= self.rate_hz / 2:
            raise ValueError(f"bands from {self.low_hz} to {self.high_hz} Hz do not fit {self.rate_hz} Hz")
        if self.bands < 1 or self.log_offset <= 0:
            raise ValueError("need at least one band and a log offset above zero")

    def count(self, samples: int) -> int:
        """Return how many whole frames fit into so many samples."""
        return max(0, 1 + (samples - self.window) // self.hop)


# tensorflow/models, research/audioset/vggish/vggish_params.py
VGGISH: Final = LogMelConfig(16_000, 400, 160, 512, 64, 125.0, 7500.0)


def log_mel(samples: Real, config: LogMelConfig = VGGISH) -> Frames:
    """Return all frames of `samples` as (frames, bands) float32; the first frame starts at sample 0."""
    result = np.empty((config.count(samples.size), config.bands), np.float32)
    if result.size:
        transform = _Transform(config)
        windows = np.lib.stride_tricks.sliding_window_view(samples, config.window)[:: config.hop]
        for row in range(0, len(result), _ROWS):
            result[row : row + _ROWS] = transform(windows[row : row + _ROWS])
    return result


class StreamingLogMel:
    """Log-mel frames of a stream, computed as the samples come; the newest `history` frames are held."""

    def __init__(self, config: LogMelConfig = VGGISH, history: int = 128) -> None:
        self.config = config
        self._transform = _Transform(config)
        self._frames = np.empty((max(history, _ROWS), config.bands), np.float32)
        self._samples = np.empty(config.window + (_ROWS - 1) * config.hop)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._samples, config.window)[:: config.hop]
        self._filled = 0
        self._next = 0
        self.first = self.end = 0
        """Frames computed since the stream last started or jumped: `[first, end)`."""

    def push(self, start_index: int, samples: Real) -> None:
        """Take the samples from `start_index` on; any other index than the next starts anew there."""
        if start_index != self._next:
            self.first = self.end = -(-start_index // self.config.hop)
            self._filled = 0
        self._next = start_index + samples.size
        # after a start, samples before the first whole frame are not needed
        offset = max(0, self.end * self.config.hop + self._filled - start_index)
        while offset < samples.size:
            taken = samples[offset : offset + self._samples.size - self._filled]
            self._samples[self._filled : self._filled + taken.size] = taken
            self._filled += taken.size
            offset += taken.size
            self._compute()

    def frames(self, first: int, last: int) -> Frames:
        """Return a copy of the frames `[first, last)` as (frames, bands); ValueError if not held."""
        if not max(self.first, self.end - len(self._frames)) <= first <= last <= self.end:
            raise ValueError(f"log-mel frames [{first}, {last}) are not held")
        result = np.empty((last - first, self.config.bands), np.float32)
        for span, offset in ring_spans(first, last, len(self._frames)):
            result[offset : offset + span.stop - span.start] = self._frames[span]
        return result

    def _compute(self) -> None:
        count = self.config.count(self._filled)
        if not count:
            return
        frames = self._transform(self._windows[:count])
        for span, offset in ring_spans(self.end, self.end + count, len(self._frames)):
            self._frames[span] = frames[offset : offset + span.stop - span.start]
        self.end += count
        consumed = count * self.config.hop
        self._samples[: self._filled - consumed] = self._samples[consumed : self._filled]
        self._filled -= consumed


class _Transform:
    """Windows of samples to log-mel, float64 inside, in buffers of its own.

    Every step works on each row alone and in one order, so a row's result does not depend on how many are
    computed with it. A dense matrix product would not promise that: BLAS picks its kernel by shape.
    """

    def __init__(self, config: LogMelConfig) -> None:
        self._power = config.power
        self._log_offset = config.log_offset
        self._triangles = _triangles(config)
        self._hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
        self._padded = np.zeros((_ROWS, config.fft))
        self._spectrum = np.empty((_ROWS, config.fft // 2 + 1), np.complex128)
        self._amplitudes = np.empty((config.fft // 2 + 1) * _ROWS)

    def __call__(self, windows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return (rows, bands) for at most _ROWS windows of (rows, window)."""
        rows = len(windows)
        padded = self._padded[:rows]
        # a column per row of windows, without gaps: the sparse product would copy anything else
        amplitudes = self._amplitudes[: self._spectrum.shape[1] * rows].reshape(-1, rows)
        np.multiply(windows, self._hann, out=padded[:, : self._hann.size])
        # real and imaginary parts, side by side
        parts = np.fft.rfft(padded, out=self._spectrum[:rows]).view(np.float64)
        np.square(parts, out=parts)
        np.add(parts[:, ::2].T, parts[:, 1::2].T, out=amplitudes)
        if self._power == 1:
            np.sqrt(amplitudes, out=amplitudes)
        bands: npt.NDArray[np.float64] = self._triangles @ amplitudes
        bands += self._log_offset
        return np.log(bands, out=bands).T


@lru_cache(maxsize=16)
def _triangles(config: LogMelConfig) -> scipy.sparse.csr_array:
    """Return (bands, bins): what each FFT bin adds to each band. A bin lies in two triangles at most."""
    edges = np.linspace(_mel(config.low_hz), _mel(config.high_hz), config.bands + 2)
    points = np.arange(config.fft // 2 + 1) * config.rate_hz / config.fft
    if config.triangles == "mel":
        points = _mel(points)
    else:
        edges = 700.0 * np.expm1(edges / 1127.0)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    sides = np.minimum((points - low) / (peak - low), (high - points) / (high - peak))
    # the DC bin tells a converter's bias, nothing about sound
    sides[:, 0] = 0
    return scipy.sparse.csr_array(np.maximum(sides, 0))


def _mel(hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    mel: npt.NDArray[np.float64] = 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)
    return mel
