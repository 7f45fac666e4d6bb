"""What was done to sound: sampled at a lower rate, broken off, clipped. Pure.

Each test returns why the condition holds, with the figure that decided, or an empty string. Limits without a
name in the profile separate the faults of `tests/sound_faults.py` from an hour of recorded sounds and speech:
see `tests/benchmarks/sound_conditions.py`.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.signal.excerpt import (
    FULL_SCALE,
    ONE_STEP,
    WHITE_DB,
    Excerpt,
    in_pieces,
    is_tone,
    kurtosis,
    whiteness_db,
)
from perception.units.arrays import Samples

_BREAKS: Final = 2
_PIECE: Final = 16
"""Samples per piece, in tests of neighbouring samples: steps occur in every piece that is loud."""


def wrong_rate(sound: Excerpt) -> str:
    """Return what shows that the sound was sampled at a lower rate."""
    if sound.limits.narrowest_hz == 0 or sound.rate_hz < 2.5 * sound.limits.narrowest_hz:
        return ""
    if sound.rms < 2 * ONE_STEP:
        return ""
    held, lines = stepped(sound)
    if held > 0.4:
        return f"{held:.0%} of the samples repeat the one before: sampled below {sound.rate_hz} Hz"
    if lines > 0.4:
        return f"{lines:.0%} of the samples lie between their neighbours: sampled below {sound.rate_hz} Hz"
    drop_db, edge_hz = edge(sound)
    if drop_db > 27:
        return (
            f"nothing above {edge_hz:.0f} Hz ({drop_db:.0f} dB less): sampled at about "
            f"{2 * edge_hz / 1000:.0f} kHz, not {sound.rate_hz} Hz"
        )
    return ""


def stepped(sound: Excerpt) -> tuple[float, float]:
    """Return the shares of samples, where it is loud, that equal the one before, and that lie on a line.

    Flat tops of clipped sound do not count.
    """
    reach = (sound.high - sound.low) / 2
    count = (len(sound.main) - 2) // _PIECE * _PIECE
    inner = np.abs(sound.main[:count] - (sound.low + reach)) < 0.96 * reach
    held, loud = _still(np.abs(sound.steps[:count]), inner, 0.5)
    lines, kinked = _still(np.abs(np.diff(sound.steps)[:count]), inner, ONE_STEP)
    return held, lines if kinked > loud // 2 else 0.0


def _still(changes: Samples, inner: npt.NDArray[np.bool_], most: float) -> tuple[float, int]:
    """Return the share of changes of at most `most` LSB in pieces with large ones, and how many those are."""
    by_place = in_pieces(changes, _PIECE)
    loud = by_place.max(axis=0) >= 20
    pieces = int(np.count_nonzero(loud))
    if pieces < 20:
        return 0.0, pieces
    small = (by_place[:, loud] <= most) & in_pieces(inner, _PIECE)[:, loud]
    return float(np.count_nonzero(small)) / small.size, pieces


def edge(sound: Excerpt) -> tuple[float, float]:
    """Return by how many dB the sound falls at the sharpest edge below `narrowest_hz`, and its frequency.

    Compared are the mean of the 400 Hz below the edge and the highest line from 250 Hz above it on.
    """
    power, bin_hz = sound.spectrum
    levels = 10 * np.log10(power + np.float32(1e-9))
    width, gap = max(round(400 / bin_hz), 1), max(round(250 / bin_hz), 1)
    edges = np.arange(round(1500 / bin_hz), round(sound.limits.narrowest_hz / bin_hz))
    sums = np.concatenate([[0.0], np.cumsum(levels, dtype=np.float64)])
    below = (sums[edges] - sums[edges - width]) / width
    tops = np.maximum.accumulate(levels[: round(0.95 * len(levels))][::-1])[::-1]
    drops = below - tops[edges + gap]
    best = int(drops.argmax())
    return float(drops[best]), float(edges[best] * bin_hz)


def torn(sound: Excerpt) -> str:
    """Return how often the sound breaks off and continues: the driver fills lost samples with a constant."""
    shortest, longest = max(round(0.001 * sound.rate_hz), _PIECE), round(0.12 * sound.rate_hz)
    # a run of equal samples holds half as long a piece of them at least
    if np.count_nonzero(in_pieces(sound.still, shortest // 2).all(axis=0)) < _BREAKS:
        return ""
    changes = np.flatnonzero(~sound.still)
    lengths = np.diff(changes)
    runs = np.flatnonzero((lengths >= shortest) & (lengths <= longest))
    if len(runs) < _BREAKS:
        return ""
    # sound that was amplified from a few levels rests at each of them
    loud = max(0.3 * sound.rms, 20.0, 10 * float(np.abs(sound.steps[changes]).min()))
    count = sum(_breaks(sound, int(changes[run]) + 1, int(changes[run + 1]), loud) for run in runs[:64])
    return f"the sound breaks off {count} times in {sound.limits.hold_s:g} s" if count >= _BREAKS else ""


def _breaks(sound: Excerpt, first: int, last: int, loud: float) -> bool:
    """Return whether it is loud just before and just after a run of equal samples, which is no flat top."""
    value, margin, near = float(sound.main[first]), 0.02 * (sound.high - sound.low), sound.rate_hz // 250
    if not sound.low + margin < value < sound.high - margin:
        return False
    around = (sound.main[max(first - near, 0) : first], sound.main[last + 1 : last + 1 + near])
    levels = [float(np.sqrt(np.mean(np.square(part - value)))) if len(part) else 0.0 for part in around]
    return min(levels) > loud


def clipped(sound: Excerpt) -> str:
    """Return how much of the sound is flat tops, at any level, or that it wraps around."""
    if sound.high - sound.low < 200:
        return ""
    share = flat_tops(sound)
    if share > sound.limits.clipped_above and not is_tone(sound):
        return f"{share:.1%} of the samples are at the highest or lowest level: turn the gain down"
    if wraps := wrapped(sound):
        return f"the sound wraps around {wraps} times in {sound.limits.hold_s:g} s: turn the gain down"
    return ""


def flat_tops(sound: Excerpt) -> float:
    """Return the share of samples in flat tops: far more at the end of the range than just before it."""
    middle, share = float(np.median(sound.main[::_PIECE])), 0.0
    for end in (sound.high, sound.low):
        reach = abs(end - middle)
        if reach < 0.25 * (sound.high - sound.low):
            continue
        width = np.float32(max(ONE_STEP, 0.004 * reach))
        distance = np.abs(sound.main - np.float32(end))
        top = int(np.count_nonzero(distance <= width))
        beside = int(np.count_nonzero(distance <= 5 * width)) - top
        if top > 6 * (beside / 4 + 1):
            share += top / len(sound.main)
    return share


def wrapped(sound: Excerpt) -> int:
    """Return how often it jumps from one end of its range to the other between small steps; 0 if seldom.

    A number that overflows makes one such jump; a loud high note makes several in a row, and a clipped one
    stays at the ends. Excerpt that overflows everywhere is white, with all levels equally often.
    """
    span, steps = sound.high - sound.low, np.abs(sound.steps)
    jumps = np.flatnonzero(steps[1:-1] > 0.75 * span) + 1
    if len(jumps) < 10 * sound.limits.hold_s:
        return 0
    alone = int(np.count_nonzero((steps[jumps - 1] < 0.3 * span) & (steps[jumps + 1] < 0.3 * span)))
    margin = 0.01 * span
    ends = int(np.count_nonzero((sound.main < sound.low + margin) | (sound.main > sound.high - margin)))
    if alone > max(12 * sound.limits.hold_s, 0.2 * ends):
        return alone
    uniform = kurtosis(sound) < 2.2 and span > 1.9 * FULL_SCALE and whiteness_db(sound) < 2 * WHITE_DB
    return len(jumps) if uniform else 0
