"""How each message is recorded: a view that Foxglove and Rerun open, and the exact wire bytes.

Camera, sound and text use Foxglove's published schemas, all others a protobuf message derived from the
declaration in `messages`. Every record has two more fields, which viewers ignore: `header`, the msgpack
header byte for byte, and `payload` if the view has no field for it. So the float samples of a microphone are
stored beside the 16-bit samples, since Foxglove plays only these. Boxes in a state are also written as image
annotations, for viewers only: the reader skips them.
"""

import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from msgspec import structs, to_builtins

from perception import topics
from perception.features.window import raw_samples
from perception.messages import (
    PIXEL_BYTES,
    AudioBlock,
    CameraFrame,
    FusedState,
    Header,
    ModalityState,
    Model,
    Payload,
    TextCommand,
)
from perception.session.file.pcm import as_s16
from perception.session.file.protobuf import Enum, Field, Schema, declared, encode
from perception.units import SECOND_NS

HEADER_FIELD: Final = 1000
PAYLOAD_FIELD: Final = 1001
_TIMESTAMP_FIELD: Final = 1002
"""In messages derived from `messages`: viewers plot over a field `timestamp`."""
ANNOTATIONS: Final = "annotations"
"""Prefix of the channels that only viewers read."""

_HEADER: Final = Field("header", HEADER_FIELD, "bytes")
_PAYLOAD: Final = Field("payload", PAYLOAD_FIELD, "bytes")
_TIMESTAMP: Final = Schema(
    "google.protobuf", "Timestamp", (Field("seconds", 1, "int64"), Field("nanos", 2, "int32"))
)
_LEVELS: Final = Enum("Level", ("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL"))
_LINES: Final = Enum("Type", ("UNKNOWN", "POINTS", "LINE_LOOP", "LINE_STRIP", "LINE_LIST"))

# https://github.com/foxglove/foxglove-sdk/tree/main/schemas/proto/foxglove
_FOXGLOVE: Final = declared(
    "foxglove",
    """
    message CompressedImage {
      Timestamp timestamp = 1; string frame_id = 4; bytes data = 2; string format = 3;
    }
    message RawImage {
      Timestamp timestamp = 1; string frame_id = 7; fixed32 width = 2; fixed32 height = 3;
      string encoding = 4; fixed32 step = 5; bytes data = 6;
    }
    message RawAudio {
      Timestamp timestamp = 1; bytes data = 2; string format = 3; fixed32 sample_rate = 4;
      fixed32 number_of_channels = 5;
    }
    message Log {
      Timestamp timestamp = 1; Level level = 2; string message = 3; string name = 4; string file = 5;
      fixed32 line = 6;
    }
    message Point2 { double x = 1; double y = 2; }
    message Color { double r = 1; double g = 2; double b = 3; double a = 4; }
    message PointsAnnotation {
      Timestamp timestamp = 1; Type type = 2; repeated Point2 points = 3; Color outline_color = 4;
      double thickness = 7;
    }
    message TextAnnotation {
      Timestamp timestamp = 1; Point2 position = 2; string text = 3; double font_size = 4;
      Color text_color = 5;
    }
    message ImageAnnotations {
      repeated PointsAnnotation points = 2; repeated TextAnnotation texts = 3; Timestamp timestamp = 5;
    }
    """,
    Timestamp=_TIMESTAMP,
    Level=_LEVELS,
    Type=_LINES,
)


def _recorded(name: str, *exact: Field) -> Schema:
    """Return a schema of Foxglove with the fields that hold the wire bytes."""
    return Schema("foxglove", name, (*_FOXGLOVE[name].fields, *exact))


COMPRESSED_IMAGE: Final = _recorded("CompressedImage", _HEADER)
RAW_IMAGE: Final = _recorded("RawImage", _HEADER)
RAW_AUDIO: Final = _recorded("RawAudio", _HEADER, _PAYLOAD)
LOG: Final = _recorded("Log", _HEADER)
IMAGE_ANNOTATIONS: Final = _FOXGLOVE["ImageAnnotations"]
_HEADER_DECLARATION: Final = b"\n\x06header" + b"\x18\xe8\x07"
"""Name and number 1000 of a field, as encoded in a FileDescriptorSet."""
_PAYLOADS: Final = {"foxglove.CompressedImage": "2", "foxglove.RawImage": "6", "foxglove.RawAudio": "2"}
_INFO: Final = 2
_LINE_LOOP: Final = 2
_GREEN: Final = {"r": 0.2, "g": 0.9, "b": 0.3, "a": 1.0}
_SCALARS: Final = {int: "int64", float: "double", bool: "bool", str: "string"}


@dataclass(frozen=True, slots=True)
class View:
    """The fields of one message for viewers, without the payload, which is stored in `payload_field`."""

    schema: Schema
    values: Mapping[str, Any]
    payload_field: int = PAYLOAD_FIELD

    @property
    def has_boxes(self) -> bool:
        """Whether these are annotations with boxes."""
        return bool(self.values.get("points"))

    @property
    def fields(self) -> dict[str, str]:
        """Fields with the wire bytes, as metadata of the channel; empty if the view has none."""
        if self.schema == IMAGE_ANNOTATIONS:
            return {}
        return {"header_field": str(HEADER_FIELD), "payload_field": str(self.payload_field)}

    def encode(self, wire: bytes | None = None) -> bytes:
        """Return the bytes of the record without the payload field; `wire` is the header as sent."""
        return encode(self.schema, {**self.values, "header": wire})


def wire_fields(metadata: Mapping[str, str], name: str, declaration: bytes) -> Mapping[str, str]:
    """Return which fields of the records of a channel hold the wire bytes; empty if none do.

    Args:
        metadata: of the channel; it names the fields, unless a program that copied the file dropped it.
        name: of the schema.
        declaration: bytes of the schema; only schemas of this package declare the field `header`.
    """
    if "header_field" in metadata:
        return metadata
    if _HEADER_DECLARATION not in declaration:
        return {}
    return {"header_field": str(HEADER_FIELD), "payload_field": _PAYLOADS.get(name, str(PAYLOAD_FIELD))}


def view(topic: str, header: Header, payload: Payload = b"") -> View:
    """Return the view of a message of `topic`."""
    common = {"timestamp": _timestamp(header.stamp_ns), "frame_id": topics.name_of(topic)}
    match header:
        case CameraFrame(encoding="jpeg"):
            return View(COMPRESSED_IMAGE, common | {"format": "jpeg"}, payload_field=2)
        case CameraFrame():
            size = {"width": header.width, "height": header.height}
            step = header.width * PIXEL_BYTES[header.encoding]
            return View(
                RAW_IMAGE, common | size | {"encoding": header.encoding, "step": step}, payload_field=6
            )
        case AudioBlock():
            kind = {
                "format": "pcm-s16",
                "sample_rate": header.rate_hz,
                "number_of_channels": header.channels,
            }
            if header.format == "s16":
                return View(RAW_AUDIO, common | kind, payload_field=2)
            return View(RAW_AUDIO, common | kind | {"data": as_s16(raw_samples(header, payload)).tobytes()})
        case TextCommand():
            return View(LOG, common | {"level": _INFO, "message": header.text, "name": topic})
        case _:
            values = to_builtins(header) | {"timestamp": common["timestamp"]}
            return View(_of_topic(topics.lookup(topic).message), values)


def annotations(state: FusedState, drawn: Collection[str] = ()) -> dict[str, View]:
    """Return the boxes in a state, by camera topic.

    Args:
        state: with the boxes.
        drawn: cameras on which viewers show boxes of earlier states; if the state has none there, empty
            annotations clear them.
    """
    found = {topic: View(IMAGE_ANNOTATIONS, {"timestamp": _timestamp(state.stamp_ns)}) for topic in drawn}
    for modality in state.modalities.values():
        if any(branch.boxes for branch in modality.branches.values()):
            found[modality.topic] = View(IMAGE_ANNOTATIONS, _boxes(modality, state.stamp_ns))
    return found


def _boxes(modality: ModalityState, end_ns: int) -> dict[str, Any]:
    stamp = _timestamp(end_ns - round((modality.age_ms or 0.0) * 1e6))
    boxes = [box for branch in modality.branches.values() for box in branch.boxes]
    return {
        "timestamp": stamp,
        "points": [
            {
                "timestamp": stamp,
                "type": _LINE_LOOP,
                "points": [
                    {"x": x, "y": y}
                    for x, y in (
                        (box.x, box.y),
                        (box.x + box.width, box.y),
                        (box.x + box.width, box.y + box.height),
                        (box.x, box.y + box.height),
                    )
                ],
                "outline_color": _GREEN,
                "thickness": 2.0,
            }
            for box in boxes
        ],
        "texts": [
            {
                "timestamp": stamp,
                "position": {"x": box.x, "y": box.y},
                "text": f"{box.label} {box.score:.2f}",
                "font_size": 14.0,
                "text_color": _GREEN,
            }
            for box in boxes
        ],
    }


def _timestamp(stamp_ns: int) -> dict[str, int]:
    seconds, nanos = divmod(stamp_ns, SECOND_NS)
    return {"seconds": seconds, "nanos": nanos}


@cache
def _of_topic(message: type[Header]) -> Schema:
    schema = _of_model(message)
    # proto2: in proto3 a missing number reads as 0.
    stamp = Field("timestamp", _TIMESTAMP_FIELD, _TIMESTAMP)
    return Schema(schema.package, schema.name, (*schema.fields, _HEADER, _PAYLOAD, stamp), "proto2")


@cache
def _of_model(model: type[Model]) -> Schema:
    fields = tuple(
        _field(declared.name, number, declared.type, model.__name__)
        for number, declared in enumerate(structs.fields(model), start=1)
    )
    return Schema("perception", model.__name__, fields, "proto2")


def _field(name: str, number: int, annotation: Any, owner: str) -> Field:
    if get_origin(annotation) is Annotated:
        return _field(name, number, get_args(annotation)[0], owner)
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not types.NoneType]
        # Text or number: stored as text.
        return _field(name, number, kinds[0] if len(kinds) == 1 else str, owner)
    if get_origin(annotation) is tuple:
        return Field(name, number, _type(get_args(annotation)[0]), repeated=True)
    if get_origin(annotation) is dict:
        # The wire form of a protobuf map, declared as a message: viewers cannot select from maps.
        value = _field("value", 2, get_args(annotation)[1], owner)
        entry = Schema(
            "perception", f"{owner}{name.title()}Entry", (Field("name", 1, "string"), value), "proto2"
        )
        return Field(name, number, entry, repeated=True)
    return Field(name, number, _type(annotation))


def _type(annotation: Any) -> str | Schema:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "string"
    return _SCALARS.get(annotation) or _of_model(annotation)
