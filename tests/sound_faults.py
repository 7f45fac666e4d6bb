"""Faults of sound: each takes real sound and returns what a faulty microphone delivers. Seeded, numpy only.

Sound is (samples, channels) float32 in full scale; the result has the same shape.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.messages import ConditionName

Floats = npt.NDArray[np.float32]
Fault = Callable[[Floats, int, np.random.Generator], Floats]
LSB: Final = 1 / 32768


def as_format(sound: Floats, form: str) -> npt.NDArray[np.int16] | Floats:
    """Return the sound as `s16` or `f32`."""
    if form == "f32":
        return sound
    return np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)


def like(sound: Floats, values: npt.NDArray[np.floating]) -> Floats:
    """Return one channel of values in every channel of `sound`."""
    return values.astype(np.float32)[:, None].repeat(sound.shape[1], axis=1)


def limited(values: npt.NDArray[np.floating]) -> Floats:
    """Return the values within full scale."""
    return np.asarray(np.clip(values, -1, 32767 * LSB), np.float32)


def loud(sound: Floats, rms: float = 0.1) -> Floats:
    """Return the sound at an RMS."""
    gain = rms / max(float(np.sqrt(np.mean(np.square(sound)))), 1e-9)
    return (sound * gain).astype(np.float32)


def zeros(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return np.zeros_like(sound)


def dither(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    triangular = rng.random(sound.shape) - rng.random(sound.shape)
    return (np.rint(triangular) * LSB).astype(np.float32)


def sparse(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    share = rng.choice([0.0005, 0.002, 0.01])
    return np.asarray(((rng.random(sound.shape) < share) * rng.choice([-LSB, LSB], sound.shape)), np.float32)


def constant(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return np.full_like(sound, np.rint(rng.uniform(-0.9, 0.9) * 32768) * LSB)


def repeated(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return looped(sound, rate_hz, rng, round(rng.choice([0.01, 0.02, 0.032, 0.1]) * rate_hz))


def triple(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return looped(sound, rate_hz, rng, 3 * round(rng.choice([0.01, 0.02, 0.032, 0.1]) * rate_hz))


def second(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return looped(sound, rate_hz, rng, rate_hz)


def looped(sound: Floats, rate_hz: int, rng: np.random.Generator, period: int) -> Floats:
    """Return the loudest such stretch of the first three seconds, again and again."""
    starts = range(0, max(min(len(sound), 3 * rate_hz) - period, 1), max(period // 2, 1))
    start = max(starts, key=lambda at: float(np.square(sound[at : at + period]).sum()))
    return np.resize(sound[start : start + period], sound.shape)


def clipping(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return limited(loud(sound, rng.uniform(0.5, 1.5)))


def clipping_before_gain(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return (clipping(sound, rate_hz, rng) * rng.uniform(0.05, 0.8)).astype(np.float32)


def wrapping(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    values = np.rint(loud(sound, rng.uniform(0.5, 1.0)) * 32768).astype(np.int64)
    return (((values + 32768) % 65536 - 32768) * LSB).astype(np.float32)


def offset(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return limited(loud(sound, 0.05) + rng.choice([-1, 1]) * rng.uniform(0.1, 0.5))


def offset_under_noise(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    level = rng.choice([-1, 1]) * rng.uniform(0.02, 0.4)
    return np.asarray((level + rng.normal(0, rng.uniform(0.0005, 0.01), sound.shape)), np.float32)


def mains(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    time = np.arange(len(sound)) / rate_hz
    base = rng.choice([50, 60]) + rng.uniform(-0.05, 0.05)
    tones = [
        np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6.28)) * rng.uniform(0.3, 1) / k
        for k in (1, 2, 3, 5, 7)
    ]
    hum = loud(like(sound, np.sum(tones, axis=0)), rng.uniform(0.1, 0.3))
    return limited(loud(sound, 0.05) + hum)


def white(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    return limited(rng.normal(0, rng.uniform(0.03, 0.2), sound.shape))


def dead(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    broken = loud(sound).copy()
    which = int(rng.integers(sound.shape[1]))
    broken[:, which] = 0 if rng.random() < 0.5 else dither(sound, rate_hz, rng)[:, which]
    return broken


def cancelling(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    one = loud(sound)[:, :1]
    return np.concatenate([one, -one * np.float32(rng.uniform(0.93, 1.0))], axis=1)


def telephone(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    """Return sound sampled at 8 kHz and delivered at `rate_hz`: interpolated, on lines, or held."""
    low = resampled(loud(sound), rate_hz, 8000)
    how = rng.choice(["band", "lines", "hold"])
    if how == "band":
        return resampled(low, 8000, rate_hz)[: len(sound)]
    at = np.arange(len(sound)) * 8000 / rate_hz
    if how == "hold":
        return np.asarray(np.take(low, np.minimum(at.astype(int), len(low) - 1), axis=0), np.float32)
    return np.stack([np.interp(at, np.arange(len(low)), channel) for channel in low.T], axis=1).astype(
        np.float32
    )


def resampled(sound: Floats, rate_hz: int, wanted_hz: int) -> Floats:
    """Return the sound at another rate, band-limited, in the frequency domain."""
    count = round(len(sound) * wanted_hz / rate_hz)
    lines = np.fft.rfft(sound, axis=0)
    keep = min(len(lines), count // 2 + 1)
    lines[keep - max(keep // 50, 1) :] = 0
    return (np.fft.irfft(lines[:keep], count, axis=0) * (count / len(sound))).astype(np.float32)


def dropouts(sound: Floats, rate_hz: int, rng: np.random.Generator) -> Floats:
    """Return sound with 2 to 10 ms of zeros about eight times a second."""
    broken, at = loud(sound).copy(), 0
    while at < len(sound):
        length = round(rng.uniform(0.002, 0.01) * rate_hz)
        broken[at : at + length] = 0
        at += round(rng.uniform(0.08, 0.17) * rate_hz)
    return broken


FAULTS: Final[dict[str, tuple[ConditionName, Fault]]] = {
    "zeros": ("silent", zeros),
    "zeros with dither": ("silent", dither),
    "sparse LSB toggles": ("silent", sparse),
    "constant": ("stuck", constant),
    "repeated block": ("stuck", repeated),
    "looped triple of blocks": ("stuck", triple),
    "looped second": ("stuck", second),
    "clipped at full scale": ("clipped", clipping),
    "clipped before a gain": ("clipped", clipping_before_gain),
    "wrap-around of integers": ("clipped", wrapping),
    "DC": ("DC", offset),
    "DC under noise": ("DC", offset_under_noise),
    "hum": ("hum", mains),
    "white noise": ("noise", white),
    "one dead channel": ("dead channel", dead),
    "cancelling channels": ("dead channel", cancelling),
    "8 kHz sold as more": ("wrong rate", telephone),
    "dropouts": ("torn", dropouts),
}
"""Faults by name, each with the condition that a judge has to name."""
NEED_TWO: Final = ("one dead channel", "cancelling channels")
