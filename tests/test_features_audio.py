"""The audio front end shares work between windows, and its results are the same as without sharing."""

import numpy as np
import pytest

from perception.features.audio import AudioFrontEnd
from perception.features.logmel import log_mel
from perception.features.window import CONTEXT_NS
from perception.units.arrays import Samples

LENGTH_NS = 975_000_000
RATES = [8000, 16000, 22050, 44100, 48000]


def noise(samples: int) -> Samples:
    return np.random.default_rng(11).standard_normal(samples).astype(np.float32) * 0.1


def window_samples(front_end: AudioFrontEnd, rate_hz: int, length_ns: int = LENGTH_NS) -> int:
    return (length_ns + front_end.context_ns) * rate_hz // 10**9


def assert_same(left: tuple[Samples, Samples], right: tuple[Samples, Samples]) -> None:
    np.testing.assert_array_equal(left[0], right[0])
    np.testing.assert_array_equal(left[1], right[1])


@pytest.mark.parametrize("rate_hz", RATES)
def test_the_result_does_not_depend_on_history(rate_hz: int) -> None:
    samples = noise(3 * rate_hz)
    stream = AudioFrontEnd(rate_hz, LENGTH_NS)
    size = window_samples(stream, rate_hz)
    ends = [size, size + 1, size + rate_hz // 10, size + rate_hz // 7, size + rate_hz, 3 * rate_hz, size + 5]
    for end in ends:
        window = samples[end - size : end]
        assert_same(stream.update(window, end), AudioFrontEnd(rate_hz, LENGTH_NS).update(window, end))


def test_windows_of_varying_length_and_shed_windows_change_nothing() -> None:
    samples = noise(200_000)
    stream = AudioFrontEnd(16000, LENGTH_NS)
    size = window_samples(stream, 16000)
    for end, extra in [(20_000, 0), (21_600, 3), (21_600, 0), (60_000, 1), (61_600, 2), (100_000, 0)]:
        window = samples[end - size - extra : end]
        assert_same(stream.update(window, end), AudioFrontEnd(16000, LENGTH_NS).update(window, end))


@pytest.mark.parametrize("end", [20_000, 20_001, 20_159, 20_160])
def test_at_16_khz_the_waveform_ends_with_the_window_and_the_frames_within_a_hop(end: int) -> None:
    samples = noise(end)
    stream = AudioFrontEnd(16000, LENGTH_NS)
    waveform, frames = stream.update(samples[end - window_samples(stream, 16000) :], end)
    np.testing.assert_array_equal(waveform, samples[-15_600:])
    last = (end - 400) // 160
    assert 0 <= end - (last * 160 + 400) < 160
    np.testing.assert_array_equal(frames, log_mel(samples)[last - 95 : last + 1])


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_tone_keeps_its_phase_at_any_rate(rate_hz: int) -> None:
    samples = np.sin(2 * np.pi * 440 * np.arange(2 * rate_hz) / rate_hz).astype(np.float32)
    stream = AudioFrontEnd(rate_hz, LENGTH_NS)
    end = 2 * rate_hz - 3
    waveform, frames = stream.update(samples[end - window_samples(stream, rate_hz) : end], end)
    assert (waveform.shape, frames.shape) == ((15_600,), (96, 64))
    reach_s = 26 / min(rate_hz, 16000)
    lag_s = 0.0 if rate_hz == 16000 else reach_s
    last = int(np.ceil((end / rate_hz - lag_s) * 16000))
    best = max(range(last - 3, last + 4), key=lambda stop: _match(waveform, stop))
    assert _match(waveform, best) > 0.9999
    assert end / rate_hz - best / 16000 < reach_s + 2 / 16000


def _match(waveform: Samples, stop: int) -> float:
    tone = np.sin(2 * np.pi * 440 * np.arange(stop - waveform.size, stop) / 16000)
    return float(np.corrcoef(waveform, tone)[0, 1])


def test_data_that_comes_late_replaces_the_zeros_that_stood_for_it() -> None:
    samples = noise(40_000)
    stream = AudioFrontEnd(16000, LENGTH_NS)
    size = window_samples(stream, 16000)
    cut = samples[20_000 - size : 20_000].copy()
    cut[-800:] = 0
    stream.update(cut, 20_000, missing=800)
    window = samples[21_600 - size : 21_600]
    assert_same(stream.update(window, 21_600), AudioFrontEnd(16000, LENGTH_NS).update(window, 21_600))


def test_a_window_shorter_than_an_example_is_refused_and_a_longer_one_ends_with_it() -> None:
    with pytest.raises(ValueError, match="audio windows of 200 ms: expected at least 975 ms"):
        AudioFrontEnd(48000, 200_000_000)
    stream = AudioFrontEnd(48000, 3_000_000_000)
    samples = noise(window_samples(stream, 48000, 3_000_000_000))
    waveform, frames = stream.update(samples, samples.size)
    assert (waveform.size, frames.shape) == (48_000, (96, 64))
    short = AudioFrontEnd(48000, LENGTH_NS)
    last = samples[-window_samples(short, 48000) :]
    np.testing.assert_array_equal(frames, short.update(last, samples.size)[1])


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 192_000])
def test_one_context_covers_every_rate(rate_hz: int) -> None:
    for length_ns in (LENGTH_NS, 5_000_000_000):
        stream = AudioFrontEnd(rate_hz, length_ns)
        assert stream.context_ns <= CONTEXT_NS
        size = (length_ns + CONTEXT_NS) * rate_hz // 10**9
        stream.update(np.zeros(size, np.float32), 3)


def test_a_window_without_its_context_is_refused_and_the_next_one_is_served() -> None:
    stream = AudioFrontEnd(16000, LENGTH_NS)
    with pytest.raises(ValueError, match="too few"):
        stream.update(noise(15_000), 15_000)
    size = window_samples(stream, 16000)
    assert stream.update(noise(size), size)[0].shape == (15_600,)
