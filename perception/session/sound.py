"""Split recorded blocks of sound and change their tempo. Pure."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import structs

from perception.features.window import is_whole, raw_samples
from perception.messages import AudioBlock, Message, duration_ns, reached_ns
from perception.units import SECOND_NS
from perception.units.arrays import RawSamples

BLOCK_NS: Final = 100_000_000
"""Length of the blocks into which long sound is split."""


def split_early(message: Message[Any], arrived_ns: int, most_ns: int) -> Iterator[tuple[Message[Any], int]]:
    """Yield a message and its arrival; split sound that arrived too early into blocks, each due at its end.

    Args:
        message: of any topic; sound of another size than its header says is yielded as it is.
        arrived_ns: on the clock of stamps.
        most_ns: sound arrived too early if it ends, but does not begin, later than this after its arrival.
    """
    header, latest_ns = message.header, arrived_ns + most_ns
    is_early = isinstance(header, AudioBlock) and header.stamp_ns <= latest_ns < reached_ns(header)
    if is_early and is_whole(header, message.payload):
        for part in _blocks(message):
            yield part, max(arrived_ns, reached_ns(part.header))
    else:
        yield message, arrived_ns


def _blocks(message: Message[AudioBlock]) -> Iterator[Message[AudioBlock]]:
    header, data = message.header, raw_samples(message.header, message.payload)
    size = BLOCK_NS * header.rate_hz // SECOND_NS
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
    """Return a block made longer or shorter without a change of pitch or a click at its ends.

    It begins with the first sample of the block and ends with the last; in between, copies or parts of the
    block are cross-faded.

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
    # each copy begins at the middle of the one before, or earlier
    for at in np.linspace(0, more, 2 + more * 2 // size).round().astype(int):
        total[at : at + size] += block * weight
        weights[at : at + size] += weight
    return total / weights
