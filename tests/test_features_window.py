"""Windows of sound are exact to the sample for any blocks."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.features.window import SampleHistory, decode_samples
from perception.messages import AudioBlock


def ramp(start: int, stop: int) -> npt.NDArray[np.float32]:
    return np.arange(start, stop, dtype=np.float32)


def block(samples: int, channels: int = 1, encoding: Literal["s16", "f32"] = "s16") -> AudioBlock:
    return AudioBlock(
        stamp_ns=0, sample_index=0, samples=samples, rate_hz=16000, channels=channels, format=encoding
    )


@given(
    blocks=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 150)), min_size=1, max_size=30),
    back=st.integers(0, 150),
    length=st.integers(0, 170),
    begin=st.integers(0, 10**12),
)
def test_any_span_is_exact_whatever_the_blocks_and_the_gaps_between_them(
    blocks: list[tuple[int, int]], back: int, length: int, begin: int
) -> None:
    history, end, pushed = SampleHistory(64), begin, set[int]()
    for gap, size in blocks:
        at, end = end + gap, end + gap + size
        history.push(at, ramp(at - begin + 1, end - begin + 1))
        pushed.update(range(at, end))
        known = pushed.intersection(range(end - 64, end))
        span = range(end - back, end - back + length)
        samples, missing = history.read(span.start, span.stop)
        assert samples.tolist() == [at - begin + 1 if at in known else 0 for at in span]
        assert missing == length - len(known.intersection(span))


def test_what_is_not_held_reads_as_zero_and_is_counted() -> None:
    history = SampleHistory(8)
    assert history.read(0, 3)[1] == 3
    history.push(100, ramp(100, 110))
    samples, missing = history.read(100, 112)
    np.testing.assert_array_equal(samples, [0, 0, *range(102, 110), 0, 0])
    assert missing == 4


def test_a_gap_is_zero_filled_and_remembered() -> None:
    history = SampleHistory(16)
    history.push(0, ramp(1, 5))
    history.push(7, ramp(8, 11))
    samples, missing = history.read(0, 10)
    np.testing.assert_array_equal(samples, [1, 2, 3, 4, 0, 0, 0, 8, 9, 10])
    assert missing == 3


def test_a_gap_longer_than_what_is_held_leaves_nothing_old() -> None:
    history = SampleHistory(8)
    history.push(0, ramp(1, 9))
    history.push(10**15, ramp(0, 3))
    samples, missing = history.read(10**15 - 5, 10**15 + 3)
    np.testing.assert_array_equal(samples, [0, 0, 0, 0, 0, 0, 1, 2])
    assert missing == 5


def test_overlap_is_refused_and_changes_nothing() -> None:
    history = SampleHistory(16)
    history.push(0, ramp(0, 10))
    with pytest.raises(ValueError, match="overlap"):
        history.push(9, ramp(0, 4))
    assert history.end == 10
    np.testing.assert_array_equal(history.read(0, 10)[0], ramp(0, 10))


def test_what_was_read_cannot_be_written_to_and_never_changes() -> None:
    history = SampleHistory(16)
    history.push(0, ramp(0, 10))
    samples, _ = history.read(0, 10)
    with pytest.raises(ValueError, match="read-only"):
        samples[:] = -1
    for at in range(10, 200, 7):
        history.push(at, ramp(at, at + 7))
    np.testing.assert_array_equal(samples, ramp(0, 10))


def test_s16_is_scaled_and_channels_are_averaged() -> None:
    payload = np.array([[-32768, 0], [16384, 16384]], "<i2").tobytes()
    np.testing.assert_array_equal(decode_samples(block(2, channels=2), payload), np.array([-0.5, 0.5]))
    mono = decode_samples(block(4), payload)
    np.testing.assert_array_equal(mono, np.array([-1, 0, 0.5, 0.5]))
    assert mono.dtype == np.float32


def test_f32_passes_unchanged_and_is_owned() -> None:
    payload = bytearray(np.array([0.1, -2.5], "<f4").tobytes())
    samples = decode_samples(block(2, encoding="f32"), memoryview(payload))
    payload[:] = bytes(8)
    np.testing.assert_array_equal(samples, np.array([0.1, -2.5], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        decode_samples(block(2, encoding="f32"), np.array([0.0, bad], "<f4").tobytes())


def test_huge_finite_channels_stay_finite() -> None:
    payload = np.full((1, 2), np.finfo("<f4").max, "<f4").tobytes()
    assert np.isfinite(decode_samples(block(1, channels=2, encoding="f32"), payload)).all()


@pytest.mark.parametrize("size", [0, 3, 5, 8])
def test_a_payload_of_the_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="does not hold"):
        decode_samples(block(2), bytes(size))
