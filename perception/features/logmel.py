"""Streaming log-mel spectra on the absolute sample grid: each frame computed once, bit-equal to a batch.

Frame k covers the samples `[k * hop, k * hop + window)`, independent of the blocks in which they arrived.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt
import scipy.sparse

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
        """Return the number of whole frames in a number of samples."""
        return max(0, 1 + (samples - self.window) // self.hop)


# tensorflow/models, research/audioset/vggish/vggish_params.py
VGGISH: Final = LogMelConfig(16_000, 400, 160, 512, 64, 125.0, 7500.0)


def log_mel(samples: Real, config: LogMelConfig = VGGISH) -> Frames:
    """Return all frames of `samples` as (frames, bands) float32; the first frame starts at sample 0."""
    stream = StreamingLogMel(config, history=config.count(samples.size))
    stream.push(0, samples)
    return stream.frames(0, stream.end)


class StreamingLogMel:
    """Log-mel frames of a stream, computed as samples arrive; the newest `history` frames are stored.

    Samples and frames are appended to buffers; when one is full, its used part moves to the front. So both
    are read without a copy. Work space is allocated once per number of frames.
    """

    def __init__(self, config: LogMelConfig = VGGISH, history: int = 128) -> None:
        self.config = config
        self._history = history
        self._transforms: dict[int, _Transform] = {}
        self._samples = np.empty(config.window + (_ROWS - 1) * config.hop)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._samples, config.window)
        self._begin = self._filled = 0
        """Where in `_samples` the next frame starts, and where the next sample goes."""
        self._frames = np.empty((2 * history + _ROWS, config.bands), np.float32)
        self._stored = 0
        self._next = 0
        self.first = self.end = 0
        """Frames computed since the stream last started or jumped: `[first, end)`."""

    def push(self, start_index: int, samples: Real) -> None:
        """Add the samples from `start_index` on; an index other than the next starts a new stream there."""
        if start_index != self._next:
            self.first = self.end = -(-start_index // self.config.hop)
            self._begin = self._filled = self._stored = 0
        self._next = start_index + samples.size
        # after a start, samples before the first whole frame are not needed
        offset = max(0, self.end * self.config.hop + self._filled - self._begin - start_index)
        while offset < samples.size:
            offset += self._append(samples[offset:])
            if count := self.config.count(self._filled - self._begin):
                self._compute(count)

    def frames(self, first: int, last: int) -> Frames:
        """Return a copy of the frames `[first, last)` as (frames, bands); raise ValueError if not stored."""
        if not max(self.first, self.end - self._history) <= first <= last <= self.end:
            raise ValueError(f"log-mel frames [{first}, {last}) are not stored")
        return self._frames[self._stored - self.end + first : self._stored - self.end + last].copy()

    def _append(self, samples: Real) -> int:
        """Add as many samples as there is room for; return how many."""
        if self._filled + samples.size > self._samples.size:
            rest = self._filled - self._begin
            self._samples[:rest] = self._samples[self._begin : self._filled]
            self._begin, self._filled = 0, rest
        taken = min(samples.size, self._samples.size - self._filled)
        self._samples[self._filled : self._filled + taken] = samples[:taken]
        self._filled += taken
        return taken

    def _compute(self, count: int) -> None:
        if self._stored + count > len(self._frames):
            self._frames[: self._history] = self._frames[self._stored - self._history : self._stored]
            self._stored = self._history
        if count not in self._transforms:
            self._transforms[count] = _Transform(self.config, count)
        stop = self._begin + count * self.config.hop
        windows = self._windows[self._begin : stop : self.config.hop]
        self._transforms[count](windows, out=self._frames[self._stored : self._stored + count])
        self._begin = stop
        self._stored += count
        self.end += count


class _Transform:
    """A fixed number of windows to log-mel, in buffers of its own.

    Every step works on each row alone and in one order, so a row's result does not depend on how many are
    computed with it. A dense matrix product would not promise that: BLAS picks its kernel by shape.
    The spectrum is float64: in float32, the rounding error of a loud tone exceeds the level of quiet bands.
    """

    def __init__(self, config: LogMelConfig, rows: int) -> None:
        bins = _bins(config)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
        self._power = config.power
        self._padded = np.zeros((rows, config.fft))
        self._framed = self._padded[:, : config.window]
        self._hann = np.zeros_like(self._padded)
        self._hann[:, : config.window] = hann
        # per row: the real DC bin, then real and imaginary parts of the bins above, side by side
        self._packed = np.empty_like(self._padded)
        self._parts = self._packed[:, 2 * bins.start - 1 : 2 * bins.stop - 1]
        self._spectrum = np.empty((rows, len(bins)), np.complex64)
        self._spectrum_parts = self._spectrum.view(np.float32)
        # a column per row: the sparse product would copy anything else; below them ones, for the offset
        self._weighted = np.ones((len(bins) + 1, rows), np.float32)
        self._amplitudes = self._weighted[:-1]
        self._weights = _weights(config)

    def __call__(self, windows: npt.NDArray[np.float64], out: Frames) -> None:
        """Turn (rows, window) into (rows, bands)."""
        self._framed[:] = windows
        np.multiply(self._padded, self._hann, out=self._padded)
        cv2.dft(self._padded, self._packed, cv2.DFT_ROWS)
        self._spectrum_parts[:] = self._parts
        np.abs(self._spectrum, out=self._amplitudes.T)
        if self._power == 2:
            np.square(self._amplitudes, out=self._amplitudes)
        np.log((self._weights @ self._weighted).T, out=out)


def _bins(config: LogMelConfig) -> range:
    """Return the FFT bins between `low_hz` and `high_hz`, at which all bands end: never DC or Nyquist's."""
    first = math.floor(config.low_hz * config.fft / config.rate_hz) + 1
    return range(first, math.ceil(config.high_hz * config.fft / config.rate_hz))


@lru_cache(maxsize=16)
def _weights(config: LogMelConfig) -> scipy.sparse.csr_array:
    """Return (bands, bins + 1): what each bin of `_bins` adds to each band, then the log offset.

    A bin is in two triangles at most.
    """
    edges = np.linspace(_mel(config.low_hz), _mel(config.high_hz), config.bands + 2)
    points = np.array(_bins(config)) * config.rate_hz / config.fft
    if config.triangles == "mel":
        points = _mel(points)
    else:
        edges = 700.0 * np.expm1(edges / 1127.0)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    sides = np.minimum((points - low) / (peak - low), (high - points) / (high - peak))
    offset = np.full((config.bands, 1), config.log_offset)
    return scipy.sparse.csr_array(np.hstack([np.maximum(sides, 0), offset]), dtype=np.float32)


def _mel(hz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    mel: npt.NDArray[np.float64] = 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)
    return mel
