"""Convert messages of Foxglove's published schemas, in protobuf or JSON. No files.

Schemas: https://docs.foxglove.dev/docs/sdk/schemas
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from perception.session.convert import incoming
from perception.session.convert.incoming import Converted, Sound, UnusableError
from perception.session.file import protobuf, schemas
from perception.units import SECOND_NS

_SCHEMAS: Final = {
    schema.full_name: schema
    for schema in (schemas.COMPRESSED_IMAGE, schemas.RAW_IMAGE, schemas.RAW_AUDIO, schemas.LOG)
}
PREFIXES: Final = {
    "foxglove.CompressedImage": "camera",
    "foxglove.RawImage": "camera",
    "foxglove.RawAudio": "microphone",
    "foxglove.Log": "text",
}
"""Topic prefix by schema."""
ENCODINGS: Final = ("protobuf", "json")
_FORMATS: Final = {"pcm-s16": "s16", "pcm-f32": "f32"}


def converter(schema: str, encoding: str) -> Callable[[bytes, int], Converted]:
    """Return a function that converts bytes and time of receipt of a message in this schema and encoding."""
    sound = Sound()
    fields = _SCHEMAS[schema]

    def convert(data: bytes, received_ns: int) -> Converted:
        try:
            values = _from_json(data) if encoding == "json" else protobuf.decode(fields, memoryview(data))
        except ValueError as error:
            raise UnusableError(f"not {encoding}: {error}") from error
        try:
            return _message(schema, values, received_ns, sound)
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise UnusableError(f"not a {schema}: {error}") from error

    return convert


def _message(schema: str, values: Mapping[str, Any], received_ns: int, sound: Sound) -> Converted:
    given_ns = _stamp_ns(values.get("timestamp"))
    stamp_ns = given_ns or received_ns
    if schema == "foxglove.Log":
        return incoming.text(str(values.get("message", "")), stamp_ns)
    data = values.get("data", b"")
    if schema == "foxglove.CompressedImage":
        return incoming.compressed(data, str(values.get("format", "")), stamp_ns)
    if schema == "foxglove.RawImage":
        size = int(values.get("width", 0)), int(values.get("height", 0))
        encoding, step = str(values.get("encoding", "")), int(values.get("step", 0))
        return incoming.raw(np.frombuffer(data, np.uint8), encoding, size, step, stamp_ns)
    kind = _FORMATS.get(str(values.get("format", "")))
    if kind is None:
        raise UnusableError(f"sound of format '{values.get('format', '')}', not pcm-s16")
    rate_hz, channels = int(values.get("sample_rate", 0)), int(values.get("number_of_channels", 0))
    return sound.block(data, kind, rate_hz, channels, given_ns, received_ns)


def _from_json(data: bytes) -> dict[str, Any]:
    decoded = msgspec.json.decode(data, type=dict[str, Any])
    values = {name: value for name, value in decoded.items() if value is not None}
    if isinstance(values.get("data"), str):
        try:
            values["data"] = base64.b64decode(values["data"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"data: {error}") from error
    return values


def _stamp_ns(timestamp: Any) -> int:
    """Return the time of a `Timestamp`, 0 if there is none; JSON names its fields `sec` and `nsec`."""
    if not isinstance(timestamp, Mapping):
        return 0
    seconds = timestamp.get("seconds", timestamp.get("sec", 0))
    nanos = timestamp.get("nanos", timestamp.get("nsec", 0))
    return int(seconds) * SECOND_NS + int(nanos)
