"""Log-mel frames: each once, on the absolute grid, equal to a batch and to independent references."""

import math
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.features.logmel import VGGISH, LogMelConfig, StreamingLogMel, log_mel

Floats = npt.NDArray[np.float64]


def tone_in_noise(samples: int) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(7).standard_normal(samples) * 0.05
    return (noise + 0.5 * np.sin(2 * np.pi * 1000 * np.arange(samples) / 16000)).astype(np.float32)


def vggish_frame_by_definition(samples: Floats) -> Floats:
    """One frame from the formulas, a written-out DFT and triangles, without the code under test."""
    n = np.arange(400)
    windowed = samples * (0.5 - 0.5 * np.cos(2 * np.pi * n / 400))
    magnitude = np.abs(np.exp(-2j * np.pi * np.outer(np.arange(257), n) / 512) @ windowed)

    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    step = (mel(7500) - mel(125)) / 65
    bands = np.zeros(64)
    for band in range(64):
        peak = mel(125) + (band + 1) * step
        for bin_ in range(1, 257):
            bands[band] += max(0.0, 1 - abs(mel(bin_ * 31.25) - peak) / step) * magnitude[bin_]
    return np.log(bands + 0.01)


def test_vggish_frames_follow_their_definition() -> None:
    samples = tone_in_noise(400 + 2 * 160)
    frames = log_mel(samples)
    assert frames.shape == (3, 64)
    assert frames.dtype == np.float32
    for k in range(3):
        expected = vggish_frame_by_definition(samples[160 * k : 160 * k + 400].astype(np.float64))
        np.testing.assert_allclose(frames[k], expected, atol=1e-5)


def test_a_vggish_example_needs_15600_samples() -> None:
    assert VGGISH.count(15_600) == 96
    assert VGGISH.count(15_599) == 95
    assert VGGISH.count(399) == 0
    assert log_mel(np.zeros(100)).shape == (0, 64)


def test_silence_is_the_log_of_the_offset() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(400)), math.log(0.01), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(limit=st.sampled_from([1, 7, 160, 400, 1000, 4096]), seed=st.integers(0, 2**32 - 1))
def test_streaming_is_bit_identical_to_batch_for_any_blocks(limit: int, seed: int) -> None:
    samples = tone_in_noise(8000)
    sizes = np.random.default_rng(seed)
    stream, at = StreamingLogMel(), 0
    while at < samples.size:
        size = int(sizes.integers(1, limit + 1))
        stream.push(at, samples[at : at + size])
        at += size
    np.testing.assert_array_equal(stream.frames(0, stream.end), log_mel(samples))


def test_one_push_longer_than_the_history_keeps_the_newest_frames() -> None:
    samples = tone_in_noise(48_000)
    stream = StreamingLogMel(history=96)
    stream.push(0, samples)
    np.testing.assert_array_equal(stream.frames(stream.end - 96, stream.end), log_mel(samples)[-96:])
    with pytest.raises(ValueError, match="not stored"):
        stream.frames(stream.end - 97, stream.end)
    with pytest.raises(ValueError, match="not stored"):
        stream.frames(stream.end, stream.end + 1)


@pytest.mark.parametrize("start", [1, 159, 160, 10**9 + 77])
def test_a_start_anywhere_keeps_to_the_same_grid(start: int) -> None:
    samples = tone_in_noise(4000)
    stream = StreamingLogMel()
    for at in range(0, samples.size, 31):
        stream.push(start + at, samples[at : at + 31])
    lead = -start % 160
    assert stream.first == -(-start // 160)
    np.testing.assert_array_equal(stream.frames(stream.first, stream.end), log_mel(samples[lead:]))


def test_a_jump_starts_anew() -> None:
    samples = tone_in_noise(4000)
    stream = StreamingLogMel()
    stream.push(0, samples)
    stream.push(1_600_000, samples)
    np.testing.assert_array_equal(stream.frames(10_000, stream.end), log_mel(samples))
    with pytest.raises(ValueError, match="not stored"):
        stream.frames(9_999, 10_001)


def test_a_stream_under_way_allocates_next_to_nothing() -> None:
    block, stream = tone_in_noise(1600), StreamingLogMel()
    for number in range(20):
        stream.push(number * block.size, block)
    tracemalloc.start()
    try:
        for number in range(20, 120):
            stream.push(number * block.size, block)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 1000
    assert peak < 20_000  # the spectra alone of a block take 40,000


def test_frames_are_copies() -> None:
    stream = StreamingLogMel()
    stream.push(0, tone_in_noise(800))
    stream.frames(0, 1)[:] = 0
    assert stream.frames(0, 1).any()


@pytest.mark.parametrize(
    ("rate_hz", "fft", "bands", "low_hz", "high_hz"),
    [
        (16000, 512, 64, 125.0, 7500.0),
        (16000, 512, 40, 0.0, 8000.0),
        (16000, 1024, 128, 20.0, 8000.0),
        (16000, 512, 127, 20.0, 8000.0),
        (48000, 1024, 64, 0.0, 14000.0),
        (8000, 256, 1, 300.0, 3400.0),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filterbank:UserWarning")
@pytest.mark.parametrize("power", [1, 2])
def test_it_equals_torchaudio_on_a_matching_configuration(
    rate_hz: int, fft: int, bands: int, low_hz: float, high_hz: float, power: int
) -> None:
    # no loud tone: torchaudio's float32 triangles are off by 1e-4 at their very edges
    samples = np.random.default_rng(2).standard_normal(rate_hz // 2).astype(np.float32) * 0.1
    config = LogMelConfig(
        rate_hz, fft, 160, fft, bands, low_hz, high_hz, triangles="hz", power=2 if power == 2 else 1
    )
    reference = torchaudio.transforms.MelSpectrogram(
        rate_hz,
        n_fft=fft,
        hop_length=160,
        f_min=low_hz,
        f_max=high_hz,
        n_mels=bands,
        power=float(power),
        center=False,
        norm=None,
        mel_scale="htk",
    ).to(torch.float64)
    expected = torch.log(reference(torch.from_numpy(samples).double()) + config.log_offset).numpy().T
    np.testing.assert_allclose(log_mel(samples, config), expected, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hop": 0},
        {"hop": 401},
        {"fft": 399},
        {"high_hz": 8001.0},
        {"low_hz": 7500.0},
        {"bands": 0},
        {"log_offset": 0.0},
    ],
)
def test_an_impossible_configuration_is_refused(wrong: dict[str, float]) -> None:
    settings_ = {"rate_hz": 16000, "window": 400, "hop": 160, "fft": 512, "bands": 64}
    edges = {"low_hz": 125.0, "high_hz": 7500.0}
    with pytest.raises(ValueError, match=r"need|fit"):
        LogMelConfig(**{**settings_, **edges, **wrong})  # type: ignore[arg-type]
