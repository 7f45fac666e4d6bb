"""The samples of recorded blocks, and their tempo. Pure."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from msgspec import structs

from perception.messages import AudioBlock, Message, duration_ns
from perception.units import SECOND_NS
from perception.units.arrays import RawSamples


def samples(message: Message[AudioBlock]) -> RawSamples:
    """Return a block as (samples, channels)."""
    shape = (-1, message.header.channels)
    if message.header.format == "s16":
        return np.frombuffer(message.payload, np.dtype("<i2")).reshape(shape)
    return np.frombuffer(message.payload, np.dtype("<f4")).reshape(shape)


def blocks(message: Message[AudioBlock], most_ns: int) -> Iterator[Message[AudioBlock]]:
    """Yield a block in pieces that last `most_ns` at most, each with its own stamp and index."""
    header, data = message.header, samples(message)
    size = max(1, most_ns * header.rate_hz // SECOND_NS)
    for start in range(0, header.samples, size):
        part = data[start : start + size]
        fields = {
            "stamp_ns": header.stamp_ns + duration_ns(start, header.rate_hz),
            "sample_index": header.sample_index + start,
            "samples": len(part),
            "gap": 0 if start else header.gap,
        }
        yield structs.replace(message, header=structs.replace(header, **fields), payload=part.tobytes())


def at_tempo(block: RawSamples, count: int) -> RawSamples:
    """Return a block made longer or shorter at its own pitch; it joins its neighbours without a click.

    It begins with the block's first sample and ends with its last; in between, copies or parts of it fade
    into each other.

    Args:
        block: (samples, channels).
        count: samples wanted, 1 or more.

    Returns:
        (count, channels), of the same type.
    """
    found = _longer(block, count) if count > len(block) else _shorter(block, count)
    if block.dtype == np.int16:
        return np.rint(found).astype(np.int16)
    return found.astype(np.float32)


def _shorter(block: RawSamples, count: int) -> npt.NDArray[np.float64]:
    fade = np.linspace(0.0, 1.0, count)[:, None]
    return block[:count] * (1 - fade) + block[len(block) - count :] * fade


def _longer(block: RawSamples, count: int) -> npt.NDArray[np.float64]:
    size, more = len(block), count - len(block)
    weight = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1))[:, None]
    total, weights = np.zeros((count, block.shape[1])), np.zeros((count, 1))
    # each copy begins no later than in the middle of the one before
    for at in np.linspace(0, more, 2 + more * 2 // size).round().astype(int):
        total[at : at + size] += block * weight
        weights[at : at + size] += weight
    return total / weights
