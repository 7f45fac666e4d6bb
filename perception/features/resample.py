"""Streaming resampling between any two rates on the absolute sample grid, without delay.

Output sample m is at input position m * in_rate / out_rate and depends only on the input samples around it,
not on the blocks in which they arrive or on earlier samples.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from perception.units.arrays import Samples

_FEW_PHASES: Final = 8
_ROWS: Final = 256
"""Outputs computed at once where their windows must be copied: these stay in the processor's cache."""
_ROOM: Final = 8192
"""Input samples added at once."""
_MAX_TAPS: Final = 5 << 17
"""5 MiB of filter, built in less than 0.1 s; the usual rates need less, such as 44,100 Hz a twentieth."""
_MAX_EXACT_TAPS: Final = 1 << 23
"""64 MiB, the limit of earlier versions."""
_FEWEST_PHASES: Final = 128


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

    Where the rates share so small a divisor that a filter for each output of a cycle exceeds 5 MiB,
    each output uses the nearest of as many as fit: from 44.1 kHz at most a 8,800th of an input sample from
    its position, -83 dB of noise from a tone at 8 kHz and less from lower ones. The error causes no drift.

    Raises:
        ValueError: the filter exceeds its limit: the input's rate is thousands of times the output's, or
            `exact` needs more than 64 MiB.
    """

    def __init__(
        self, in_rate_hz: int, out_rate_hz: int, design: SincFilter = SincFilter(), *, exact: bool = False
    ) -> None:
        """`exact`: each output has a filter of its own at any rate, as in sessions recorded by rules 0."""
        divisor = math.gcd(in_rate_hz, out_rate_hz)
        self._up, self._down = out_rate_hz // divisor, in_rate_hz // divisor
        self._taps = _taps(in_rate_hz, out_rate_hz, design, exact)
        self._offsets, past = np.divmod(np.arange(self._up) * self._down, self._up)
        self._nearest = _nearest(past / self._up, self._taps.shape[0])
        """Filter of each output of a cycle; None if each has its own."""
        taps = self._taps.shape[1]
        self.after: int = taps // 2
        """How many input samples after an output's position, rounded down, it depends on."""
        self.before: int = taps - 1 - self.after
        """How many samples before it."""
        self._buffer = np.empty(2 * taps + _ROOM)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._buffer, taps)
        self._base = self._filled = 0
        """Index of the first sample in the buffer, and number of samples in it."""
        self._next: int | None = None
        self._output = 0

    def push(self, start_index: int, samples: npt.NDArray[Any]) -> tuple[int, Samples]:
        """Add the input from `start_index` on; return the index of the first new output, and the outputs.

        An output is returned as soon as the `after` samples after its position were added. An index other
        than the next starts a new stream there: its first output is the first that has all its input.
        """
        if self._up == self._down:
            return start_index, np.asarray(samples, np.float32)
        if start_index != self._next:
            self._base, self._filled = start_index, 0
            self._output = self.first(start_index)
        self._next = start_index + samples.size
        first = self._output
        outputs = np.empty(max(0, self.end(self._next) - first), np.float32)
        offset = 0
        while offset < samples.size:
            offset += self._append(samples[offset:])
            stop = max(self._output, self.end(self._base + self._filled))
            self._interpolate(outputs[self._output - first : stop - first])
            self._output = stop
        return first, outputs

    def first(self, start_index: int) -> int:
        """Return the first output that depends on no input before `start_index`."""
        return -(-(start_index + self.before) * self._up // self._down)

    def end(self, end_index: int) -> int:
        """Return one past the last output that depends on no input from `end_index` on."""
        return -(-(end_index - self.after) * self._up // self._down)

    def _append(self, samples: npt.NDArray[Any]) -> int:
        """Add as many samples as there is room for; return how many."""
        if self._filled + samples.size > self._buffer.size:
            needed = self._output * self._down // self._up - self.before
            rest = self._buffer[max(0, needed - self._base) : self._filled]
            self._base += self._filled - rest.size
            self._filled = rest.size
            self._buffer[: rest.size] = rest
        taken = min(samples.size, self._buffer.size - self._filled)
        self._buffer[self._filled : self._filled + taken] = samples[:taken]
        self._filled += taken
        return taken

    def _interpolate(self, outputs: Samples) -> None:
        """Compute the next outputs, each as the dot product of its own row: its bits depend on no neighbour.

        With few phases, all outputs of a phase are computed at once, as their windows are evenly spaced; with
        many, the outputs of a cycle.
        """
        if self._up <= _FEW_PHASES:
            for first in range(min(self._up, outputs.size)):
                place, at = self._find(self._output + first)
                of_phase = outputs[first :: self._up]
                near = self._windows[at :: self._down][: of_phase.size]
                np.vecdot(near, self._taps[place], out=of_phase)
            return
        done = 0
        while done < outputs.size:
            place, at = self._find(self._output + done)
            stop = min(self._up, place + outputs.size - done, place + _ROWS)
            offsets = self._offsets[place:stop] - self._offsets[place]
            here = outputs[done : done + offsets.size]
            rows = slice(place, stop) if self._nearest is None else self._nearest[place:stop]
            np.vecdot(self._windows[at + offsets], self._taps[rows], out=here)
            done += offsets.size

    def _find(self, output: int) -> tuple[int, int]:
        """Return the output's place in the cycle, and the start of its window in `_buffer`."""
        # Python integers: a product of sample index and rate may exceed 64 bits
        cycle, place = divmod(output, self._up)
        return place, cycle * self._down + int(self._offsets[place]) - self.before - self._base


def resample(
    samples: npt.NDArray[Any],
    in_rate_hz: int,
    out_rate_hz: int,
    design: SincFilter = SincFilter(),
) -> Samples:
    """Return a whole clip at another rate, ceil(n * out / in) samples, with silence before and after it."""
    resampler = Resampler(in_rate_hz, out_rate_hz, design)
    padded = np.pad(samples, (resampler.before, resampler.after))
    return resampler.push(-resampler.before, padded)[1]


def _nearest(past: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.intp] | None:
    """Return the index of the nearest filter for each phase, None if each phase has its own."""
    if rows == past.size:
        return None
    return np.rint(past * (rows - 1)).astype(np.intp)


@lru_cache(maxsize=16)
def _taps(in_rate_hz: int, out_rate_hz: int, design: SincFilter, exact: bool) -> npt.NDArray[np.float64]:
    """Return (phases, taps): the weights of the input around each output of a cycle, in the outputs' order.

    If those are too many: around positions spaced evenly from one input sample to the next, both included.
    """
    if in_rate_hz == out_rate_hz:
        return np.ones((1, 1))
    divisor = math.gcd(in_rate_hz, out_rate_hz)
    phases = out_rate_hz // divisor
    cutoff = min(1.0, out_rate_hz / in_rate_hz) * design.rolloff
    half_width = math.ceil(design.zeros / cutoff)
    limit = _MAX_EXACT_TAPS if exact else _MAX_TAPS
    fitting = limit // (2 * half_width)
    if fitting < (phases if exact else _FEWEST_PHASES):
        raise ValueError(
            f"{in_rate_hz} Hz cannot be resampled to {out_rate_hz} Hz: filter exceeds {limit >> 17} MiB"
        )
    if phases <= fitting:  # how far past an input sample
        past = np.arange(phases) * (in_rate_hz // divisor) % phases / phases
    else:
        past = np.linspace(0, 1, fitting)
    offsets = np.arange(1 - half_width, half_width + 1) - past[:, None]
    crossings = np.clip(offsets * cutoff, -design.zeros, design.zeros)
    window = np.i0(design.beta * np.sqrt(1 - (crossings / design.zeros) ** 2)) / np.i0(design.beta)
    taps: npt.NDArray[np.float64] = np.sinc(crossings) * window * cutoff
    return taps
