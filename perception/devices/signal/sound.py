"""What is wrong with two seconds of sound: one function per condition, the most serious first. Pure.

A level is in steps of 16-bit sound (LSB, 1 / 32768 of full scale), whatever the format of the samples.
Limits without a name in the profile separate the faults of `tests/sound_faults.py` from an hour of recorded
sounds and speech: see `tests/benchmarks/sound_conditions.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from perception.messages import ConditionName
from perception.profile.signal import MicrophoneSignal
from perception.units.arrays import RawSamples, Samples

ValueT = TypeVar("ValueT", bound=np.generic)
FULL_SCALE: Final = 32768.0
_ONE: Final = 1.5
"""Samples that leave their mean by less are at most one LSB away."""
_SPARSE: Final = 0.02
_WHITE_DB: Final = 3.0
_BREAKS: Final = 3
_PIECE: Final = 16
"""Samples per piece, in tests of neighbouring samples: steps occur in every piece that is loud."""


@dataclass(frozen=True)
class Sound:
    """The sound that is judged.

    Args:
        raw: (samples, channels) as captured.
        rate_hz: nominal rate.
        limits: thresholds of the profile.
    """

    raw: RawSamples
    rate_hz: int
    limits: MicrophoneSignal

    @cached_property
    def samples(self) -> npt.NDArray[np.float32]:
        """(channels, samples) in LSB."""
        scale = np.float32(1.0 if self.raw.dtype == np.int16 else FULL_SCALE)
        return np.multiply(self.raw.T, scale, dtype=np.float32, order="C")

    @cached_property
    def means(self) -> npt.NDArray[np.float32]:
        """Mean of each channel."""
        return np.asarray(self.samples.mean(axis=1))

    @cached_property
    def powers(self) -> npt.NDArray[np.float32]:
        """Mean square of each channel around its mean."""
        squares = np.einsum("cs,cs->c", self.samples, self.samples) / self.samples.shape[1]
        return np.asarray(squares - self.means**2)

    @cached_property
    def main(self) -> Samples:
        """The loudest channel."""
        return np.asarray(self.samples[int(self.powers.argmax())])

    @cached_property
    def rms(self) -> float:
        """RMS of the loudest channel around its mean."""
        return float(np.sqrt(max(self.powers.max(), 0.0)))

    @cached_property
    def low(self) -> float:
        """Least sample of the loudest channel."""
        return float(self.main.min())

    @cached_property
    def high(self) -> float:
        """Greatest sample of the loudest channel."""
        return float(self.main.max())

    @cached_property
    def steps(self) -> Samples:
        """Differences of consecutive samples of the loudest channel."""
        return np.diff(self.main)

    @cached_property
    def still(self) -> npt.NDArray[np.bool_]:
        """Whether each sample of the loudest channel but the first equals the one before."""
        return np.asarray(self.steps == 0)

    @cached_property
    def spectrum(self) -> tuple[Samples, float]:
        """Power per bin of the loudest channel, and the width of a bin in Hz."""
        return spectrum(self.main - self.main.mean(), self.rate_hz)


def spectrum(samples: Samples, rate_hz: int) -> tuple[Samples, float]:
    """Return the mean power per bin of pieces of about 0.1 s, Hann window, and the width of a bin in Hz."""
    size = 1 << (rate_hz // 10).bit_length()
    size = min(size, 1 << (len(samples).bit_length() - 1))
    starts = np.linspace(0, len(samples) - size, -(-len(samples) // size)).astype(np.intp)
    pieces = np.stack([samples[start : start + size] for start in starts])
    lines = np.fft.rfft(pieces * _hann(size), axis=1).view(np.float32)
    squares = np.einsum("pl,pl->l", lines, lines).reshape(-1, 2).sum(axis=1)
    return squares * np.float32(2 / (0.375 * size * size * len(pieces))), rate_hz / size


@lru_cache(maxsize=4)
def _hann(size: int) -> Samples:
    return np.hanning(size).astype(np.float32)


def silent(sound: Sound) -> str:
    """Return why nothing but the converter's own steps is in any channel."""
    peaks = np.abs(sound.samples).max(axis=1)
    if peaks.max() > _ONE:
        return ""
    if peaks.max() == 0:
        return "every sample is zero: the microphone is muted or not connected"
    if np.all(sound.main == sound.main[0]):
        return ""
    share = float(np.mean(sound.main != np.median(sound.main)))
    if share < _SPARSE or whiteness_db(sound) < _WHITE_DB:
        return f"no sample exceeds {peaks.max():.1f} LSB: the microphone is muted or not connected"
    return ""


def whiteness_db(sound: Sound) -> float:
    """Return by how many dB 12 equal bands differ; inf if they hold only a part of the power."""
    power, _ = sound.spectrum
    at = (np.linspace(0.03, 0.88, 13) * (len(power) - 1)).astype(np.intp)
    if float(power[at[0] : at[-1]].sum()) < 0.75 * float(power.sum()):
        return float("inf")
    bands = np.add.reduceat(power, at)[:-1] / np.diff(at)
    return float(10 * np.log10(bands.max() / max(bands.min(), 1e-9)))


def stuck(sound: Sound) -> str:
    """Return which constant or loop the sound consists of."""
    if sound.high == sound.low and np.all(sound.samples == sound.samples[:, :1]):
        return f"every sample is {sound.low / FULL_SCALE:.4f} of full scale"
    lag = loop(sound)
    if not lag or is_tone(sound):
        return ""
    return f"the same {lag / sound.rate_hz * 1000:.0f} ms of sound come again and again"


def loop(sound: Sound) -> int:
    """Return the period in samples at which the newest 0.3 s repeat earlier sound exactly; 0 if they do not.

    Natural sound never repeats exactly. Silence does, so sound that seldom leaves its value is not compared.
    """
    count, rate_hz = len(sound.raw), sound.rate_hz
    checked = round(0.3 * rate_hz)
    longest = min(round(sound.limits.loop_s * rate_hz), count - checked)
    newest = sound.main[-checked:]
    if longest <= 0 or np.ptp(newest) < 2 * _ONE or np.count_nonzero(sound.steps[-checked:]) < checked // 20:
        return 0
    needle = sound.raw[-max(checked // 16, 1) :].tobytes()
    size = sound.raw.itemsize * sound.raw.shape[1]
    known = sound.raw[count - checked - longest :].tobytes()
    at = known.find(needle, checked * size - len(needle), len(known) - 1)
    while at >= 0 and at % size:
        at = known.find(needle, at + 1, len(known) - 1)
    lag = (len(known) - len(needle) - at) // size
    same = at >= 0 and np.array_equal(
        sound.raw[count - checked :], sound.raw[count - checked - lag : count - lag]
    )
    return lag if same else 0


def is_tone(sound: Sound) -> bool:
    """Return whether eight lines hold everything but rounding.

    Tones that were computed repeat exactly, and take few levels, without being stuck or clipped.
    """
    newest = sound.main[-(1 << (sound.rate_hz // 2).bit_length() - 1) :]
    lines = np.square(np.abs(np.fft.rfft((newest - newest.mean()) * np.blackman(len(newest)))))
    total = float(lines.sum())
    for _ in range(8):
        peak = int(lines.argmax())
        lines[max(peak - 6, 0) : peak + 7] = 0
    return float(lines.sum()) <= total / max(sound.rms, 1.0) ** 2


def wrong_rate(sound: Sound) -> str:
    """Return what shows that the sound was sampled at a lower rate."""
    if sound.limits.narrowest_hz == 0 or sound.rate_hz < 2.5 * sound.limits.narrowest_hz:
        return ""
    if sound.rms < 2 * _ONE:
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


def stepped(sound: Sound) -> tuple[float, float]:
    """Return the shares of samples, where it is loud, that equal the one before, and that lie on a line.

    Flat tops of clipped sound do not count.
    """
    reach = (sound.high - sound.low) / 2
    count = (len(sound.main) - 2) // _PIECE * _PIECE
    inner = np.abs(sound.main[:count] - (sound.low + reach)) < 0.96 * reach
    held, loud = _still(np.abs(sound.steps[:count]), inner, 0.5)
    lines, kinked = _still(np.abs(np.diff(sound.steps)[:count]), inner, _ONE)
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


def in_pieces(values: npt.NDArray[ValueT], size: int) -> npt.NDArray[ValueT]:
    """Return consecutive pieces, (size, pieces): numpy reduces the first axis faster than the last."""
    return np.ascontiguousarray(values[: len(values) // size * size].reshape(-1, size).T)


def edge(sound: Sound) -> tuple[float, float]:
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


def dc(sound: Sound) -> str:
    """Return how far the sound is from zero: more than a converter's offset, or more than its own level."""
    pieces = sound.samples[:, : sound.samples.shape[1] // 8 * 8]
    means = pieces.reshape(len(pieces), 8, -1).mean(axis=2)
    offsets = np.where((means > 0).all(axis=1) | (means < 0).all(axis=1), np.abs(means).min(axis=1), 0.0)
    worst = int(offsets.argmax())
    offset, limit = float(offsets[worst]) / FULL_SCALE, sound.limits.dc_above
    rms = float(np.sqrt(max(sound.powers[worst], 0.0))) / FULL_SCALE
    if offset > max(limit, rms / 4) or offset > max(limit / 10, 1.5 * rms):
        return f"the sound is offset by {offset:.1%} of full scale; its RMS is {rms:.2%}"
    return ""


def torn(sound: Sound) -> str:
    """Return how often the sound breaks off and continues: the driver fills lost samples with a constant."""
    shortest, longest = max(round(0.0015 * sound.rate_hz), _PIECE), round(0.12 * sound.rate_hz)
    # a run of equal samples holds half as long a piece of them at least
    if np.count_nonzero(in_pieces(sound.still, shortest // 2).all(axis=0)) < _BREAKS:
        return ""
    changes = np.flatnonzero(~sound.still)
    lengths = np.diff(changes)
    runs = np.flatnonzero((lengths >= shortest) & (lengths <= longest))
    count = sum(_breaks(sound, int(changes[run]) + 1, int(changes[run + 1])) for run in runs[:64])
    return f"the sound breaks off {count} times in {sound.limits.hold_s:g} s" if count >= _BREAKS else ""


def _breaks(sound: Sound, first: int, last: int) -> bool:
    """Return whether it is loud just before and just after a run of equal samples, which is no flat top."""
    value, margin, near = float(sound.main[first]), 0.02 * (sound.high - sound.low), sound.rate_hz // 250
    if not sound.low + margin < value < sound.high - margin:
        return False
    around = (sound.main[max(first - near, 0) : first], sound.main[last + 1 : last + 1 + near])
    levels = [float(np.sqrt(np.mean(np.square(part - value)))) if len(part) else 0.0 for part in around]
    return min(levels) > max(0.3 * sound.rms, 20.0)


def hum(sound: Sound) -> str:
    """Return which mains frequency, with its harmonics, dominates the sound."""
    if sound.rms < FULL_SCALE * 10 ** (sound.limits.hum_above_dbfs / 20):
        return ""
    power, bin_hz = sound.spectrum
    if float(power[: round(1000 / bin_hz)].sum()) < sound.limits.hum_above * float(power.sum()):
        return ""
    ratio = max(sound.rate_hz // 2000, 1)
    low = sound.main[: len(sound.main) // ratio * ratio].reshape(-1, ratio) @ np.full(
        ratio, 1 / ratio, np.float32
    )
    low = low - low.mean()
    levels = np.square(low[: len(low) // 8 * 8].reshape(8, -1)).mean(axis=1)
    if levels.min() < max(0.1 * levels.max(), (FULL_SCALE * 10 ** (sound.limits.hum_above_dbfs / 20)) ** 2):
        return ""
    lines = np.abs(np.fft.rfft(low * np.hanning(len(low)))) ** 2
    lines *= float(np.mean(np.square(low))) / sound.rms**2 / max(float(lines.sum()), 1e-9)
    frequency = np.fft.rfftfreq(len(low), ratio / sound.rate_hz)
    for mains_hz in (50, 60):
        number = np.rint(frequency / mains_hz)
        near = np.abs(frequency - number * mains_hz) < 1.25 + 0.1 * number
        shares = np.bincount(number[near].astype(np.intp), lines[near])[1:17]
        if shares.sum() > sound.limits.hum_above and np.count_nonzero(shares > 0.005) >= 2:
            return f"{mains_hz} Hz and its harmonics hold {shares.sum():.0%} of the sound's power"
    return ""


def clipped(sound: Sound) -> str:
    """Return how much of the sound is flat tops, at any level, or that it wraps around."""
    if sound.high - sound.low < 200:
        return ""
    share = flat_tops(sound)
    if share > sound.limits.clipped_above and not is_tone(sound):
        return f"{share:.1%} of the samples are at the highest or lowest level: turn the gain down"
    if wraps := wrapped(sound):
        return f"the sound wraps around {wraps} times in {sound.limits.hold_s:g} s: turn the gain down"
    return ""


def wrapped(sound: Sound) -> int:
    """Return how often it jumps from one end of its range to the other between small steps; 0 if seldom.

    A number that overflows makes one such jump; a loud high note makes several in a row, and a clipped one
    stays at the ends. Sound that overflows everywhere is white, with all levels equally often.
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
    uniform = kurtosis(sound) < 2.2 and span > 1.9 * FULL_SCALE and whiteness_db(sound) < 2 * _WHITE_DB
    return len(jumps) if uniform else 0


def kurtosis(sound: Sound) -> float:
    """Return the fourth moment over the squared second: 1.8 if all levels are equally frequent."""
    squares = np.square((sound.main - sound.main.mean()) / max(sound.rms, 1e-9))
    return float(np.mean(np.square(squares)))


def flat_tops(sound: Sound) -> float:
    """Return the share of samples in flat tops: far more at the end of the range than just before it."""
    middle, share = float(np.median(sound.main[::_PIECE])), 0.0
    for end in (sound.high, sound.low):
        reach = abs(end - middle)
        if reach < 0.25 * (sound.high - sound.low):
            continue
        width = np.float32(max(_ONE, 0.004 * reach))
        distance = np.abs(sound.main - np.float32(end))
        top = int(np.count_nonzero(distance <= width))
        beside = int(np.count_nonzero(distance <= 5 * width)) - top
        if top > 6 * (beside / 4 + 1):
            share += top / len(sound.main)
    return share


def dead_channel(sound: Sound) -> str:
    """Return which channel is dead while another one is not, or that the channels cancel each other."""
    channels = len(sound.samples)
    if channels == 1 or sound.rms < 20:
        return ""
    dead = np.flatnonzero(sound.powers < np.maximum(_ONE**2, sound.powers.max() * 1e-6))
    if len(dead):
        return f"channel {int(dead[0]) + 1} of {channels} is dead"
    mix = sound.samples.mean(axis=0)
    left = float(np.mean(np.square(mix - mix.mean()))) / float(sound.powers.mean())
    if left < 0.01:
        return f"the channels cancel each other: their mean holds {left:.2%} of their power"
    return ""


def noise(sound: Sound) -> str:
    """Return that it is loud white noise only: an open input. A preamplifier's hiss is below the limit."""
    level = 20 * float(np.log10(max(sound.rms, 1e-3) / FULL_SCALE))
    if level < sound.limits.noise_above_dbfs or whiteness_db(sound) > _WHITE_DB:
        return ""
    pieces = np.square(sound.main[: len(sound.main) // 8 * 8].reshape(8, -1)).mean(axis=1)
    if pieces.max() > 1.6 * pieces.min():
        return ""
    return f"white noise of {level:.0f} dBFS and nothing else"


Test: TypeAlias = Callable[[Sound], str]
TESTS: Final[tuple[tuple[ConditionName, Test, bool], ...]] = (
    ("silent", silent, True),
    ("stuck", stuck, False),
    ("wrong rate", wrong_rate, False),
    ("DC", dc, True),
    ("torn", torn, True),
    ("dead channel", dead_channel, True),
    ("hum", hum, False),
    ("clipped", clipped, True),
    ("noise", noise, False),
)
"""Conditions, the most serious first: the function that returns its reason, and whether it is short."""
