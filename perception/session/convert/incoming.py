"""Convert pictures, sound and text that other programs recorded. No files.

A picture keeps its values or is refused with its encoding. More than 8 bits per value (depth, mono16, float
images) have no encoding on the bus and are refused: a scaled image would have another meaning.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from perception import topics
from perception.bus import codec
from perception.devices.damage import decode_jpeg
from perception.devices.pictures import decode_picture
from perception.devices.pixels import Layout
from perception.devices.wire import Numbering
from perception.errors import BusError, MalformedMessageError
from perception.features.image import is_whole_jpeg
from perception.features.jpeg import claimed_size
from perception.messages import SAMPLE_BYTES, AudioBlock, CameraFrame, Header, Message, TextCommand, checked
from perception.units import SECOND_NS
from perception.units.arrays import Image

Converted = tuple[Header, bytes]

_JITTER_S: Final = 0.05
_NAME_SHOWN: Final = 40
_LONGEST_NAME: Final = topics.MAX_TOPIC_LENGTH - len("microphone/") - len("-99")
_JPEG: Final = b"\xff\xd8"

AUDIO_INFO: Final = "audio_common_msgs/msg/AudioInfo"
ROS_PREFIXES: Final = {
    "sensor_msgs/msg/CompressedImage": "camera",
    "sensor_msgs/msg/Image": "camera",
    "audio_common_msgs/msg/AudioData": "microphone",
    "audio_common_msgs/msg/AudioDataStamped": "microphone",
    "std_msgs/msg/String": "text",
}
"""Topic prefix by ROS type."""


class UnusableError(Exception):
    """A message that cannot be converted; the text is the reason."""


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Memory layout of an encoding, and its conversion to BGR."""

    bytes: int = 1
    """Bytes per pixel of a row; of the luma plane if there are planes."""
    conversion: int | None = None
    planar: bool = False
    """Whether a chroma plane with half as many rows follows."""
    even: bool = False
    """Whether two neighbouring pixels share their colour."""


# Names: https://github.com/ros2/common_interfaces/blob/rolling/sensor_msgs/include/sensor_msgs/image_encodings.hpp
_ENCODINGS: Final = {
    "mono8": _Pixels(),
    "8UC1": _Pixels(),
    "bgr8": _Pixels(3),
    "8UC3": _Pixels(3),
    "rgb8": _Pixels(3, cv2.COLOR_RGB2BGR),
    "bgra8": _Pixels(4, cv2.COLOR_BGRA2BGR),
    "8UC4": _Pixels(4, cv2.COLOR_BGRA2BGR),
    "rgba8": _Pixels(4, cv2.COLOR_RGBA2BGR),
    "bayer_rggb8": _Pixels(1, cv2.COLOR_BayerRGGB2BGR),
    "bayer_bggr8": _Pixels(1, cv2.COLOR_BayerBGGR2BGR),
    "bayer_gbrg8": _Pixels(1, cv2.COLOR_BayerGBRG2BGR),
    "bayer_grbg8": _Pixels(1, cv2.COLOR_BayerGRBG2BGR),
    "yuv422": _Pixels(2, cv2.COLOR_YUV2BGR_UYVY, even=True),
    "uyvy": _Pixels(2, cv2.COLOR_YUV2BGR_UYVY, even=True),
    "yuv422_yuy2": _Pixels(2, cv2.COLOR_YUV2BGR_YUY2, even=True),
    "yuyv": _Pixels(2, cv2.COLOR_YUV2BGR_YUY2, even=True),
    "nv12": _Pixels(1, cv2.COLOR_YUV2BGR_NV12, planar=True, even=True),
    "nv21": _Pixels(1, cv2.COLOR_YUV2BGR_NV21, planar=True, even=True),
}


def compressed(data: bytes, kind: str, stamp_ns: int) -> Converted:
    """Return a compressed picture as a frame; UnusableError if it cannot be converted.

    JPEG is kept; PNG and others have no encoding on the bus and are decoded.
    """
    if "compressedDepth" in kind:
        raise UnusableError(f"a depth image of format {kind[:_NAME_SHOWN]!r}, which is not supported")
    if data[:2] == _JPEG:
        return _frame(stamp_ns, *_whole_jpeg(data), "jpeg"), data
    # Orientation is not applied: recorded boxes refer to the stored picture.
    try:
        image = decode_picture(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except ValueError as error:
        raise UnusableError(f"a picture of format {kind[:_NAME_SHOWN]!r}: {error}") from error
    if image.dtype != np.uint8:
        raise UnusableError(
            f"a picture of format {kind[:_NAME_SHOWN]!r} with {8 * image.dtype.itemsize} bits per value, "
            "which is not supported"
        )
    height, width = image.shape[:2]
    pixels = image.astype(np.uint8, copy=False)
    if pixels.ndim == 2:
        return _frame(stamp_ns, width, height, "mono8"), pixels.tobytes()
    if pixels.shape[2] == 4:
        pixels = _converted(pixels, cv2.COLOR_BGRA2BGR)
    return _frame(stamp_ns, width, height, "bgr8"), pixels.tobytes()


def raw(
    data: npt.NDArray[np.uint8], encoding: str, size: tuple[int, int], step: int, stamp_ns: int
) -> Converted:
    """Return an image of (width, height) pixels, `step` bytes per row; UnusableError as of `compressed`."""
    width, height = size
    # Some drivers use the names of OpenCV or V4L2, in capitals.
    kind = _ENCODINGS.get(encoding) or _ENCODINGS.get(encoding.lower())
    if kind is None:
        raise UnusableError(f"an image of encoding {encoding[:_NAME_SHOWN]!r}, which is not supported")
    rows = height * 3 // 2 if kind.planar else height
    fits = step >= width * kind.bytes and data.size == step * rows and data.size > 0
    if not fits or (kind.even and width % 2) or (kind.planar and height % 2):
        raise UnusableError(
            f"an image of {data.size} bytes with size {width}x{height}, step {step}, "
            f"{encoding[:_NAME_SHOWN]!r}"
        )
    image = data.reshape(rows, step)[:, : width * kind.bytes].reshape(rows, width, kind.bytes)
    if kind.conversion is not None:
        image = _converted(image, kind.conversion)
    encoding = "mono8" if image.shape[2] == 1 else "bgr8"
    return _frame(stamp_ns, width, height, encoding), image.tobytes()


def text(words: str, stamp_ns: int) -> Converted:
    """Return a line of text; ValueError if it is too long."""
    return checked(TextCommand, {"stamp_ns": stamp_ns, "text": words}), b""


class Sound:
    """Counts the samples of one microphone; a jump of its stamps is a gap."""

    def __init__(self) -> None:
        self._samples = 0
        self._first_ns: int | None = None

    def block(
        self, data: bytes, kind: str, rate_hz: int, channels: int, stamp_ns: int, received_ns: int
    ) -> Converted:
        """Return a block of `s16` or `f32` samples; with a stamp of 0 its end is the time of receipt."""
        if not (rate_hz > 0 and channels > 0):
            raise UnusableError(f"sound of {rate_hz} Hz and {channels} channels")
        samples = len(data) // (SAMPLE_BYTES[kind] * channels)
        stamp_ns = stamp_ns or received_ns - samples * SECOND_NS // rate_hz
        if self._first_ns is None:
            self._first_ns = stamp_ns
        due = round((stamp_ns - self._first_ns) * rate_hz / SECOND_NS)
        # Stamps jitter by less than _JITTER_S; a larger jump is a gap.
        gap = due - self._samples if due - self._samples > _JITTER_S * rate_hz else 0
        fields = {
            "stamp_ns": stamp_ns,
            "sample_index": self._samples + gap,
            "samples": samples,
            "rate_hz": rate_hz,
            "channels": channels,
            "format": kind,
            "gap": gap,
        }
        header = checked(AudioBlock, fields)
        self._samples += gap + samples
        return header, data


class Numbered:
    """Converts the messages of one foreign stream to those of one topic, and numbers them.

    Args:
        topic: of the converted messages.
        convert: returns header and payload for recorded bytes and their time of receipt.
        source: publisher id of the messages.
    """

    def __init__(self, topic: str, convert: Callable[[bytes, int], Converted], source: str) -> None:
        self.topic = topic
        self._convert = convert
        self._numbering = Numbering(source)

    def message(self, data: bytes, received_ns: int) -> Message[Header]:
        """Return the message for bytes received at `received_ns`; UnusableError if it cannot be converted."""
        try:
            header, payload = self._convert(data, received_ns)
            if header.stamp_ns < 0:
                raise UnusableError(f"a stamp of {header.stamp_ns / SECOND_NS:.0f} s, before 1970")
            codec.encode(self.topic, header, payload)
        except (MalformedMessageError, ValueError) as error:
            raise UnusableError(str(error)) from error
        return self._numbering.message(self.topic, header, payload, received_ns)


def topic_for(name: str, prefix: str) -> str:
    """Return the topic for a foreign one: the same if valid, else `camera/NAME` or the like."""
    with suppress(BusError):
        row = topics.lookup(name)
        if row.prefix == prefix or (prefix == "text" and row.prefix not in ("camera", "microphone")):
            return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "unnamed"
    return f"{prefix}/{plain[-_LONGEST_NAME:].lstrip('_-')}"


@cache
def _decoder() -> Callable[[npt.NDArray[np.generic]], Image]:
    return decode_jpeg(Layout())


def _whole_jpeg(data: bytes) -> tuple[int, int]:
    """Return width and height of a JPEG; UnusableError if it is damaged or truncated."""
    buffer = np.frombuffer(data, np.uint8)
    if not is_whole_jpeg(buffer):
        raise UnusableError("a JPEG whose end is missing")
    try:
        size = claimed_size(data)
        _decoder()(buffer)
    except ValueError as error:
        raise UnusableError(str(error)) from error
    return size


def _frame(stamp_ns: int, width: int, height: int, encoding: str) -> CameraFrame:
    fields = {"stamp_ns": stamp_ns, "width": width, "height": height, "encoding": encoding}
    return checked(CameraFrame, fields)


def _converted(image: npt.NDArray[Any], conversion: int) -> Image:
    return cv2.cvtColor(np.ascontiguousarray(image), conversion).astype(np.uint8, copy=False)
