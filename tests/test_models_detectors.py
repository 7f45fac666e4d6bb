"""Detectors that ship in packages, against scenes composed here with known places."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import perception
from perception.errors import ProfileError
from perception.models import build_encoder
from perception.models.encoder import Encoding, ImageInput
from perception.models.images import shrunk_grey
from perception.profile import EncoderConfig
from perception.units.arrays import Image

CPU = torch.device("cpu")
ASSETS = Path(perception.__file__).parent / "devices" / "assets"
KINDS = ("faces", "aruco", "motion")


def build(kind: str, **options: object) -> Any:
    config = EncoderConfig(input="front", kind=kind, options=options)
    return build_encoder("eye", config, device=CPU, seed=0)


def scene(*patches: tuple[Image, int, int]) -> Image:
    """A room of mild texture with pictures pasted at (x, y)."""
    noise = np.random.default_rng(0).normal(120, 6, (480, 640, 3))
    image = np.clip(noise, 0, 255).astype(np.uint8)
    for patch, x, y in patches:
        image[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return image


def face(number: int, side: int) -> Image:
    photograph = cv2.imread(str(ASSETS / f"face-{number}.jpg"))
    assert photograph is not None
    return cv2.resize(photograph, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8)


def marker(number: int, side: int) -> Image:
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    square = cv2.aruco.generateImageMarker(dictionary, number, side)
    framed = cv2.copyMakeBorder(square, 20, 20, 20, 20, cv2.BORDER_CONSTANT, value=(255,))
    return cv2.cvtColor(framed, cv2.COLOR_GRAY2BGR).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_each_declares_what_it_gives_and_an_empty_room_gives_the_same_bytes_each_time(kind: str) -> None:
    encoder, room = build(kind), ImageInput(scene(), scene())
    first, second = encoder(room), encoder(room)
    assert encoder.modality == "camera"
    assert getattr(encoder, "uses_previous", False) is (kind == "motion")
    assert encoder.weights() == {}
    assert first.features.shape == (encoder.dim,)
    assert first.features.dtype == torch.float32
    assert first.features[0] == 0
    assert first.branch.boxes == ()
    assert torch.equal(first.features, second.features)
    assert first.branch == second.branch


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_depends_neither_on_earlier_frames_nor_on_the_number_of_threads(kind: str) -> None:
    encoder = build(kind)
    busy = ImageInput(scene((face(0, 300), 20, 30), (marker(5, 90), 400, 300)), scene((face(1, 200), 10, 30)))
    before = cv2.getNumThreads()
    results: list[Encoding] = []
    for threads in (1, 4):
        cv2.setNumThreads(threads)
        encoder(ImageInput(scene()))
        results += [encoder(busy), encoder(busy)]
    cv2.setNumThreads(before)
    assert all(result.branch == results[0].branch for result in results)
    assert len({result.features.numpy().tobytes() for result in results}) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_face_is_found_where_it_is(number: int) -> None:
    encoding = build("faces")(ImageInput(scene((face(number, 300), 60, 50))))
    (box,) = encoding.branch.boxes
    assert 60 < box.x < box.x + box.width < 360
    assert 50 < box.y < box.y + box.height < 350
    assert encoding.branch.labels == ("face",)
    assert encoding.branch.scores == (box.score,)
    count, x, y, size, score = encoding.features.tolist()
    assert count == 0.25
    assert x * 640 == pytest.approx(box.x + box.width / 2)
    assert y * 480 == pytest.approx(box.y + box.height / 2)
    assert size * 480 == pytest.approx(box.height)
    assert 0 < score < 1


def test_the_largest_face_leads_and_small_ones_are_left_out_on_request() -> None:
    two = ImageInput(scene((face(1, 160), 10, 20), (face(0, 300), 300, 100)))
    boxes = build("faces")(two).branch.boxes
    assert [box.x > 300 for box in boxes] == [True, False]
    (only,) = build("faces", min_size=0.25)(two).branch.boxes
    assert only.x > 300


def test_markers_are_found_with_their_ids_and_places() -> None:
    encoder = build("aruco", ids=[3, 7, 9])
    assert encoder.dim == 7
    encoding = encoder(ImageInput(scene((marker(7, 60), 20, 30), (marker(3, 120), 300, 200))))
    large, small = encoding.branch.boxes
    assert (large.label, small.label) == ("3", "7")
    assert encoding.branch.labels == ("3", "7")
    assert encoding.branch.scores == (1.0, 1.0)
    assert (large.x, large.y, large.width, large.height) == pytest.approx((320, 220, 119, 119), abs=1.5)
    expected = [0.5, 379.5 / 640, 279.5 / 480, 119 / 480, 1, 1, 0]
    assert encoding.features.tolist() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("width", [640, 320, 300])
def test_a_marker_stays_where_it_is_in_a_shrunk_frame(width: int) -> None:
    (box,) = build("aruco", width=width)(ImageInput(scene((marker(3, 120), 300, 200)))).branch.boxes
    assert box.label == "3"
    assert (box.x, box.y, box.width, box.height) == pytest.approx((320, 220, 119, 119), abs=1.5)


@pytest.mark.parametrize("width", [640, 320])
def test_a_marker_on_a_card_at_the_edge_of_the_frame_is_found(width: int) -> None:
    card = marker(2, 120)
    data = ImageInput(scene((card, 640 - card.shape[1] - 4, 170)))
    assert build("aruco", width=width)(data).branch.labels == ("2",)


def test_encoders_of_one_frame_share_its_grey_levels() -> None:
    data = ImageInput(scene())
    first, factor = shrunk_grey(data, 160)
    assert factor == 4
    assert first.shape == (120, 160)
    assert shrunk_grey(data, 200)[0] is first
    assert shrunk_grey(data, 640)[0].shape == (480, 640)


def test_an_unknown_dictionary_is_refused_with_those_there_are() -> None:
    with pytest.raises(ProfileError, match=r"options\.dictionary: no such dictionary; known are DICT_"):
        build("aruco", dictionary="DICT_9X9")


def test_motion_is_measured_where_it_happens() -> None:
    patch = np.full((96, 128, 3), 250, np.uint8)
    encoding = build("motion")(ImageInput(scene((patch, 400, 100)), scene()))
    fraction, mean, x, y = encoding.features.tolist()
    patch_fraction = 96 * 128 / (480 * 640)
    assert patch_fraction <= fraction <= (96 + 20) * (128 + 20) / (480 * 640)  # blurring widens it
    assert mean == pytest.approx(patch_fraction * (250 - 120) / 255, rel=0.1)
    assert (x * 640, y * 480) == pytest.approx((464, 148), abs=4)
    (box,) = encoding.branch.boxes
    assert (box.x, box.y, box.width, box.height) == pytest.approx((400, 100, 128, 96), abs=20)


def test_a_change_of_exposure_noise_or_size_is_no_motion() -> None:
    rng, room = np.random.default_rng(1), scene()
    noisy = np.clip(room + rng.normal(0, 8, room.shape), 0, 255).astype(np.uint8)
    encoder = build("motion")
    for image, previous in [(room + 30, room), (noisy, room), (room, room[:240]), (room, None)]:
        assert encoder(ImageInput(image.astype(np.uint8), previous)).features[0] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 0, 3), np.uint8), np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.float32)],
    ids=["empty", "grey", "float"],
)
def test_what_is_no_bgr_image_is_refused(kind: str, image: Any) -> None:
    with pytest.raises(ValueError, match="not a BGR image"):
        build(kind)(ImageInput(image))


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_frames_and_read_only_ones_are_taken(kind: str) -> None:
    for shape in ((16, 16, 3), (1, 40, 3), (40, 1, 3), (1, 4000, 3)):
        image = np.zeros(shape, np.uint8)
        image.flags.writeable = False
        assert torch.isfinite(build(kind)(ImageInput(image, image)).features).all()
