"""Sample-exact audio windows: decode blocks, keep the newest samples, read any span of them.

Pure numpy. Samples are addressed by their absolute index, counted by the device since it opened, so a
window never depends on how the sound was cut into blocks.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.messages import AudioBlock, Payload

CONTEXT_NS: Final = 20_000_000
"""Sound before an audio window that covers `AudioFrontEnd.context_ns` at any device rate from 8 kHz up."""
Samples = npt.NDArray[np.float32]


def decode_samples(header: AudioBlock, payload: Payload) -> Samples:
    """Return the block as (samples,) float32 mono: s16 / 32768 or f32 as it is, channels averaged.

    Raises:
        ValueError: the payload's size contradicts the header, or a sample is NaN or infinite.
    """
    dtype = np.dtype("<i2" if header.format == "s16" else "<f4")
    values = header.samples * header.channels
    if len(memoryview(payload).cast("B")) != values * dtype.itemsize:
        raise ValueError(
            f"{header.format} payload does not hold {header.samples} x {header.channels} samples"
        )
    interleaved = np.frombuffer(payload, dtype, count=values).reshape(header.samples, header.channels)
    # float64 keeps the sum of huge but finite f32 channels finite
    mono = interleaved[:, 0] if header.channels == 1 else interleaved.mean(axis=1, dtype=np.float64)
    if header.format == "s16":
        scaled: Samples = np.multiply(mono, np.float32(1 / 32768), dtype=np.float32)
        return scaled
    samples: Samples = mono.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("samples are not finite")
    return samples


def ring_spans(start: int, stop: int, capacity: int) -> Iterator[tuple[slice, int]]:
    """Yield where `[start, stop)` lies in a ring of `capacity`: one or two slices, each with its offset."""
    if start >= stop:
        return
    at = start % capacity
    head = min(stop - start, capacity - at)
    yield slice(at, at + head), 0
    if head < stop - start:
        yield slice(0, stop - start - head), head


class SampleRing:
    """The newest `capacity` mono samples of one stream, addressed by absolute sample index.

    Memory is fixed. What was never pushed, or is no longer held, reads as zero and counts as missing.
    """

    def __init__(self, rate_hz: int, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least one sample")
        self.rate_hz = rate_hz
        self.capacity = capacity
        self.end: int | None = None
        """One past the newest sample; None until something was pushed."""
        self._samples = np.zeros(capacity, np.float32)
        self._missing = np.ones(capacity, np.bool_)

    def push(self, index: int, samples: npt.NDArray[np.float32]) -> None:
        """Append `samples`, the first of them at `index`; a gap before it is zero and missing.

        Raises:
            ValueError: samples at these indices were pushed, or skipped, before. Nothing changes then.
        """
        if self.end is not None and index < self.end:
            raise ValueError(f"sample {index} comes after sample {self.end}: overlap or duplicate")
        stop = index + samples.size
        if self.end is not None:
            self._fill(max(self.end, stop - self.capacity), index, None)
        kept = min(samples.size, self.capacity)
        self._fill(stop - kept, stop, samples[samples.size - kept :])
        self.end = stop

    def read(self, start: int, stop: int) -> tuple[Samples, int]:
        """Return a copy of exactly `[start, stop)` and how many of its samples are missing."""
        samples = np.zeros(stop - start, np.float32)
        if self.end is None:
            return samples, samples.size
        held = 0
        first, last = max(start, self.end - self.capacity), min(stop, self.end)
        for span, offset in ring_spans(first, last, self.capacity):
            at = first - start + offset
            samples[at : at + span.stop - span.start] = self._samples[span]
            held += span.stop - span.start - int(np.count_nonzero(self._missing[span]))
        return samples, samples.size - held

    def _fill(self, start: int, stop: int, samples: npt.NDArray[np.float32] | None) -> None:
        for span, offset in ring_spans(start, stop, self.capacity):
            length = span.stop - span.start
            self._samples[span] = 0 if samples is None else samples[offset : offset + length]
            self._missing[span] = samples is None
