"""Converts decoded frames and camera images to BGR pixels: upright, with their aspect ratio.

An orientation is a 2 x 2 matrix of -1, 0 and 1: its columns are the images of one step right and one step
down.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from perception.features.image import fitted, inner_size
from perception.features.jpeg import MAX_PIXELS
from perception.profile import CameraConfig, Fit
from perception.units.arrays import Image

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Orientation = npt.NDArray[np.int64]

AS_CODED: Final[Orientation] = np.eye(2, dtype=np.int64)
_CLOCKWISE: Final[Orientation] = np.array([[0, -1], [1, 0]])
_FLIPS: Final[dict[str, Orientation]] = {
    "none": AS_CODED,
    "horizontal": np.diag([-1, 1]),
    "vertical": np.diag([1, -1]),
}
# Some files have pixel aspect ratios of 0 or 1000, others differ from 1 by rounding.
_PIXEL_ASPECTS: Final = (1 / 8, 8)
_SQUARE_ENOUGH: Final = 0.01


@dataclass(frozen=True, slots=True)
class Layout:
    """How a camera's pictures are rotated and resized."""

    size: tuple[int, int] | None = None
    """(width, height) in pixels; None keeps the picture's size."""
    fit: Fit = "letterbox"
    orientation: Orientation = field(default_factory=lambda: AS_CODED)
    """Applied after the film's own orientation."""

    @classmethod
    def of(cls, config: CameraConfig) -> "Layout":
        """Return the layout of a camera's section of the profile."""
        turned = np.linalg.matrix_power(_CLOCKWISE, config.rotate // 90)
        return cls((config.width, config.height), config.fit, _FLIPS[config.flip] @ turned)

    def before(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that becomes `size` by the orientation."""
        return _swapped(size, self.orientation)

    def of_image(self, image: npt.NDArray[np.generic]) -> Image:
        """Return an image, (height, width, 3) BGR or (height, width) grey, laid out; contiguous."""
        return self.fitted(_turned(np.asarray(image, np.uint8), self.orientation))

    def fitted(self, image: Image) -> Image:
        """Return an upright image in the layout's size; contiguous."""
        return np.ascontiguousarray(image) if self.size is None else fitted(image, self.size, self.fit)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) to which a whole picture is scaled before bars or a cut fit it."""
        return size if self.size is None or self.fit == "crop" else inner_size(size, self.size, self.fit)


class FilmPixels:
    """Converts the decoded frames of one film or stream to (height, width, 3) BGR, contiguous.

    The film's display matrix is applied, including flips, and non-square pixels are scaled to square. A
    matrix applies until the next one: H.264 repeats it only with key frames.

    Args:
        layout: orientation and size of the result.
        pixel_aspect: pixel aspect ratio of the file, width / height; None if unknown.
    """

    def __init__(self, layout: Layout | None = None, pixel_aspect: float | None = None) -> None:
        self._layout = layout or Layout()
        from av.sidedata.sidedata import Type  # FFmpeg is loaded only where there are films

        self._matrix = Type.DISPLAYMATRIX
        aspect = pixel_aspect or 1.0
        known = _PIXEL_ASPECTS[0] <= aspect <= _PIXEL_ASPECTS[1]
        self._aspect = aspect if known and abs(aspect - 1) > _SQUARE_ENOUGH else 1.0
        self._filmed = AS_CODED
        self.size: tuple[int, int] | None = None
        """(width, height) of the newest frame as displayed, before it is resized to the layout."""

    @property
    def facts(self) -> dict[str, str | float]:
        """The newest frame's size as a device reports it."""
        return {} if self.size is None else {"width": self.size[0], "height": self.size[1]}

    def __call__(self, frame: "VideoFrame") -> Image:
        """Return one frame's pixels."""
        self._filmed = self._of_film(frame)
        orientation = self._layout.orientation @ self._filmed
        self.size = _swapped(self._square(frame), orientation)
        # Scale first, then rotate: most films are larger than the layout.
        width, height = _swapped(self._layout.scaled(self.size), orientation)
        pixels = frame.reformat(width, height, "bgr24").to_ndarray()
        return self._layout.fitted(_turned(pixels.astype(np.uint8, copy=False), orientation))

    def _square(self, frame: "VideoFrame") -> tuple[int, int]:
        """Return the (width, height) with square pixels: made wider, or lower where that were too large."""
        width = max(round(frame.width * self._aspect), 1)
        if width * frame.height <= MAX_PIXELS:
            return width, frame.height
        return frame.width, max(round(frame.height / self._aspect), 1)

    def _of_film(self, frame: "VideoFrame") -> Orientation:
        try:
            matrix = frame.side_data.get(self._matrix)  # type: ignore[call-overload]
        except ValueError:  # the frame has side data that PyAV has no name for, such as EXIF
            return np.linalg.matrix_power(_CLOCKWISE, -round(frame.rotation / 90) % 4)
        return self._filmed if matrix is None else orientation_of(np.frombuffer(bytes(matrix), np.int32))


def orientation_of(matrix: npt.NDArray[np.int32]) -> Orientation:
    """Return the orientation nearest to a display matrix: nine numbers, row by row, as stored in files."""
    right, down = matrix[:2], matrix[3:5]
    if abs(int(right[0])) >= abs(int(right[1])):
        return np.diag([-1 if right[0] < 0 else 1, -1 if down[1] < 0 else 1])
    return np.array([[0, -1 if down[0] < 0 else 1], [-1 if right[1] < 0 else 1, 0]])


def _swapped(size: tuple[int, int], orientation: Orientation) -> tuple[int, int]:
    return size if orientation[0, 0] else size[::-1]


def _turned(image: Image, orientation: Orientation) -> Image:
    if not orientation[0, 0]:
        image = image.swapaxes(0, 1)
    across, along = orientation.sum(axis=1)
    return image[::along, ::across]
