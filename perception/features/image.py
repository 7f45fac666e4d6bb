"""Decodes camera messages to pixels, and resizes pixels."""

from typing import Final

import cv2
import numpy as np

from perception.features.jpeg import claimed_size
from perception.messages import PIXEL_BYTES, CameraFrame, Payload
from perception.profile import Fit
from perception.units.arrays import Image

_END_OF_IMAGE: Final = b"\xff\xd9"
_PADDING: Final = 4096
"""How many zero bytes a camera may append to the image."""


def decode_frame(header: CameraFrame, payload: Payload) -> Image:
    """Return the frame as (height, width, 3) BGR; `bgr8` is a view of the payload, without a copy.

    Raises:
        ValueError: the payload is no JPEG, or its size differs from the header.
    """
    shape = (header.height, header.width)
    data = np.frombuffer(payload, np.uint8)
    if header.encoding == "jpeg":
        return _decode_jpeg(data, shape)
    channels = PIXEL_BYTES[header.encoding]
    if data.size != header.height * header.width * channels:
        raise ValueError(f"{data.size} bytes are no {header.width} x {header.height} {header.encoding} image")
    if channels == 3:
        return data.reshape(*shape, 3)
    return np.asarray(cv2.cvtColor(data.reshape(shape), cv2.COLOR_GRAY2BGR), np.uint8)


def is_whole_jpeg(data: Image) -> bool:
    """Return whether a JPEG has its end: decoders fill missing parts with grey and raise no error."""
    return data[-_PADDING:].tobytes().rstrip(b"\0").endswith(_END_OF_IMAGE)


def _decode_jpeg(data: Image, shape: tuple[int, int]) -> Image:
    if not is_whole_jpeg(data):
        raise ValueError(f"payload of {data.size} bytes is no whole JPEG")
    width, height = claimed_size(data.data)
    if (height, width) != shape:
        raise ValueError(f"image is {width} x {height}, expected {shape[1]} x {shape[0]} by its header")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"payload of {data.size} bytes is no JPEG: {error.err}") from error
    if image is None:
        raise ValueError(f"payload of {data.size} bytes is no JPEG")
    return np.asarray(image, np.uint8)


def fitted(image: Image, size: tuple[int, int], fit: Fit) -> Image:
    """Return an image of any size in the given (width, height); contiguous.

    Args:
        image: (height, width, 3) or (height, width).
        size: width and height.
        fit: how another aspect ratio is handled.
    """
    if fit == "crop":
        image = _cut(image, size)
    inner = inner_size((image.shape[1], image.shape[0]), size, fit)
    if image.shape[1::-1] != inner:
        scaled = cv2.resize(np.ascontiguousarray(image), inner, interpolation=cv2.INTER_AREA)
        image = np.asarray(scaled, np.uint8)
    if inner == size:
        return np.ascontiguousarray(image)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    framed = np.zeros((size[1], size[0], *image.shape[2:]), np.uint8)
    framed[top : top + inner[1], left : left + inner[0]] = image
    return framed


def inner_size(picture: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Return the (width, height) of a picture of size `picture` after fitting it into `size`."""
    if fit != "letterbox":
        return size
    scale = min(size[0] / picture[0], size[1] / picture[1])
    return max(round(picture[0] * scale), 1), max(round(picture[1] * scale), 1)


def _cut(image: Image, size: tuple[int, int]) -> Image:
    """Return the largest centre part of a picture with the aspect ratio of `size`."""
    height, width = image.shape[:2]
    kept_width = min(width, max(round(height * size[0] / size[1]), 1))
    kept_height = min(height, max(round(width * size[1] / size[0]), 1))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return image[top : top + kept_height, left : left + kept_width]
