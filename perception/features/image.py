"""Camera messages to pixels."""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from perception.messages import CameraFrame, Payload

Image = npt.NDArray[np.uint8]

_END_OF_IMAGE: Final = b"\xff\xd9"
_PADDING: Final = 4096
"""How many zero bytes a camera may have left behind the image."""


def decode_frame(header: CameraFrame, payload: Payload) -> Image:
    """Return the frame as (height, width, 3) BGR; `bgr8` is a view of the payload, without a copy.

    Raises:
        ValueError: the payload is no JPEG, or its size is not what the header says.
    """
    shape = (header.height, header.width)
    data = np.frombuffer(payload, np.uint8)
    if header.encoding == "jpeg":
        return _decode_jpeg(data, shape)
    channels = 3 if header.encoding == "bgr8" else 1
    if data.size != header.height * header.width * channels:
        raise ValueError(f"{data.size} bytes are no {header.width} x {header.height} {header.encoding} image")
    if channels == 3:
        return data.reshape(*shape, 3)
    return np.asarray(cv2.cvtColor(data.reshape(shape), cv2.COLOR_GRAY2BGR), np.uint8)


def is_whole_jpeg(data: Image) -> bool:
    """Return whether a JPEG has its end: a decoder paints what is missing grey and calls it success."""
    return data[-_PADDING:].tobytes().rstrip(b"\0").endswith(_END_OF_IMAGE)


def _decode_jpeg(data: Image, shape: tuple[int, int]) -> Image:
    if not is_whole_jpeg(data):
        raise ValueError(f"payload of {data.size} bytes is no whole JPEG")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"payload of {data.size} bytes is no JPEG: {error.err}") from error
    if image is None:
        raise ValueError(f"payload of {data.size} bytes is no JPEG")
    if image.shape[:2] != shape:
        height, width = image.shape[:2]
        raise ValueError(f"image is {width} x {height}, its header says {shape[1]} x {shape[0]}")
    return np.asarray(image, np.uint8)
