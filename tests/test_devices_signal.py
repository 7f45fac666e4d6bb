"""What the signal checks say of black, frozen, silent and clipped signals."""

import numpy as np
import pytest

from perception.devices.device import CapturedBlock, CapturedFrame
from perception.devices.signal import BlockCheck, FrameCheck

SECOND_NS = 1_000_000_000
NOISE = np.random.default_rng(1)


def frame(number: int, image: np.ndarray) -> CapturedFrame:
    return CapturedFrame(image.astype(np.uint8), number * SECOND_NS // 30)


def block(number: int, samples: np.ndarray) -> CapturedBlock:
    return CapturedBlock(samples.reshape(-1, 1), number * SECOND_NS * 512 // 16_000, number * 512)


def frame_reasons(images: list[np.ndarray]) -> list[str]:
    check = FrameCheck()
    reasons = []
    for number, image in enumerate(images):
        check.update(frame(number, image))
        reasons.append(check.reason)
    return reasons


def block_reasons(blocks: list[np.ndarray]) -> list[str]:
    check = BlockCheck()
    reasons = []
    for number, samples in enumerate(blocks):
        check.update(block(number, samples))
        reasons.append(check.reason)
    return reasons


def noise(level: float = 1000.0) -> np.ndarray:
    return NOISE.normal(0, level, 512).clip(-32768, 32767).astype(np.int16)


def test_a_living_picture_is_fine() -> None:
    assert set(frame_reasons([NOISE.integers(0, 255, (48, 64, 3)) for _ in range(90)])) == {""}


def test_a_picture_that_never_changes_is_frozen_after_two_seconds() -> None:
    reasons = frame_reasons([np.full((48, 64, 3), 128)] * 70)
    assert reasons[58] == ""
    assert reasons[-1] == "the picture is frozen"


def test_one_new_frame_clears_the_verdict() -> None:
    still = [np.full((48, 64, 3), 128)] * 70
    assert frame_reasons([*still, np.full((48, 64, 3), 129)])[-1] == ""


def test_a_covered_lens_is_black_even_with_noise() -> None:
    assert (
        frame_reasons([NOISE.integers(0, 12, (48, 64, 3)) for _ in range(70)])[-1] == "the picture is black"
    )


def test_living_sound_is_fine_and_its_level_is_told() -> None:
    check = BlockCheck()
    for number in range(100):
        check.update(block(number, noise(3276.7)))
    assert check.reason == ""
    assert check.facts["level_dbfs"] == pytest.approx(-20, abs=0.5)


def test_all_zero_samples_for_two_seconds_are_a_muted_microphone() -> None:
    silence = np.zeros(512, np.int16)
    reasons = block_reasons([silence] * 70)
    assert reasons[30] == ""
    assert reasons[-1].startswith("every sample is zero")
    assert block_reasons([*[silence] * 70, noise()])[-1] == ""


def test_the_same_block_again_and_again_is_frozen() -> None:
    assert block_reasons([noise()] * 3 + [np.arange(512, dtype=np.int16)] * 70)[-1].startswith(
        "the same block"
    )


def test_clipped_sound_says_to_turn_the_gain_down() -> None:
    assert block_reasons([noise(40_000) for _ in range(60)])[-1].startswith("the sound is clipped")


def test_float_samples_are_checked_the_same() -> None:
    silence = np.zeros(512, np.float32)
    assert block_reasons([silence] * 70)[-1].startswith("every sample is zero")
