"""Sample-exact audio windows: decode blocks, keep the newest samples, read any span of them.

Pure numpy. Samples are addressed by their absolute index, counted by the device since it opened, so a
window never depends on how the sound was cut into blocks.
"""

from collections import deque
from typing import Final

import numpy as np

from perception.messages import AudioBlock, Payload
from perception.units.arrays import SAMPLE_TYPES, RawSamples, Samples

CONTEXT_NS: Final = 20_000_000
"""Sound before an audio window that covers `AudioFrontEnd.context_ns` at any device rate from 8 kHz up."""
_S16_SCALE: Final = np.float32(1 / 32768)


def raw_samples(header: AudioBlock, payload: Payload) -> RawSamples:
    """Return the samples of a block as they are in its payload, (samples, channels), not copied.

    Raises:
        ValueError: the payload ends within a sample of all channels.
    """
    return np.frombuffer(payload, SAMPLE_TYPES[header.format]).reshape(-1, header.channels)


def decode_samples(header: AudioBlock, payload: Payload) -> Samples:
    """Return the block as (samples,) float32 mono: s16 / 32768 or f32 as it is, channels averaged.

    Raises:
        ValueError: the payload's size contradicts the header, or a sample is NaN or infinite.
    """
    if not is_whole(header, payload):
        raise ValueError(
            f"{header.format} payload does not hold {header.samples} x {header.channels} samples"
        )
    raw = raw_samples(header, payload)
    # float64 keeps the sum of huge but finite f32 channels finite
    mono = raw.mean(axis=1, dtype=np.float64) if header.channels > 1 else raw[:, 0]
    if header.format == "s16":
        scaled: Samples = np.multiply(mono, _S16_SCALE, dtype=np.float32)
        return scaled
    samples: Samples = mono.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("samples are not finite")
    return samples


def is_whole(header: AudioBlock, payload: Payload) -> bool:
    """Return whether the payload has the size given by the header."""
    return len(payload) == header.samples * header.channels * SAMPLE_TYPES[header.format].itemsize


def is_finite(header: AudioBlock, payload: Payload) -> bool:
    """Return whether every sample of the block is a finite number."""
    return bool(np.isfinite(raw_samples(header, payload)).all())


class SampleHistory:
    """The newest `capacity` mono samples of one stream, addressed by absolute sample index.

    Samples never pushed, or no longer stored, are read as zero and count as missing. Samples are appended to
    a buffer, in which they never change; when it is full, the stored ones are copied to a new buffer. So
    `read` needs no copy, and what it returned stays valid.
    """

    def __init__(self, capacity: int) -> None:
        """Store the newest `capacity` samples; raise ValueError if it is below one."""
        if capacity < 1:
            raise ValueError("capacity must be at least one sample")
        self.capacity = capacity
        self.end: int | None = None
        """One past the newest sample; None before the first push."""
        self._first = 0
        self._gaps: deque[tuple[int, int]] = deque()
        """Spans skipped since `_first`, as far as they are within the capacity."""
        self._buffer = np.zeros(2 * capacity, np.float32)
        self._base = 0
        """Index of the buffer's first sample."""

    def push(self, index: int, samples: Samples) -> None:
        """Append `samples`, the first of them at `index`; a gap before it is zero and missing.

        Raises:
            ValueError: samples at these indices were pushed or skipped before; nothing is changed.
        """
        stop = index + samples.size
        if self.end is None:
            self.end = self._first = self._base = index
        elif index < self.end:
            raise ValueError(f"sample {index} comes after sample {self.end}: overlap or duplicate")
        elif index > self.end:
            self._gaps.append((self.end, index))
        oldest = stop - self.capacity
        if stop - self._base > self._buffer.size:
            stored = self._buffer[oldest - self._base : max(oldest, self.end) - self._base]
            self._buffer, self._base = np.zeros(self._buffer.size, np.float32), oldest
            self._buffer[: stored.size] = stored
        at = index - self._base
        self._buffer[max(0, at) : stop - self._base] = samples[max(0, -at) :]
        self.end = stop
        while self._gaps and self._gaps[0][1] <= oldest:
            self._gaps.popleft()

    def read(self, start: int, stop: int) -> tuple[Samples, int]:
        """Return exactly `[start, stop)` as (stop - start,) float32, and how many of them are missing.

        The array may be a read-only view of the buffer.
        """
        if self.end is None:
            return np.zeros(stop - start, np.float32), stop - start
        first, last = max(start, self._first, self.end - self.capacity), min(stop, self.end)
        stored = self._buffer[first - self._base : max(first, last) - self._base]
        skipped = sum(max(0, min(last, end) - max(first, begin)) for begin, end in self._gaps)
        missing = stop - start - stored.size + skipped
        if stored.size < stop - start:
            samples = np.zeros(stop - start, np.float32)
            samples[first - start : first - start + stored.size] = stored
            return samples, missing
        stored.setflags(write=False)
        return stored, missing
