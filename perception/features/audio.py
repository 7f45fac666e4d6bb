"""Turns successive windows of one microphone into inputs of encoders; each sample is transformed once."""

import math
from typing import Final

from perception.features.logmel import VGGISH, Frames, StreamingLogMel
from perception.features.resample import Resampler
from perception.features.window import SampleHistory
from perception.units.arrays import Samples

RATE_HZ: Final = VGGISH.rate_hz
FRAMES: Final = 96
"""Log-mel frames of one VGGish example."""
_SHORTEST: Final = (FRAMES - 1) * VGGISH.hop + VGGISH.window
"""Samples at 16 kHz that they span: 15,600, 0.975 s."""


class AudioFrontEnd:
    """Turns each window of a stream into a 16 kHz waveform and VGGish's log-mel frames.

    Overlapping windows share their work. The result is bit-equal to that of a new front end on the same
    window, if the caller adds `context_ns` of sound before each window: the resampler and the frames' grid
    need it.

    Raises:
        ValueError: windows of `length_ns` are shorter than a VGGish example, 0.975 s.
    """

    def __init__(self, rate_hz: int, length_ns: int, *, exact: bool = False) -> None:
        """`exact`: see `Resampler`."""
        self._exact = exact
        self._rate_hz = rate_hz
        self._waveform_samples = round(length_ns * RATE_HZ / 1e9)
        if self._waveform_samples < _SHORTEST:
            raise ValueError(f"audio windows of {length_ns / 1e6:g} ms: expected at least 975 ms")
        self._end: int | None = None
        self._reset()
        reach = self._waveform_samples + VGGISH.hop
        samples = math.ceil(reach * rate_hz / RATE_HZ) + self._resampler.before + self._resampler.after
        self.context_ns = max(0, math.ceil((samples + 1) * 1e9 / rate_hz) - length_ns)
        """Sound before the nominal window that `update` needs too; see `CONTEXT_NS`."""

    def update(self, samples: Samples, end_index: int, missing: int = 0) -> tuple[Samples, Frames]:
        """Return the waveform (samples,) and the log-mel (96, 64) that end with this window.

        The waveform ends as close to the window's end as the resampler allows, at most 1.6 ms before it
        (3.3 ms where the device's rate is below 16 kHz) and exactly there at 16 kHz. The frames are on the
        hop grid of the whole stream, so the last one ends less than a hop, 10 ms, before the waveform.

        Args:
            samples: float32 mono at the device's rate, exactly those of `[end_index - n, end_index)`. At
                16 kHz the waveform is a part of them, without a copy.
            end_index: absolute index one past the window.
            missing: how many of the samples are zeros because data is missing. Later windows may contain
                the data, so nothing is reused from a window with gaps.

        Raises:
            ValueError: the window is shorter than `length_ns` and `context_ns` together.
        """
        start = end_index - samples.size
        end = self._resampler.end(end_index)
        last = (end - VGGISH.window) // VGGISH.hop + 1
        earliest = min(end - self._waveform_samples, (last - FRAMES) * VGGISH.hop)
        if self._resampler.first(start) > earliest:
            raise ValueError(f"{samples.size} samples at {self._rate_hz} Hz are too few for an audio window")
        if self._end is None or not start <= self._end <= end_index:
            self._reset()
        known = 0 if self._end is None else self._end - start
        first, outputs = self._resampler.push(start + known, samples[known:])
        self._log_mel.push(first, outputs)
        self._end = end_index
        if self._rate_hz == RATE_HZ:
            waveform = samples[samples.size - self._waveform_samples :]
        else:
            self._waveform.push(first, outputs)
            waveform, _ = self._waveform.read(end - self._waveform_samples, end)
        log_mel = self._log_mel.frames(last - FRAMES, last)
        if missing:
            self._reset()
        return waveform, log_mel

    def _reset(self) -> None:
        self._resampler = Resampler(self._rate_hz, RATE_HZ, exact=self._exact)
        self._waveform = SampleHistory(self._waveform_samples)
        self._log_mel = StreamingLogMel(VGGISH, history=FRAMES)
        self._end = None
