"""What sound consists of: nothing, the same again, an offset, hum, noise, a channel of two. Pure.

Each test returns why the condition holds, with the figure that decided, or an empty string. Limits without a
name in the profile separate the faults of `tests/sound_faults.py` from an hour of recorded sounds and speech:
see `tests/benchmarks/sound_conditions.py`.
"""

from typing import Final

import numpy as np

from perception.devices.signal.excerpt import FULL_SCALE, ONE_STEP, WHITE_DB, Excerpt, is_tone, whiteness_db

_SPARSE: Final = 0.02
_WHITER_DB: Final = 1.8
"""Measured: dither stays below 1.3 dB, the quietest seconds of an hour of recordings above 2.4 dB."""


def silent(sound: Excerpt) -> str:
    """Return why nothing but the steps of a converter is in any channel: zeros, dither, single steps.

    Quiet sound of a real room is not white, whatever its level.
    """
    peak = float(np.abs(sound.samples).max())
    if peak == 0:
        return "every sample is zero: the microphone is muted or not connected"
    if sound.rms > 2 or peak > 10 or np.all(sound.main == sound.main[0]):
        return ""
    differ = float(np.mean(sound.main != np.median(sound.main)))
    sparse, white_db = differ < _SPARSE and peak < ONE_STEP, whiteness_db(sound)
    if sparse or white_db < (WHITE_DB if peak < ONE_STEP else _WHITER_DB):
        return f"nothing but rounding, up to {peak:.1f} LSB: the microphone is muted or not connected"
    return ""


def stuck(sound: Excerpt) -> str:
    """Return which constant or loop the sound consists of."""
    if sound.high == sound.low and np.all(sound.samples == sound.samples[:, :1]):
        return f"every sample is {sound.low / FULL_SCALE:.4f} of full scale"
    lag = loop(sound)
    if not lag or is_tone(sound):
        return ""
    return f"the same {lag / sound.rate_hz * 1000:.0f} ms of sound come again and again"


def loop(sound: Excerpt) -> int:
    """Return the period in samples at which the newest 0.3 s repeat earlier sound exactly; 0 if they do not.

    Natural sound never repeats exactly. Silence does, so sound that seldom leaves its value is not compared,
    and what is searched is the part around the loudest sample.
    """
    count, checked = len(sound.raw), round(0.3 * sound.rate_hz)
    longest = min(round(sound.limits.loop_s * sound.rate_hz), count - checked)
    newest, moves = sound.main[-checked:], np.count_nonzero(sound.steps[-checked:])
    if longest <= 0 or np.ptp(newest) < 2 * ONE_STEP or moves < checked // 20:
        return 0
    width = max(checked // 16, 1)
    at = count - checked + min(int(np.abs(newest).argmax()), checked - width)
    first, size = max(at - longest, 0), sound.raw.itemsize * sound.raw.shape[1]
    known = sound.raw[first : at + width].tobytes()
    found = known.rfind(known[(at - first) * size :], 0, len(known) - size)
    lag = at - first - found // size
    if found < 0 or found % size or lag > longest:
        return 0
    return lag if np.array_equal(sound.raw[-checked:], sound.raw[count - checked - lag : count - lag]) else 0


def dc(sound: Excerpt) -> str:
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


def hum(sound: Excerpt) -> str:
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


def noise(sound: Excerpt) -> str:
    """Return that it is loud white noise only: an open input. A preamplifier's hiss is below the limit."""
    level = 20 * float(np.log10(max(sound.rms, 1e-3) / FULL_SCALE))
    if level < sound.limits.noise_above_dbfs or whiteness_db(sound) > WHITE_DB:
        return ""
    pieces = np.square(sound.main[: len(sound.main) // 8 * 8].reshape(8, -1)).mean(axis=1)
    if pieces.max() > 1.6 * pieces.min():
        return ""
    return f"white noise of {level:.0f} dBFS and nothing else"


def dead_channel(sound: Excerpt) -> str:
    """Return which channel is dead while another one is not, or that the channels cancel each other."""
    channels, loudest = len(sound.samples), float(sound.powers.max())
    if channels == 1 or sound.rms < 20:
        return ""
    quiet = sound.powers < 1e-3 * loudest
    dead = np.flatnonzero(quiet & ((sound.powers < ONE_STEP**2) | (sound.powers < 1e-5 * loudest)))
    if len(dead):
        return f"channel {int(dead[0]) + 1} of {channels} is dead"
    mix = sound.samples.mean(axis=0)
    left = float(np.mean(np.square(mix - mix.mean()))) / float(sound.powers.mean())
    if left < 0.02:
        return f"the channels cancel each other: their mean holds {left:.2%} of their power"
    return ""
