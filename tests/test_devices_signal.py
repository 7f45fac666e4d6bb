"""Signal checks of pictures."""

import threading
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pytest

from perception.devices.device import CapturedFrame
from perception.devices.signal.frames import FrameJudge
from perception.devices.video import FileSource
from perception.profile import CameraConfig
from perception.units import SECOND_NS
from tests.media import write_coded

NOISE = np.random.default_rng(1)


def frame(number: int, image: np.ndarray, raw: bool = True) -> CapturedFrame:
    return CapturedFrame(image.astype(np.uint8), number * SECOND_NS // 30, raw=raw)


def frame_reasons(images: list[np.ndarray], raw: bool = True) -> list[str]:
    check = FrameJudge()
    reasons = []
    for number, image in enumerate(images):
        check.update(frame(number, image, raw))
        reasons.append(check.reason)
    return reasons


def test_a_living_picture_is_fine() -> None:
    assert set(frame_reasons([NOISE.integers(0, 255, (48, 64, 3)) for _ in range(90)])) == {""}


def test_a_picture_that_never_changes_is_frozen_after_two_seconds() -> None:
    reasons = frame_reasons([np.full((48, 64, 3), 128)] * 70)
    assert reasons[58] == ""
    assert reasons[-1] == "the picture is frozen"


def test_a_raw_picture_that_changes_in_one_value_only_is_alive() -> None:
    images = [np.full((48, 64, 3), 128) for _ in range(90)]
    for number, image in enumerate(images):
        image[1, 1, 0] += number % 2  # nowhere near the rows and columns that are compared first
    assert set(frame_reasons(images)) == {""}


def test_what_was_coded_on_the_way_is_never_called_frozen() -> None:
    assert set(frame_reasons([np.full((48, 64, 3), 128)] * 90, raw=False)) == {""}


X264: Final = {"preset": "veryfast", "bf": "0"}
CODINGS: Final = {
    "mjpeg": ("mjpeg", {"qscale": "5"}, 2.0, 1.0, False),
    "crf 23": ("libx264", X264 | {"crf": "23", "g": "30"}, 2.0, 1.0, False),
    "crf 28": ("libx264", X264 | {"crf": "28", "g": "60"}, 2.0, 1.0, False),
    "crf 35": ("libx264", X264 | {"crf": "35", "g": "150"}, 2.0, 1.0, False),
    "quiet sensor": ("libx264", X264 | {"crf": "28", "g": "60"}, 1.0, 1.0, False),
    "constant rate": ("libx264", X264 | {"b": "60k", "maxrate": "60k", "bufsize": "120k"}, 2.0, 1.0, False),
    "hevc": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:keyint=100:crf=32"},
        *(2.0, 1.0, False),
    ),
    "dark": ("libx264", X264 | {"crf": "28", "g": "60"}, 1.0, 0.08, False),
    "a clock in the corner": ("libx264", X264 | {"crf": "35", "g": "150"}, 1.0, 1.0, True),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_live_camera_in_a_still_room_causes_no_warning(tmp_path: Path, coding: str) -> None:
    codec, options, noise_level, light, clock = CODINGS[coding]
    rng = np.random.default_rng(4)
    room = cv2.GaussianBlur(rng.integers(0, 255, (120, 160, 3), np.uint8), (0, 0), 5).astype(float)
    room = (room - room.min()) * 255 / np.ptp(room)
    images = []
    for number in range(75):
        seen = room * light + rng.normal(0, noise_level, room.shape)
        if clock:
            seen[100:110, 20 : 60 + number // 15] = 255
        images.append(np.clip(seen, 0, 255).astype(np.uint8))
    path = write_coded(tmp_path / "room.mkv", codec, images, rate_hz=15, options=options)
    check, now_ns = FrameJudge(), [0]
    config = CameraConfig(source=str(path), width=160, height=120)
    source = FileSource(str(path), config, clock=lambda: now_ns[0], origin_ns=0, stop=threading.Event())
    now_ns[0] = 1 << 60
    reasons: set[str] = set()
    for _ in images:
        shown = source.read()
        assert shown is not None
        check.update(shown)
        reasons.add(check.reason)
    source.close()
    assert reasons == {""}


def test_one_new_frame_clears_the_verdict() -> None:
    still = [np.full((48, 64, 3), 128)] * 70
    assert frame_reasons([*still, np.full((48, 64, 3), 129)])[-1] == ""


def test_a_covered_lens_is_black_even_with_noise() -> None:
    assert (
        frame_reasons([NOISE.integers(0, 12, (48, 64, 3)) for _ in range(70)])[-1] == "the picture is black"
    )
