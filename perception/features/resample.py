"""Streaming resampling between any two rates on the absolute sample grid, without delay.

Output sample m lies at input position m * in_rate / out_rate and depends on the input samples around it
alone, so neither the blocks nor what came long before can change it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from perception.features.window import Samples

_ROWS: Final = 256
"""Outputs computed at once: their input windows stay in the cache."""
_MAX_TAPS: Final = 1 << 23
"""64 MiB of filter."""


@dataclass(frozen=True, slots=True)
class SincFilter:
    """A Kaiser-windowed sinc, parametrised as torchaudio's `sinc_interp_kaiser`.

    The defaults, towards 16 kHz: flat to 7 kHz, half at 7.5 kHz, under -60 dB from 8.2 kHz on.
    """

    zeros: int = 24
    """Zero crossings on each side."""
    rolloff: float = 0.945
    """Cut-off as a part of the lower rate's Nyquist frequency."""
    beta: float = 6.0


class Resampler:
    """Turns blocks of one rate into blocks of another; bit-equal however the blocks are cut.

    Raises:
        ValueError: the two rates share so small a divisor that the filter bank would not fit in memory.
    """

    def __init__(self, in_rate_hz: int, out_rate_hz: int, design: SincFilter = SincFilter()) -> None:
        self._taps = _taps(in_rate_hz, out_rate_hz, design)
        divisor = math.gcd(in_rate_hz, out_rate_hz)
        self._up, self._down = out_rate_hz // divisor, in_rate_hz // divisor
        self.after: int = self._taps.shape[1] // 2
        """How many input samples after an output's position, rounded down, it depends on."""
        self.before: int = self._taps.shape[1] - 1 - self.after
        """How many before it."""
        self._next: int | None = None
        self._output = 0
        self._held = np.empty(0)

    def push(self, start_index: int, samples: npt.NDArray[Any]) -> tuple[int, Samples]:
        """Take the input from `start_index` on; return the index of the first new output, and the outputs.

        An output comes as soon as the input `after` its position is there. Any other index than the next
        starts anew there: the first output is the first that has all its input.
        """
        if start_index != self._next:
            self._held = np.empty(0)
            self._output = self.first(start_index)
        first, stop = self._output, max(self._output, self.end(start_index + samples.size))
        base = start_index - self._held.size
        held = np.concatenate([self._held, samples])
        outputs = self._interpolate(held, base, first, stop)
        self._next = start_index + samples.size
        self._output = stop
        self._held = held[max(0, self._position(stop) - self.before - base) :].copy()
        return first, outputs

    def first(self, start_index: int) -> int:
        """Return the first output that depends on no input before `start_index`."""
        return -(-(start_index + self.before) * self._up // self._down)

    def end(self, end_index: int) -> int:
        """Return one past the last output that depends on no input from `end_index` on."""
        return -(-(end_index - self.after) * self._up // self._down)

    def _position(self, output: int) -> int:
        return output * self._down // self._up

    def _interpolate(self, held: npt.NDArray[np.float64], base: int, first: int, stop: int) -> Samples:
        outputs = np.empty(stop - first, np.float32)
        if not outputs.size:
            return outputs
        if self._taps.size == 1:
            outputs[:] = held
            return outputs
        windows = np.lib.stride_tricks.sliding_window_view(held, self._taps.shape[1])
        for row in range(0, outputs.size, _ROWS):
            # Python integers up to here: a product of sample index and rate may exceed 64 bits
            position, phase = divmod((first + row) * self._down, self._up)
            steps = phase + self._down * np.arange(min(_ROWS, outputs.size - row))
            at, phases = np.divmod(steps, self._up)
            near = windows[at + (position - self.before - base)]
            outputs[row : row + _ROWS] = np.einsum("ij,ij->i", near, self._taps[phases])
        return outputs


def resample(
    samples: npt.NDArray[Any],
    in_rate_hz: int,
    out_rate_hz: int,
    design: SincFilter = SincFilter(),
) -> Samples:
    """Return a whole clip at another rate, ceil(n * out / in) samples; silence lies before and after it."""
    resampler = Resampler(in_rate_hz, out_rate_hz, design)
    padded = np.pad(samples, (resampler.before, resampler.after))
    return resampler.push(-resampler.before, padded)[1]


@lru_cache(maxsize=16)
def _taps(in_rate_hz: int, out_rate_hz: int, design: SincFilter) -> npt.NDArray[np.float64]:
    """Return (phases, taps): phase r weighs the input around a position r / phases past a sample."""
    if in_rate_hz == out_rate_hz:
        return np.ones((1, 1))
    phases = out_rate_hz // math.gcd(in_rate_hz, out_rate_hz)
    cutoff = min(1.0, out_rate_hz / in_rate_hz) * design.rolloff
    half_width = math.ceil(design.zeros / cutoff)
    if phases * 2 * half_width > _MAX_TAPS:
        raise ValueError(f"{in_rate_hz} Hz cannot be resampled to {out_rate_hz} Hz: no common divisor to use")
    offsets = np.arange(1 - half_width, half_width + 1) - np.arange(phases)[:, None] / phases
    crossings = np.clip(offsets * cutoff, -design.zeros, design.zeros)
    window = np.i0(design.beta * np.sqrt(1 - (crossings / design.zeros) ** 2)) / np.i0(design.beta)
    taps: npt.NDArray[np.float64] = np.sinc(crossings) * window * cutoff
    return taps
