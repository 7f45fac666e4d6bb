"""Sound of the scripted microphone, at any sample position of a script.

Filters and resamples in the frequency domain with numpy alone: scipy.signal would add 80 MB to a process
whose limit is 150 MB.
"""

from functools import lru_cache
from typing import Final

import numpy as np
import soundfile

from perception.devices.script import ASSETS, VOICES, Script, Sound
from perception.errors import DeviceError
from perception.units import SECOND_NS
from perception.units.arrays import Samples

# Segments are faded in and out to avoid clicks at their borders.
_FADE_S: Final = 0.01
# A microphone is never digitally silent.
_FLOOR_DB: Final = -78.0
_BURSTS: Final = 8


class Soundtrack:
    """The script's sound at `rate_hz`; `samples` is a pure function of the position, for any block size."""

    def __init__(self, script: Script, rate_hz: int) -> None:
        self.script = script
        self.rate_hz = rate_hz
        self._voices = [_voice(number, rate_hz) for number in range(VOICES)]
        self._segment = lru_cache(maxsize=2)(self._synthesise)

    def samples(self, start: int, count: int) -> Samples:
        """Return `count` mono samples in [-1, 1] from sample `start` of the script, a new array."""
        pieces, position, end = [], start, start + count
        index = self.script.at(start * SECOND_NS // self.rate_hz).index
        while position < end:
            first, sound = self._segment(index)
            piece = sound[position - first : end - first]
            pieces.append(piece)
            position += piece.size
            index += 1
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def first_sample(self, t_ns: int) -> int:
        """Return the first sample at or after `t_ns` of script time."""
        return -(-t_ns * self.rate_hz // SECOND_NS)

    def _synthesise(self, index: int) -> tuple[int, Samples]:
        segment = self.script.segment(index)
        first = self.first_sample(segment.start_ns)
        count = self.first_sample(segment.end_ns) - first
        rng = self.script.random(3, index)
        mix = _scaled(rng.standard_normal(count, dtype=np.float32), _FLOOR_DB)
        mix += _scaled(self._backdrop(segment.sound, count, rng), segment.sound.backdrop_db)
        mix += _scaled(self._foreground(segment.sound, count, rng), segment.sound.level_db)
        fade = min(round(_FADE_S * self.rate_hz), count // 2)
        mix[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        mix[count - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        return first, np.clip(mix, -1, 1, out=mix)

    def _foreground(self, sound: Sound, count: int, rng: np.random.Generator) -> Samples:
        if sound.voicing == "speech":
            voice = self._voices[sound.voice]
            places = (np.arange(count) * sound.pitch + sound.offset * voice.size) % voice.size
            left = places.astype(np.intp)
            share = (places - left).astype(np.float32)
            return voice[left] * (1 - share) + voice[(left + 1) % voice.size] * share
        if sound.voicing == "claps":
            return self._claps(sound.claps_hz, count, rng)
        return np.zeros(count, np.float32)

    def _claps(self, claps_hz: float, count: int, rng: np.random.Generator) -> Samples:
        """Return bursts of band-limited noise that fade within 10 to 30 ms, of eight different spectra."""
        bursts = [self._burst(rng) for _ in range(_BURSTS)]
        sound = np.zeros(count, np.float32)
        place = int(rng.uniform(0, 0.5) / claps_hz * self.rate_hz)
        while place < count:
            burst = bursts[rng.integers(_BURSTS)] * np.float32(rng.uniform(0.6, 1.0))
            sound[place : place + burst.size] += burst[: count - place]
            place += int(rng.uniform(0.7, 1.3) / claps_hz * self.rate_hz) + 1
        return sound

    def _burst(self, rng: np.random.Generator) -> Samples:
        time = np.arange(round(0.12 * self.rate_hz), dtype=np.float32) / self.rate_hz
        burst = rng.standard_normal(time.size, dtype=np.float32) * np.exp(-time / rng.uniform(0.004, 0.012))
        low = rng.uniform(600, 1200)
        return _band(burst, low, 3.0 * low, self.rate_hz)

    def _backdrop(self, sound: Sound, count: int, rng: np.random.Generator) -> Samples:
        time = np.arange(count, dtype=np.float32) / self.rate_hz
        match sound.backdrop:
            case "quiet":
                return np.zeros(count, np.float32)
            case "white":
                return rng.standard_normal(count, dtype=np.float32)
            case "hum":
                overtones = np.array((1, 2, 3, 5), np.float32)[:, None]
                return np.asarray((np.sin(2 * np.pi * 50 * overtones * time) / overtones).sum(axis=0))
            case "murmur":
                # Similar to speech: noise in the voice band, modulated at the rate of syllables.
                noise = _band(rng.standard_normal(count, dtype=np.float32), 200, 2500, self.rate_hz)
                swell = 1 + np.sin(2 * np.pi * rng.uniform(3, 5) * time) * np.sin(2 * np.pi * 0.7 * time)
                return noise * swell.astype(np.float32)
            case "tune":
                notes = 220 * 2 ** (rng.integers(0, 24, count // (self.rate_hz // 3) + 1) / 12)
                pitch = np.repeat(notes, self.rate_hz // 3)[:count]
                return np.asarray(np.sin(2 * np.pi * np.cumsum(pitch) / self.rate_hz), np.float32)
            case "knocks":
                knocks = np.zeros(count, np.float32)
                for place in rng.integers(0, count, 3):
                    since = time[: count - place]
                    knocks[place:] += np.exp(-since * 40) * np.sin(2 * np.pi * rng.uniform(90, 160) * since)
                return knocks


def _scaled(sound: Samples, level_db: float) -> Samples:
    """Return the sound scaled to an RMS of `level_db` dB of full scale; silence is unchanged."""
    rms = float(np.sqrt(np.mean(np.square(sound))))
    return sound * np.float32(10 ** (level_db / 20) / rms) if rms > 0 else sound


def _band(sound: Samples, low_hz: float, high_hz: float, rate_hz: int) -> Samples:
    """Return the sound band-passed: -6 dB at the edges, 12 dB per octave beyond."""
    # A power of two: a length with a large prime factor takes ten times as long.
    size = 1 << (sound.size - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / rate_hz)
    passed = 1 / (1 + (frequency / high_hz) ** 2) * (1 - 1 / (1 + (frequency / low_hz) ** 2))
    return np.asarray(np.fft.irfft(np.fft.rfft(sound, size) * passed)[: sound.size], np.float32)


def _voice(number: int, rate_hz: int) -> Samples:
    path = ASSETS / f"voice-{number}.ogg"
    try:
        speech, stored_hz = soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError as error:
        raise DeviceError(f"{path}: cannot be read; install the package again ({error})") from error
    if rate_hz == stored_hz:
        return np.asarray(speech, np.float32)
    # The recording is looped: the Fourier series of a periodic signal is exact at any rate.
    count = round(speech.size * rate_hz / stored_hz)
    return np.asarray(np.fft.irfft(np.fft.rfft(speech), count) * (count / speech.size), np.float32)
