"""Detectors of OpenCV: faces, ArUco markers, motion. No weights to fetch, CPU only.

Positions among the features are fractions of the frame (0 left and top, 1 right and bottom); boxes are
in pixels of the source frame.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import cv2
import numpy as np
import torch

from perception.messages import Box, BranchState
from perception.models.encoder import Encoding, ImageInput, Untrained
from perception.models.images import check_bgr, shrunk_grey
from perception.models.options import FacesOptions, MarkerOptions, MotionOptions
from perception.units.arrays import Image

Grey = np.typing.NDArray[np.float32]
MAX_OVERLAP: Final = 0.3
"""Intersection over union above which two detections are one face."""
NOWHERE: Final = (0.5, 0.5)
"""Position features where nothing was found: the centre, which favours no side."""


class HaarFaces(Untrained[FacesOptions]):
    """Viola and Jones's frontal faces (IJCV 2004) with OpenCV's cascade.

    Features: number of faces / 4, and of the largest one x, y, size (its height over the frame's) and score.
    """

    Options: TypeAlias = FacesOptions
    modality: ClassVar[str] = "camera"
    dim = 5

    def __init__(self, options: Options, **others: Any) -> None:
        super().__init__(options, **others)
        cascade = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
        self._cascade = cv2.CascadeClassifier(str(cascade))

    def __call__(self, data: ImageInput, /) -> Encoding:
        """Find faces in the newest frame."""
        boxes = self._detect(*shrunk_grey(data, self._options.width))
        height, width = data.image.shape[:2]
        features = [0.0, *NOWHERE, 0.0, 0.0]
        if boxes:
            x, y = _centre(boxes[0], width, height)
            features = [min(len(boxes), 4) / 4, x, y, boxes[0].height / height, boxes[0].score]
        best = max((box.score for box in boxes), default=0.0)
        branch = BranchState(labels=("face",), scores=(best,), boxes=tuple(boxes))
        return Encoding(torch.tensor(features), branch)

    def _detect(self, grey: Image, factor: int) -> list[Box]:
        """Return the faces, largest first."""
        # Not equalised: that amplifies the noise of even surfaces; it found fewer faces in thrice the time.
        least = max(20, round(self._options.min_size * grey.shape[0]))
        found, _, margins = self._cascade.detectMultiScale3(
            grey,
            scaleFactor=self._options.scale,
            minNeighbors=self._options.neighbours,
            minSize=(least, least),
            outputRejectLevels=True,
        )
        boxes = [
            _face(rectangle, float(margin), factor)
            for rectangle, margin in zip(found, np.ravel(margins), strict=True)
        ]
        # OpenCV's threads return their hits in any order.
        boxes.sort(key=lambda box: (-box.height, -box.score, box.x, box.y))
        # A chin is often detected as a second face inside the first.
        rectangles = [(box.x, box.y, box.width, box.height) for box in boxes]
        kept = cv2.dnn.NMSBoxes(rectangles, [box.score for box in boxes], 0.0, MAX_OVERLAP)
        return [boxes[index] for index in sorted(kept)]


def _face(rectangle: Sequence[int], margin: float, factor: int) -> Box:
    """Return a box; its score m / (1 + m) keeps the order of the margins, which have no upper bound."""
    x, y, width, height = (float(value) * factor for value in rectangle)
    margin = max(margin, 0.0)
    return Box(x=x, y=y, width=width, height=height, label="face", score=margin / (1 + margin))


class ArucoMarkers(Untrained[MarkerOptions]):
    """Square fiducial markers (Garrido-Jurado et al. 2014).

    Features: number of markers / 4, of the largest one x, y and size (its height over the frame's), then
    1 or 0 for each of the option's `ids`.
    """

    Options: TypeAlias = MarkerOptions
    modality: ClassVar[str] = "camera"

    def __init__(self, options: Options, **others: Any) -> None:
        super().__init__(options, **others)
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, options.dictionary))
        parameters = cv2.aruco.DetectorParameters()
        parameters.minMarkerDistanceRate = 0.05  # else the edge of a card replaces the marker on it
        self._detector = cv2.aruco.ArucoDetector(dictionary, parameters)
        self.dim = 4 + len(self._options.ids)

    def __call__(self, data: ImageInput, /) -> Encoding:
        """Find markers in the newest frame."""
        boxes = self._detect(*shrunk_grey(data, self._options.width))
        height, width = data.image.shape[:2]
        features = [0.0, *NOWHERE, 0.0]
        if boxes:
            x, y = _centre(boxes[0], width, height)
            features = [min(len(boxes), 4) / 4, x, y, boxes[0].height / height]
        labels = tuple(sorted({box.label for box in boxes}, key=int))
        features += [float(str(marker) in labels) for marker in self._options.ids]
        branch = BranchState(labels=labels, scores=(1.0,) * len(labels), boxes=tuple(boxes))
        return Encoding(torch.tensor(features), branch)

    def _detect(self, grey: Image, factor: int) -> list[Box]:
        """Return the markers' bounding boxes, largest first."""
        corners, ids, _ = self._detector.detectMarkers(grey)
        boxes = [
            # A corner is the centre of a shrunken pixel, which covers factor x factor pixels.
            _bounding_box(quad.reshape(4, 2) * factor + (factor - 1) / 2, str(int(marker)))
            for quad, marker in zip(corners, () if ids is None else ids.ravel(), strict=True)
        ]
        return sorted(boxes, key=lambda box: (-box.height, int(box.label), box.x, box.y))


def _bounding_box(points: np.typing.NDArray[Any], label: str) -> Box:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return Box(x=left, y=top, width=right - left, height=bottom - top, label=label)


class Motion(Untrained[MotionOptions]):
    """Difference between the newest frame and the one a hop before, without changes of exposure.

    Features: fraction of the pixels that changed, mean change (0 to 1), and the centre of the change.
    """

    Options: TypeAlias = MotionOptions
    modality: ClassVar[str] = "camera"
    uses_previous: ClassVar[bool] = True
    dim = 4

    def __init__(self, options: Options, **others: Any) -> None:
        super().__init__(options, **others)
        self._prepared: tuple[Image, Grey, int] | None = None

    def __call__(self, data: ImageInput, /) -> Encoding:
        """Compare the two frames; without a previous one of the same shape there is no motion."""
        image, previous = check_bgr(data.image), data.previous
        if previous is None or previous.shape != image.shape:
            return self._encoding([0.0, 0.0, *NOWHERE])
        before, factor = self._prepare(ImageInput(previous))
        change = self._prepare(data)[0] - before
        change = np.abs(change - np.median(change))
        moved = (change > self._options.threshold).astype(np.uint8)
        fraction, mean = float(moved.mean()), float(change.mean()) / 255
        if not moved.any():
            return self._encoding([0.0, mean, *NOWHERE])
        height, width = moved.shape
        left, top, across, down = (float(side * factor) for side in cv2.boundingRect(moved))
        box = Box(x=left, y=top, width=across, height=down, label="motion", score=fraction)
        rows, columns = np.nonzero(moved)
        centre = ((float(columns.mean()) + 0.5) / width, (float(rows.mean()) + 0.5) / height)
        return self._encoding([fraction, mean, *centre], (box,))

    def _prepare(self, data: ImageInput) -> tuple[Grey, int]:
        """Return a frame shrunk and blurred, cached: the newest of one window is the previous of the next."""
        if self._prepared is None or self._prepared[0] is not data.image:
            grey, factor = shrunk_grey(data, self._options.width)
            blurred = cv2.GaussianBlur(grey, (0, 0), self._options.blur).astype(np.float32)
            self._prepared = data.image, blurred, factor
        return self._prepared[1:]

    def _encoding(self, features: list[float], boxes: tuple[Box, ...] = ()) -> Encoding:
        branch = BranchState(labels=("motion",), scores=(features[0],), boxes=boxes)
        return Encoding(torch.tensor(features), branch)


def _centre(box: Box, width: int, height: int) -> tuple[float, float]:
    return (box.x + box.width / 2) / width, (box.y + box.height / 2) / height
