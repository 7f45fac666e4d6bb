"""Resampling on the absolute grid: no delay, no memory beyond the filter, any blocks."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.features.resample import Resampler, SincFilter, resample

RATES = [8000, 11025, 22050, 32000, 44100, 48000, 96000]


def noise(samples: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("rate_hz", RATES)
def test_it_equals_torchaudio_with_the_same_filter(rate_hz: int) -> None:
    design, samples = SincFilter(), noise(rate_hz // 10)
    expected = torchaudio.functional.resample(
        torch.from_numpy(samples).double(),
        rate_hz,
        16000,
        lowpass_filter_width=design.zeros,
        rolloff=design.rolloff,
        resampling_method="sinc_interp_kaiser",
        beta=design.beta,
    ).numpy()
    # both compute in float64; this package returns float32
    np.testing.assert_allclose(resample(samples, rate_hz, 16000), expected, atol=2e-6)


def test_it_equals_scipys_polyphase_with_the_same_filter() -> None:
    design, samples = SincFilter(), noise(4800)
    cutoff = design.rolloff / 3
    taps = np.arange(-80, 81)
    crossings = np.clip(taps * cutoff, -design.zeros, design.zeros)
    filter_ = np.sinc(crossings) * np.i0(design.beta * np.sqrt(1 - (crossings / design.zeros) ** 2))
    expected = scipy.signal.resample_poly(samples.astype(np.float64), 1, 3, window=filter_ / filter_.sum())
    np.testing.assert_allclose(resample(samples, 48000, 16000), expected, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    rate_hz=st.sampled_from([*RATES, 16000, 12345]),
    limit=st.sampled_from([1, 10, 441, 4096]),
    start=st.sampled_from([0, 1, 12_345, 10**15 + 7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_never_change_a_bit(rate_hz: int, limit: int, start: int, seed: int) -> None:
    samples = noise(2500)
    whole_first, whole = Resampler(rate_hz, 16000).push(start, samples)
    sizes = np.random.default_rng(seed)
    stream, at, parts = Resampler(rate_hz, 16000), 0, []
    expected = whole_first
    while at < samples.size:
        size = int(sizes.integers(1, limit + 1))
        first, part = stream.push(start + at, samples[at : at + size])
        assert first == expected
        expected += part.size
        parts.append(part)
        at += size
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rate_hz", RATES)
def test_an_output_depends_on_its_surroundings_alone(rate_hz: int) -> None:
    samples = noise(3000)
    whole_first, whole = Resampler(rate_hz, 16000).push(0, samples)
    stream = Resampler(rate_hz, 16000)
    stream.push(10**6, samples)
    first, later = stream.push(1000, samples[1000:])
    assert first == stream.first(1000)
    np.testing.assert_array_equal(later, whole[first - whole_first :])


@pytest.mark.parametrize("rate_hz", [*RATES, 16000])
def test_there_is_no_delay(rate_hz: int) -> None:
    seconds = np.arange(rate_hz // 2) / rate_hz
    first, outputs = Resampler(rate_hz, 16000).push(0, np.sin(2 * np.pi * 440 * seconds).astype(np.float32))
    expected = np.sin(2 * np.pi * 440 * np.arange(first, first + outputs.size) / 16000)
    np.testing.assert_allclose(outputs, expected, atol=2e-3)


def test_what_16_khz_cannot_hold_is_removed() -> None:
    seconds = np.arange(48000) / 48000
    outputs = Resampler(48000, 16000).push(0, np.sin(2 * np.pi * 9000 * seconds).astype(np.float32))[1]
    assert 20 * np.log10(np.abs(outputs).max()) < -60


def test_the_same_rate_passes_unchanged() -> None:
    samples = noise(100)
    first, outputs = Resampler(16000, 16000).push(42, samples)
    assert first == 42
    np.testing.assert_array_equal(outputs, samples)


@pytest.mark.parametrize("rate_hz", [44100, 48000])
def test_a_stream_holds_no_more_memory_with_time(rate_hz: int) -> None:
    block, stream = np.zeros(rate_hz // 10, np.float32), Resampler(rate_hz, 16000)

    def play(first: int, last: int) -> int:
        for number in range(first, last):
            stream.push(number * block.size, block)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = play(0, 20)
        assert play(20, 120) - before < 1000
    finally:
        tracemalloc.stop()


ODD_RATES = [1001, 44_101, 96_001, 131_101, 174_761, 191_999, 767_999]


@pytest.mark.parametrize("rate_hz", ODD_RATES)
def test_an_odd_rate_needs_little_memory(rate_hz: int) -> None:
    tracemalloc.start()
    try:
        stream = Resampler(rate_hz, 16000)
        stream.push(0, np.zeros(rate_hz, np.float32))
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 16 << 20
    assert peak < 64 << 20


@pytest.mark.parametrize("rate_hz", ODD_RATES)
@pytest.mark.parametrize("start_s", [0, 100_000])
def test_an_odd_rate_is_resampled_at_the_exact_positions_and_drifts_never(rate_hz: int, start_s: int) -> None:
    tone_hz = min(rate_hz / 3, 6000)
    indices = np.arange(rate_hz // 4)
    samples = np.sin(2 * np.pi * tone_hz / rate_hz * indices).astype(np.float32)
    stream = Resampler(rate_hz, 16000)
    first, outputs = stream.push(start_s * rate_hz, samples)
    at_s = (first - start_s * 16000 + np.arange(outputs.size)) / 16000
    error = outputs - np.sin(2 * np.pi * tone_hz * at_s)
    assert 20 * np.log10(error.std() / np.sqrt(0.5)) < -60  # of the filter's own ripple


def test_a_rate_thousands_of_times_the_other_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be resampled to 16000 Hz: filter exceeds 5 MiB"):
        Resampler(10**9, 16000)


def test_an_exact_filter_weighs_each_output_at_its_own_position() -> None:
    """The sum is written out here; it differs from that of the nearest phases by more than its rounding."""
    rate_hz, design, samples = 44_101, SincFilter(), noise(2000)
    cutoff = 16_000 / rate_hz * design.rolloff
    stream = Resampler(rate_hz, 16_000, exact=True)
    first, outputs = stream.push(0, samples)
    at = np.arange(first, first + outputs.size)[:, None] * rate_hz / 16_000
    crossings = (np.arange(samples.size) - at) * cutoff
    near = np.abs(crossings) < design.zeros
    inside = np.sqrt(1 - np.where(near, crossings / design.zeros, 0) ** 2)
    taps = np.sinc(crossings) * np.i0(design.beta * inside) / np.i0(design.beta) * cutoff * near
    np.testing.assert_allclose(outputs, taps @ samples.astype(np.float64), atol=1e-6)
    nearest = Resampler(rate_hz, 16_000).push(0, samples)[1]
    assert 1e-5 < np.abs(nearest - outputs).max() < 1e-3


@pytest.mark.parametrize("rate_hz", [*RATES, 16_000])
def test_the_usual_rates_have_the_same_bits_with_exact_filters(rate_hz: int) -> None:
    samples = noise(3000)
    exact = Resampler(rate_hz, 16_000, exact=True).push(0, samples)[1]
    np.testing.assert_array_equal(exact, Resampler(rate_hz, 16_000).push(0, samples)[1])


def test_exact_filters_have_the_limit_of_earlier_versions() -> None:
    with pytest.raises(ValueError, match="filter exceeds 64 MiB"):
        Resampler(191_999, 16_000, exact=True)
