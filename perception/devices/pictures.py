"""Pictures of any format, from files and from other programs: bounded before they are decoded."""

import io
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from perception.devices.media import check_file, open_container
from perception.errors import DeviceError
from perception.features.jpeg import MAX_PIXELS
from perception.features.picture import claimed_size, is_avif
from perception.units.arrays import Image

_MAX_FILE_BYTES: Final = 8 * MAX_PIXELS
"""The largest picture with four values of 16 bits a pixel, uncompressed."""


def decode_picture(data: bytes, flags: int) -> npt.NDArray[Any]:
    """Return a picture as OpenCV decodes it with these flags of `cv2.imread`.

    Raises:
        ValueError: it claims more than `MAX_PIXELS`, its size is not known, or it cannot be decoded.
    """
    claimed_size(data)
    if is_avif(data):
        _check_parts(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"a picture that cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError("a picture that cannot be decoded")
    return image


def read_picture(path: Path | str) -> Image:
    """Return a picture file as (height, width, 3) BGR, the right way up.

    Raises:
        DeviceError: it is no file, or as the ValueError of `decode_picture`.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"more than {_MAX_FILE_BYTES} bytes are no picture")
        return np.asarray(decode_picture(data, cv2.IMREAD_COLOR), np.uint8)
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DeviceError(f"{path}: {error}") from error


def _check_parts(data: bytes) -> None:
    """Decode an AVIF under a bound: its code may be larger than its header, and OpenCV would decode it."""
    try:
        with open_container(io.BytesIO(data), name="AVIF") as container:
            for packet in container.demux():
                packet.decode()
    except (av.FFmpegError, DeviceError, ValueError) as error:
        why = f"is damaged or larger than the {MAX_PIXELS} pixels allowed"
        raise ValueError(f"AVIF of {len(data)} bytes {why}") from error
