"""Pictures are upright and keep their aspect ratio, wherever frames are converted to pixels."""

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from av.video.frame import VideoFrame

from perception.devices.camera import DeviceSource, open_camera
from perception.devices.media import Track
from perception.devices.pixels import FilmPixels, Layout, orientation_of
from perception.messages import CameraFrame, Header, Message
from perception.models.detectors import ArucoMarkers
from perception.models.encoder import ImageInput
from perception.profile import CameraConfig, Fit, ScriptConfig
from perception.session import read
from perception.session.convert import import_media
from perception.session.convert.media_tracks import image
from perception.training.media import MediaSource
from tests.media import COLOURS, corners, quarters, write_turned

Picture = npt.NDArray[np.uint8]
TURNS = {
    (1, 0, 0, 1): "RGBW",
    (0, 1, -1, 0): "BRWG",  # a quarter turn clockwise
    (-1, 0, 0, -1): "WBGR",
    (0, -1, 1, 0): "GWRB",
    (-1, 0, 0, 1): "GRWB",  # mirrored
    (1, 0, 0, -1): "BWRG",
    (0, 1, 1, 0): "RBGW",  # mirrored and turned
    (0, -1, -1, 0): "WGBR",
}


def played(path: Path, **options: object) -> tuple[Picture, dict[str, str | float]]:
    """Return the first picture of a camera, and the facts of its source."""
    config = CameraConfig.model_validate({"source": str(path)} | options)
    with open_camera(config, ScriptConfig(), clock=lambda: 0, origin_ns=0) as camera:
        frame = camera.read(60)
        assert frame is not None
        return frame.image, camera.report().facts


def imported(path: Path) -> Picture:
    list(import_media.read(path, path.with_suffix(".mcap")))
    return first_picture(read(path.with_suffix(".mcap")))


def trained_on(path: Path) -> Picture:
    return first_picture(MediaSource(path, path.parent, "camera/front", None, 0.0).messages())


def first_picture(messages: Iterator[Message[Header]]) -> Picture:
    frame = next(one for one in messages if one.topic.startswith("camera/"))
    assert isinstance(frame.header, CameraFrame)
    picture = image(Message(frame.topic, frame.header, frame.payload, frame.received_ns))
    assert picture is not None
    return picture


@pytest.mark.parametrize(("matrix", "shown"), TURNS.items())
def test_a_turned_or_mirrored_film_is_upright_live_imported_and_in_training(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: str
) -> None:
    path = write_turned(tmp_path / "film.mov", quarters(96, 64), matrix)
    size = (96, 64, 3) if matrix[1] else (64, 96, 3)
    for picture in (imported(path), trained_on(path)):
        assert (corners(picture), picture.shape) == (shown, size)
    live, facts = played(path, width=size[1], height=size[0])
    assert (corners(live), live.shape) == (shown, size)
    assert (facts["width"], facts["height"]) == size[1::-1]


def test_a_matrix_that_comes_with_key_frames_only_holds_for_the_frames_between(tmp_path: Path) -> None:
    path = tmp_path / "film.h264"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "250"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        turn = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", in_stream=video)
        pictures = [VideoFrame.from_ndarray(quarters(96, 64), format="bgr24") for _ in range(5)]
        for packet in (packet for one in [*pictures, None] for packet in video.encode(one)):
            container.mux(turn.filter(packet))
    track: Track[VideoFrame] = Track(str(path), "video", loop=False)
    pixels = FilmPixels()
    shown = [corners(pixels(frame)) for _, frames in track.laps() for _, frame in frames]
    assert shown == ["GWRB"] * 5


def test_an_oblique_matrix_is_the_nearest_right_angle() -> None:
    for degrees, matrix in ((80, (0, 1, -1, 0)), (-20, (1, 0, 0, 1)), (170, (-1, 0, 0, -1))):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        oblique = (np.array([cos, sin, 0, -sin, cos, 0, 0, 0, 16384]) * 65536).astype(np.int32)
        a, b, c, d = matrix
        assert orientation_of(oblique).tolist() == [[a, c], [b, d]]


def test_pixels_that_are_not_square_are_made_so() -> None:
    frame = VideoFrame.from_ndarray(quarters(72, 64), format="bgr24")
    assert FilmPixels(pixel_aspect=4 / 3)(frame).shape == (64, 96, 3)
    for wrong in (None, 0.0, 1.005, 1000.0):
        assert FilmPixels(pixel_aspect=wrong)(frame).shape == (64, 72, 3)


@pytest.mark.parametrize(
    ("source", "kept"),
    [((108, 192), (slice(0, 48), slice(18, 45))), ((256, 72), (slice(15, 33), slice(0, 64)))],
)
@pytest.mark.parametrize("raw", [True, False])
def test_another_aspect_gets_black_bars(
    tmp_path: Path, source: tuple[int, int], kept: tuple[slice, slice], raw: bool
) -> None:
    """A portrait and a very wide film, as a file and through the device's own path."""
    path = write_turned(tmp_path / "film.mov", quarters(*source), (1, 0, 0, 1))
    config = CameraConfig(source=str(path), width=64, height=48, encoding="bgr8")
    if raw:
        device = DeviceSource(str(path), config, clock=lambda: 0, open_device=cv2.VideoCapture)
        frame = device.read()
        assert frame is not None
        picture = frame.image
        device.close()
    else:
        picture, facts = played(path, width=64, height=48)
        assert (facts["width"], facts["height"]) == source
    assert picture.shape == (48, 64, 3)
    assert corners(picture[kept]) == "RGBW"
    outside = picture.copy()
    outside[kept] = 0
    assert outside.max() == 0
    assert picture[kept].reshape(-1, 3).max(axis=1).min() > 100


def test_a_camera_is_cut_or_stretched_on_request(tmp_path: Path) -> None:
    striped = np.zeros((128, 32, 3), np.uint8)
    striped[52:76] = COLOURS["G"]  # the middle of a portrait picture: what remains at 4 : 3
    path = write_turned(tmp_path / "film.mov", striped, (1, 0, 0, 1))
    cut, _ = played(path, width=64, height=48, fit="crop")
    assert cut.shape == (48, 64, 3)
    assert corners(cut) == "GGGG"
    stretched, _ = played(path, width=64, height=48, fit="stretch")
    assert stretched.shape == (48, 64, 3)
    assert corners(stretched) == "KKKK"
    assert corners(stretched[18:30]) == "GGGG"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"rotate": 90}, "BRWG"),
        ({"rotate": 180}, "WBGR"),
        ({"rotate": 270}, "GWRB"),
        ({"flip": "horizontal"}, "GRWB"),
        ({"rotate": 90, "flip": "vertical"}, "WGBR"),
    ],
)
def test_a_camera_that_hangs_askew_is_turned_on_request(
    tmp_path: Path, options: dict[str, object], shown: str
) -> None:
    size = (64, 48) if options.get("rotate") in (90, 270) else (48, 64)
    path = write_turned(tmp_path / "film.mov", quarters(64, 48), (1, 0, 0, 1))
    keys = {"source": str(path), "width": size[1], "height": size[0], "encoding": "bgr8"} | options
    played_back, _ = played(path, **keys)
    assert (corners(played_back), played_back.shape[:2]) == (shown, size)
    memory = bytearray(64 * 48 * 3)
    for lend in (None, lambda _: Lent(memoryview(memory))):
        config = CameraConfig.model_validate(keys)
        device = DeviceSource(str(path), config, clock=lambda: 0, lend=lend, open_device=cv2.VideoCapture)
        frame = device.read()
        assert frame is not None
        assert corners(frame.image) == shown
        device.close()


class Lent:
    def __init__(self, data: memoryview) -> None:
        self.data = data


def test_a_scripted_camera_is_turned_as_well() -> None:
    plain, _ = played(Path("scripted"), width=64, height=48)
    turned, _ = played(Path("scripted"), width=48, height=64, rotate=90)
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize("size", [(1, 64), (2, 2), (640, 1)])
@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
def test_the_smallest_and_the_thinnest_pictures_are_taken(size: tuple[int, int], fit: Fit) -> None:
    layout = Layout((64, 48), fit)
    frame = VideoFrame(*size, "bgr24")
    frame.planes[0].update(bytes(np.full((size[1], frame.planes[0].line_size), 200, np.uint8)))
    plain = np.full((size[1], size[0], 3), 200, np.uint8)
    for picture in (FilmPixels(layout)(frame), layout.of_image(plain)):
        assert picture.shape == (48, 64, 3)
        assert picture.max() == 200


def test_a_marker_in_a_portrait_film_is_found_where_it_is(tmp_path: Path) -> None:
    scene = np.full((1280, 720, 3), 160, np.uint8)
    marker = cv2.aruco.generateImageMarker(cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50), 7, 200)
    scene[240:480, 100:340] = 255
    scene[260:460, 120:320] = marker[:, :, None]
    picture, _ = played(write_turned(tmp_path / "film.mov", scene, (1, 0, 0, 1)))
    detector = ArucoMarkers(ArucoMarkers.Options(width=640), device=torch.device("cpu"), seed=0)
    found = detector(ImageInput(picture))
    assert found.branch.labels == ("7",)
    scale, left = 480 / 1280, (640 - 270) // 2
    box = found.branch.boxes[0]
    assert (box.x, box.y) == pytest.approx((left + 120 * scale, 260 * scale), abs=2)
    assert (box.width, box.height) == pytest.approx((200 * scale, 200 * scale), abs=2)


@pytest.mark.parametrize("size", [(2, 2), (9000, 16)])
def test_a_picture_of_any_size_is_trained_on(tmp_path: Path, size: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((size[1], size[0], 3), 99, np.uint8))
    assert trained_on(tmp_path / "a.png").shape == (size[1], size[0], 3)
