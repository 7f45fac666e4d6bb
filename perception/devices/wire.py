"""Converts captured items to messages: header and payload of each.

Live capture nodes and the offline stream of a script share these functions, so a head is trained on the same
bytes as it receives live.
"""

from collections import Counter
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from msgspec import structs

from perception.devices.device import CapturedBlock, CapturedFrame, CapturedLabel, CapturedText
from perception.errors import MalformedMessageError
from perception.messages import (
    AudioBlock,
    CameraFrame,
    Header,
    HeaderT,
    Label,
    Message,
    Payload,
    TextCommand,
    checked,
)
from perception.profile import CameraConfig, MicrophoneConfig
from perception.units.arrays import SAMPLE_TYPES

FULL_SCALE_S16: Final = 32768.0


class Numbering:
    """Numbers messages that were made and never published, as a publisher would have numbered them."""

    def __init__(self, source: str) -> None:
        """Give all of them the publisher id `source`."""
        self._source = source
        self.counts: Counter[str] = Counter()
        """Messages so far, by topic."""

    def message(self, topic: str, header: Header, payload: Payload, at_ns: int) -> Message[Header]:
        """Return the next message of a topic, sent and received at `at_ns`."""
        fields = {"seq": self.counts[topic], "sent_ns": at_ns, "source": self._source}
        self.counts[topic] += 1
        return Message(topic, structs.replace(header, **fields), payload, at_ns)


def frame_message(
    frame: CapturedFrame, config: CameraConfig, condition: str = ""
) -> tuple[CameraFrame, Payload]:
    """Return header and payload of a frame in the profile's encoding; the image is not resized.

    `condition`: of the camera's signal, empty if it was not judged.

    Raises:
        MalformedMessageError: the image is empty, too large, or neither grey nor BGR.
    """
    image = frame.image
    grey = image.ndim == 2
    if image.dtype != np.uint8 or image.size == 0 or not (grey or image.shape[2:] == (3,)):
        raise MalformedMessageError(f"camera image of shape {image.shape} {image.dtype} is not BGR or grey")
    header = _checked(
        CameraFrame,
        stamp_ns=frame.stamp_ns,
        width=image.shape[1],
        height=image.shape[0],
        encoding=config.encoding,
        exposure_ns=frame.exposure_ns,
        condition=condition,
    )
    if config.encoding == "jpeg":
        return header, _jpeg(image, config.jpeg_quality)
    if config.encoding == "bgr8" and grey:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
    elif config.encoding == "mono8" and not grey:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)
    # Flat, so that len() of the payload is its size in bytes.
    return header, np.ascontiguousarray(image).reshape(-1).data


def as_jpeg(header: Header, pixels: Payload, quality: int) -> tuple[Header, Payload]:
    """Return a raw camera frame as JPEG, for readers on slow connections.

    Raises:
        MalformedMessageError: the message is not a raw camera frame.
    """
    if not isinstance(header, CameraFrame) or header.encoding == "jpeg":
        raise MalformedMessageError("only raw camera frames become JPEG")
    shape = (header.height, header.width, 3)[: 2 if header.encoding == "mono8" else 3]
    image = np.frombuffer(pixels, np.uint8).reshape(shape)
    return structs.replace(header, encoding="jpeg"), _jpeg(image, quality)


def block_message(
    block: CapturedBlock, config: MicrophoneConfig, condition: str = ""
) -> tuple[AudioBlock, bytes]:
    """Return header and payload of a block in the profile's sample format.

    `condition`: of the microphone's signal, empty if it was not judged.

    Raises:
        MalformedMessageError: the block is empty or holds NaN or infinite samples.
    """
    samples = block.samples
    if samples.ndim != 2 or samples.size == 0:
        raise MalformedMessageError(f"audio block of shape {samples.shape} is not (samples, channels)")
    if not np.isfinite(samples).all():
        raise MalformedMessageError(f"audio block at sample {block.sample_index} holds NaN or infinity")
    header = _checked(
        AudioBlock,
        stamp_ns=block.stamp_ns,
        sample_index=block.sample_index,
        samples=samples.shape[0],
        rate_hz=config.rate_hz,
        channels=samples.shape[1],
        format=config.format,
        gap=block.gap,
        condition=condition,
    )
    converted = to_s16(samples) if config.format == "s16" else to_f32(samples)
    return header, converted.astype(SAMPLE_TYPES[config.format]).tobytes()


def text_message(text: CapturedText, language: str = "") -> TextCommand:
    """Return the message of one line of text; MalformedMessageError if it is too long or invalid Unicode."""
    return _checked(TextCommand, stamp_ns=text.stamp_ns, text=text.text, language=language)


def label_message(label: CapturedLabel) -> Label:
    """Return the message of a label."""
    return Label(stamp_ns=label.start_ns, start_ns=label.start_ns, end_ns=label.end_ns, name=label.name)


def _jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    _, encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return encoded.tobytes()


def _checked(kind: type[HeaderT], **fields: object) -> HeaderT:
    try:
        return checked(kind, fields)
    except ValueError as error:
        raise MalformedMessageError(f"{kind.__name__} refused: {error}") from error


def to_s16(samples: npt.NDArray[np.int16] | npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Return [-1, 1) floats as 16 bit, rounded and clipped; 16-bit samples unchanged."""
    if samples.dtype == np.int16:
        return samples.astype(np.int16, copy=False)
    scaled: npt.NDArray[np.float32] = np.rint(samples * FULL_SCALE_S16)
    return scaled.clip(-32768, 32767).astype(np.int16)


def to_f32(samples: npt.NDArray[np.int16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 16-bit samples as floats in [-1, 1); floats unchanged."""
    if samples.dtype == np.int16:
        return (samples / FULL_SCALE_S16).astype(np.float32)
    return samples.astype(np.float32, copy=False)
