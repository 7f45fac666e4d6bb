"""Camera payloads become BGR pixels, or one clear refusal."""

import cv2
import numpy as np
import pytest
import torch

from perception.features.image import decode_frame, fitted
from perception.messages import CameraFrame, checked
from perception.models.cnn import CnnImageEncoder
from perception.models.encoder import ImageInput
from perception.profile import Fit
from perception.units.arrays import Image


def frame(encoding: str, width: int = 32, height: int = 24) -> CameraFrame:
    return checked(CameraFrame, {"stamp_ns": 0, "width": width, "height": height, "encoding": encoding})


def picture() -> Image:
    rows, columns = np.mgrid[0:24, 0:32]
    return np.stack([rows * 10, columns * 7, rows * 0 + 90], axis=2).astype(np.uint8)


def jpeg() -> bytes:
    return cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def test_bgr_is_a_view_of_the_payload() -> None:
    payload = bytearray(picture().tobytes())
    image = decode_frame(frame("bgr8"), payload)
    np.testing.assert_array_equal(image, picture())
    payload[0] = 123
    assert image[0, 0, 0] == 123


def test_grey_becomes_three_equal_channels() -> None:
    grey = picture()[:, :, 1]
    image = decode_frame(frame("mono8"), grey.tobytes())
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], grey)


def test_jpeg_decodes_to_bgr() -> None:
    image = decode_frame(frame("jpeg"), jpeg() + bytes(100))
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - picture()).mean() < 4


@pytest.mark.parametrize(
    "payload", [b"", b"no image", jpeg()[:-30], jpeg()[:50], b"\xff\xd8" + bytes(80) + b"\xff\xd9"]
)
def test_a_corrupt_jpeg_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="JPEG"):
        decode_frame(frame("jpeg"), payload)


def test_a_size_that_contradicts_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match="header"):
        decode_frame(frame("jpeg", width=24, height=32), jpeg())
    with pytest.raises(ValueError, match="no 32 x 24 bgr8"):
        decode_frame(frame("bgr8"), bytes(100))
    with pytest.raises(ValueError, match="no 32 x 24 mono8"):
        decode_frame(frame("mono8"), bytes(32 * 24 * 3))


@pytest.mark.parametrize(
    ("fit", "held"),
    [("letterbox", (slice(0, 64), slice(14, 50))), ("crop", (slice(0, 64), slice(0, 64)))],
)
def test_a_picture_of_another_aspect_keeps_it(fit: Fit, held: tuple[slice, slice]) -> None:
    """A circle stays a circle; stretched it would be an ellipse."""
    portrait = np.zeros((160, 90, 3), np.uint8)
    cv2.circle(portrait, (45, 80), 30, (255, 255, 255), -1)
    for image in (portrait, portrait.swapaxes(0, 1)):
        rows, columns = np.nonzero(fitted(image, (64, 64), fit).max(axis=2) > 127)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)
    grey = fitted(np.full((160, 90), 200, np.uint8), (64, 64), fit)
    assert grey[held].min() == 200
    assert grey.sum() == grey[held].sum()


def test_the_image_network_sees_a_picture_as_its_option_says() -> None:
    portrait = np.full((160, 90, 3), 255, np.uint8)
    shares = {
        fit: float(_network(fit).prepare(ImageInput(portrait)).float().mean())
        for fit in ("letterbox", "crop", "stretch")
    }
    assert shares == pytest.approx({"letterbox": 36 / 64, "crop": 1.0, "stretch": 1.0})


def _network(fit: str) -> CnnImageEncoder:
    options = CnnImageEncoder.Options.model_validate({"fit": fit})
    return CnnImageEncoder(options, device=torch.device("cpu"), seed=0, weights="random")
