"""Our messages and ROS messages: what becomes what. No files."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import structs
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from perception import topics
from perception.bus import codec
from perception.errors import BusError, MalformedMessageError
from perception.messages import AudioBlock, CameraFrame, Header, Journal, Message, TextCommand, checked

COMPRESSED: Final = "sensor_msgs/msg/CompressedImage"
IMAGE: Final = "sensor_msgs/msg/Image"
AUDIO: Final = "audio_common_msgs/msg/AudioData"
AUDIO_STAMPED: Final = "audio_common_msgs/msg/AudioDataStamped"
AUDIO_INFO: Final = "audio_common_msgs/msg/AudioInfo"
STRING: Final = "std_msgs/msg/String"

_SECOND_NS: Final = 1_000_000_000
_SOURCE: Final = "rosbag#import"
_JITTER_S: Final = 0.05
# https://github.com/ros-drivers/audio_common/tree/ros2/audio_common_msgs/msg
_AUDIO_TYPES: Final = {
    AUDIO: "uint8[] data",
    AUDIO_STAMPED: "std_msgs/Header header\naudio_common_msgs/AudioData audio",
    AUDIO_INFO: (
        "uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\nstring coding_format"
    ),
}
_SAMPLE_FORMATS: Final = {"s16": "S16LE", "f32": "F32LE"}
_FORMATS: Final = {name: ours for ours, name in _SAMPLE_FORMATS.items()}
_SAMPLE_BYTES: Final = {"s16": 2, "f32": 4}
# Channels, and the conversion to BGR where one is needed.
_ENCODINGS: Final = {
    "mono8": (1, None),
    "8UC1": (1, None),
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
}
_ENDINGS: Final = ("/compressed", "/image_raw", "/image", "/audio_stamped", "/audio")
_KINDS: Final = {
    COMPRESSED: "camera",
    IMAGE: "camera",
    AUDIO: "microphone",
    AUDIO_STAMPED: "microphone",
    STRING: "text",
}
USABLE: Final = frozenset(_KINDS)
"""ROS types that have a counterpart here."""
_LONGEST_NAME: Final = topics.MAX_TOPIC_LENGTH - len("microphone/") - len("-99")


class UnusableError(Exception):
    """A ROS message that has no counterpart here; the text says why."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A ROS message to write."""

    topic: str
    type: str
    message: Any


def types() -> Typestore:
    """Return the message types of ROS 2 and audio_common."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in _AUDIO_TYPES.items():
        store.register(get_types_from_msg(text, name))
    return store


def encode(store: Typestore, message: Message[Header]) -> Outgoing:
    """Return the ROS message for one of ours; UnusableError if its stamp does not fit."""
    header, topic = message.header, f"/{message.topic}"
    data = np.frombuffer(message.payload, np.uint8)
    if isinstance(header, CameraFrame):
        stamped = _header(store, message)
        if header.encoding == "jpeg":
            made = store.types[COMPRESSED](header=stamped, format="jpeg", data=data)
            return Outgoing(f"{topic}/image_raw/compressed", COMPRESSED, made)
        made = store.types[IMAGE](
            header=stamped,
            height=header.height,
            width=header.width,
            encoding=header.encoding,
            is_bigendian=0,
            step=len(data) // header.height,
            data=data,
        )
        return Outgoing(f"{topic}/image_raw", IMAGE, made)
    if isinstance(header, AudioBlock):
        audio = store.types[AUDIO](data=data)
        made = store.types[AUDIO_STAMPED](header=_header(store, message), audio=audio)
        return Outgoing(f"{topic}/audio", AUDIO_STAMPED, made)
    text = header.text if isinstance(header, TextCommand) else msgspec.json.encode(header).decode()
    return Outgoing(topic, STRING, store.types[STRING](data=text))


def sound_info(store: Typestore, topic: str, header: AudioBlock) -> Outgoing:
    """Return what readers must know of a microphone."""
    bits = 8 * _SAMPLE_BYTES[header.format]
    made = store.types[AUDIO_INFO](
        channels=header.channels,
        sample_rate=header.rate_hz,
        sample_format=_SAMPLE_FORMATS[header.format],
        bitrate=header.rate_hz * header.channels * bits,
        coding_format="wave",
    )
    return Outgoing(f"/{topic}/audio_info", AUDIO_INFO, made)


def _header(store: Typestore, message: Message[Header]) -> Any:
    seconds, nanos = divmod(message.header.stamp_ns, _SECOND_NS)
    if not -(1 << 31) <= seconds < 1 << 31:
        raise UnusableError(f"stamp {message.header.stamp_ns} does not fit a ROS time")
    stamp = store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanos)
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=message.topic.partition("/")[2])


def our_topic(ros_topic: str, ros_type: str) -> str:
    """Return our topic for a ROS topic: the same if it comes from us, else `camera/NAME` and the like."""
    name = ros_topic.strip("/")
    kind = _KINDS[ros_type]
    if kind != "text":
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
    with suppress(BusError):
        row = topics.lookup(name)
        if row.prefix == kind or (kind == "text" and row.prefix not in ("camera", "microphone")):
            return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "unnamed"
    return f"{kind}/{plain[-_LONGEST_NAME:].lstrip('_-')}"


class Decoder:
    """Turns the ROS messages of one topic into ours, numbered.

    Args:
        topic: of ours, see `our_topic`.
        info: the topic's `AudioInfo`, if it carries sound.
    """

    def __init__(self, topic: str, info: Any = None) -> None:
        self.topic = topic
        self._info = info
        self._seq = 0
        self._samples = 0
        self._first_ns: int | None = None

    def decode(self, message: Any, received_ns: int) -> Message[Header]:
        """Return our message for one received at that time; UnusableError if there is none."""
        header, payload = self._convert(message, _stamp_ns(message, received_ns))
        made = structs.replace(header, seq=self._seq, sent_ns=received_ns, source=_SOURCE)
        try:
            codec.encode(self.topic, made, payload)
        except MalformedMessageError as error:
            raise UnusableError(str(error)) from error
        self._seq += 1
        return Message(self.topic, made, payload, received_ns)

    def _convert(self, message: Any, stamp_ns: int) -> tuple[Header, bytes]:
        try:
            match message.__msgtype__:
                case "sensor_msgs/msg/CompressedImage":
                    return _compressed(message, stamp_ns)
                case "sensor_msgs/msg/Image":
                    return _image(message, stamp_ns)
                case "audio_common_msgs/msg/AudioData":
                    return self._sound(message.data.tobytes(), stamp_ns)
                case "audio_common_msgs/msg/AudioDataStamped":
                    return self._sound(message.audio.data.tobytes(), stamp_ns)
            kind = topics.lookup(self.topic).message
            if kind is Journal:
                raise UnusableError("it tells of publishers, and a bag keeps none")
            if kind is TextCommand:
                return checked(TextCommand, {"stamp_ns": stamp_ns, "text": message.data}), b""
            return msgspec.json.decode(message.data, type=kind), b""
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UnusableError(str(error)) from error

    def _sound(self, data: bytes, stamp_ns: int) -> tuple[Header, bytes]:
        info = self._info
        if info is None:
            raise UnusableError("no AudioInfo beside it says what its samples are")
        if info.coding_format not in ("wave", "") or info.sample_format not in _FORMATS:
            raise UnusableError(
                f"{info.coding_format} {info.sample_format} is not plain S16LE or F32LE sound"
            )
        kind = _FORMATS[info.sample_format]
        samples = len(data) // (_SAMPLE_BYTES[kind] * max(info.channels, 1))
        if self._first_ns is None:
            self._first_ns = stamp_ns
        due = round((stamp_ns - self._first_ns) * info.sample_rate / _SECOND_NS)
        # Stamps jitter; a whole piece missing does not.
        gap = due - self._samples if due - self._samples > _JITTER_S * info.sample_rate else 0
        fields = {
            "stamp_ns": stamp_ns,
            "sample_index": self._samples + gap,
            "samples": samples,
            "rate_hz": info.sample_rate,
            "channels": info.channels,
            "format": kind,
            "gap": gap,
        }
        header = checked(AudioBlock, fields)
        self._samples += gap + samples
        return header, data


def _stamp_ns(message: Any, received_ns: int) -> int:
    header = getattr(message, "header", None)
    stamp_ns = 0 if header is None else header.stamp.sec * _SECOND_NS + header.stamp.nanosec
    return stamp_ns or received_ns


def _compressed(message: Any, stamp_ns: int) -> tuple[Header, bytes]:
    data = np.ascontiguousarray(message.data)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise UnusableError(f"a picture of format '{message.format[:40]}' that cannot be decoded")
    height, width = image.shape[:2]
    # A JPEG stays as it is; PNG and the like have no place on the bus.
    jpeg = data[:2].tobytes() == b"\xff\xd8"
    header = CameraFrame(stamp_ns=stamp_ns, width=width, height=height, encoding="jpeg" if jpeg else "bgr8")
    return header, data.tobytes() if jpeg else image.tobytes()


def _image(message: Any, stamp_ns: int) -> tuple[Header, bytes]:
    if message.encoding not in _ENCODINGS:
        raise UnusableError(f"an image of encoding '{message.encoding[:40]}'")
    channels, conversion = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if step < width * channels or message.data.size != step * height or not message.data.size:
        raise UnusableError(f"an image of {message.data.size} bytes that says {width}x{height}, step {step}")
    rows: npt.NDArray[np.uint8] = message.data.reshape(height, step)[:, : width * channels]
    image = rows.reshape(height, width, channels)
    if conversion is not None:
        image = cv2.cvtColor(image, conversion).astype(np.uint8, copy=False)
    encoding = "mono8" if channels == 1 else "bgr8"
    fields = {"stamp_ns": stamp_ns, "width": width, "height": height, "encoding": encoding}
    return checked(CameraFrame, fields), image.tobytes()
