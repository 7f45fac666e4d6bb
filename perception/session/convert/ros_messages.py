"""Convert messages to ROS messages and back. No files."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from perception import topics
from perception.messages import (
    SAMPLE_BYTES,
    AudioBlock,
    Box,
    CameraFrame,
    FusedState,
    Header,
    Journal,
    Message,
    TextCommand,
)
from perception.session.convert import incoming
from perception.session.convert.bag import BagStream
from perception.session.convert.incoming import AUDIO_INFO, Converted, Sound, UnusableError
from perception.units import SECOND_NS

COMPRESSED: Final = "sensor_msgs/msg/CompressedImage"
IMAGE: Final = "sensor_msgs/msg/Image"
AUDIO: Final = "audio_common_msgs/msg/AudioData"
AUDIO_STAMPED: Final = "audio_common_msgs/msg/AudioDataStamped"
STRING: Final = "std_msgs/msg/String"
DETECTIONS: Final = "vision_msgs/msg/Detection2DArray"

_LOG: Final = logging.getLogger(__name__)
# https://github.com/ros-drivers/audio_common/tree/ros2/audio_common_msgs/msg
_AUDIO_TYPES: Final = {
    AUDIO: "uint8[] data",
    AUDIO_STAMPED: "std_msgs/Header header\naudio_common_msgs/AudioData audio",
    AUDIO_INFO: (
        "uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\nstring coding_format"
    ),
}
# https://github.com/ros-perception/vision_msgs/tree/ros2/vision_msgs/msg
_VISION_TYPES: Final = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose"
    ),
    "vision_msgs/msg/Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox2D bbox\nstring id"
    ),
    DETECTIONS: "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
}
_SAMPLE_FORMATS: Final = {"s16": "S16LE", "f32": "F32LE"}
_FORMATS: Final = {name: ours for ours, name in _SAMPLE_FORMATS.items()}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A ROS message to write."""

    topic: str
    type: str
    message: Any


def types() -> Typestore:
    """Return the message types of ROS 2, audio_common and vision_msgs."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in (_AUDIO_TYPES | _VISION_TYPES).items():
        store.register(get_types_from_msg(text, name))
    return store


def encode(store: Typestore, message: Message[Header]) -> Outgoing:
    """Return the ROS message for a message; UnusableError if its stamp exceeds the range of ROS."""
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
    """Return the format of a microphone, which readers need."""
    bits = 8 * SAMPLE_BYTES[header.format]
    made = store.types[AUDIO_INFO](
        channels=header.channels,
        sample_rate=header.rate_hz,
        sample_format=_SAMPLE_FORMATS[header.format],
        bitrate=header.rate_hz * header.channels * bits,
        coding_format="wave",
    )
    return Outgoing(f"/{topic}/audio_info", AUDIO_INFO, made)


def detections(store: Typestore, topic: str, state: FusedState) -> Iterator[Outgoing]:
    """Yield the boxes of each camera in a state of `topic`, also without any box.

    Raises:
        UnusableError: the stamp exceeds the range of ROS.
    """
    for modality in state.modalities.values():
        if topics.kind_of(modality.topic) == "camera":
            name = topics.name_of(modality.topic)
            seen_ns = state.stamp_ns - round((modality.age_ms or 0.0) * 1e6)
            header = _stamped(store, seen_ns, name)
            boxes = [box for branch in modality.branches.values() for box in branch.boxes]
            made = store.types[DETECTIONS](
                header=header, detections=[_detection(store, header, box) for box in boxes]
            )
            yield Outgoing(f"/{topic}/detections/{name}", DETECTIONS, made)


def _detection(store: Typestore, header: Any, box: Box) -> Any:
    kinds = store.types
    nowhere = kinds["geometry_msgs/msg/PoseWithCovariance"](
        pose=kinds["geometry_msgs/msg/Pose"](
            position=kinds["geometry_msgs/msg/Point"](x=0.0, y=0.0, z=0.0),
            orientation=kinds["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
        ),
        covariance=np.zeros(36),
    )
    middle = kinds["vision_msgs/msg/Point2D"](x=box.x + box.width / 2, y=box.y + box.height / 2)
    return kinds["vision_msgs/msg/Detection2D"](
        header=header,
        results=[
            kinds["vision_msgs/msg/ObjectHypothesisWithPose"](
                hypothesis=kinds["vision_msgs/msg/ObjectHypothesis"](class_id=box.label, score=box.score),
                pose=nowhere,
            )
        ],
        bbox=kinds["vision_msgs/msg/BoundingBox2D"](
            center=kinds["vision_msgs/msg/Pose2D"](position=middle, theta=0.0),
            size_x=box.width,
            size_y=box.height,
        ),
        id="",
    )


def _header(store: Typestore, message: Message[Header]) -> Any:
    return _stamped(store, message.header.stamp_ns, topics.name_of(message.topic))


def _stamped(store: Typestore, stamp_ns: int, frame_id: str) -> Any:
    seconds, nanos = divmod(stamp_ns, SECOND_NS)
    if not -(1 << 31) <= seconds < 1 << 31:
        raise UnusableError(f"stamp {stamp_ns} does not fit a ROS time")
    stamp = store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanos)
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def deserializer(stream: BagStream) -> Callable[[bytes], Any]:
    """Return a function from bytes to a message; it raises UnusableError for invalid bytes.

    A bag holds the definition of its types. If that cannot be parsed, the published definition is used.
    """
    package, _, name = stream.type.rpartition("/")
    kind = stream.type if package.count("/") else f"{package}/msg/{name}"
    store = types()
    try:
        if stream.definition_encoding in ("ros2msg", "ros1msg"):
            own = get_typestore(Stores.EMPTY)
            own.register(get_types_from_msg(stream.definition, kind))
            store = own
    except Exception as error:  # the parser raises many types on definitions of other programs
        _LOG.info("%s: its definition cannot be parsed: %s", stream.topic, error)
    reads = store.deserialize_ros1 if stream.encoding == "ros1" else store.deserialize_cdr

    def deserialize(data: bytes) -> Any:
        try:
            return reads(data, kind)
        except Exception as error:  # the library raises many types on invalid bytes
            raise UnusableError(f"not a {kind}: {error}") from error

    return deserialize


class Converter:
    """Converts the ROS messages of one topic.

    Args:
        topic: of the converted messages.
        kind: ROS type of the messages.
        deserialize: returns a message for its bytes.
        info: the `AudioInfo` of the topic, if there is one.
        audio_rate_hz: sample rate of `AudioData` without `AudioInfo`; it is read as S16LE, mono.
    """

    def __init__(
        self,
        topic: str,
        kind: str,
        deserialize: Callable[[bytes], Any],
        info: Any = None,
        audio_rate_hz: int | None = None,
    ) -> None:
        self._topic = topic
        self._kind = kind
        self._deserialize = deserialize
        self._info = info
        self._audio_rate_hz = audio_rate_hz
        self._sound = Sound()

    def __call__(self, data: bytes, received_ns: int) -> Converted:
        """Return header and payload for bytes received at `received_ns`; UnusableError if there are none."""
        message = self._deserialize(data)
        given_ns = _stamp_ns(message)
        stamp_ns = given_ns or received_ns
        match self._kind:
            case "sensor_msgs/msg/CompressedImage":
                return incoming.compressed(message.data.tobytes(), message.format, stamp_ns)
            case "sensor_msgs/msg/Image":
                size = message.width, message.height
                return incoming.raw(message.data, message.encoding, size, message.step, stamp_ns)
            case "audio_common_msgs/msg/AudioData":
                return self._block(message.data.tobytes(), given_ns, received_ns)
            case "audio_common_msgs/msg/AudioDataStamped":
                return self._block(message.audio.data.tobytes(), given_ns, received_ns)
        kind = topics.lookup(self._topic).message
        if kind is Journal:
            raise UnusableError("a journal refers to publishers, which a bag does not store")
        if kind is TextCommand:
            return incoming.text(message.data, stamp_ns)
        return msgspec.json.decode(message.data, type=kind), b""

    def _block(self, data: bytes, stamp_ns: int, received_ns: int) -> Converted:
        info = self._info
        if info is None:
            if self._audio_rate_hz is None:
                raise UnusableError(
                    "no AudioInfo describes its samples; --audio-rate HZ reads them as S16LE, mono"
                )
            return self._sound.block(data, "s16", self._audio_rate_hz, 1, stamp_ns, received_ns)
        if info.coding_format not in ("wave", "") or info.sample_format not in _FORMATS:
            raise UnusableError(
                f"{info.coding_format} {info.sample_format} is not plain S16LE or F32LE sound"
            )
        return self._sound.block(
            data, _FORMATS[info.sample_format], info.sample_rate, info.channels, stamp_ns, received_ns
        )


def _stamp_ns(message: Any) -> int:
    """Return the stamp of a message, 0 if it has none."""
    header = getattr(message, "header", None)
    return 0 if header is None else int(header.stamp.sec * SECOND_NS + header.stamp.nanosec)
