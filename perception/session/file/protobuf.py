"""The parts of the protobuf wire format that recordings need: declare, encode, describe, decode.

Implemented here because the library copies a payload twice when it writes and twice when it reads.
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_MAX_VARINT_BYTES: Final = 10

# Numbers of FieldDescriptorProto.Type, descriptor.proto.
_TYPES: Final = {
    "double": 1,
    "int64": 3,
    "int32": 5,
    "fixed32": 7,
    "bool": 8,
    "string": 9,
    "message": 11,
    "bytes": 12,
    "enum": 14,
}
_FIXED: Final = {"double": "<d", "fixed32": "<I"}
_WIRE: Final = {
    "double": _FIXED64,
    "fixed32": _FIXED32,
    "string": _LENGTH,
    "message": _LENGTH,
    "bytes": _LENGTH,
}


@dataclass(frozen=True)
class Enum:
    """An enumeration, declared inside the message that uses it."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """One field; `type` is the name of a scalar type, an enumeration or a message."""

    name: str
    number: int
    type: "str | Enum | Schema"
    repeated: bool = False


@dataclass(frozen=True, eq=False)
class Schema:
    """One message type; messages of the same package are described in one file.

    Compared by identity, since each is created once: comparing all fields would cost time at every message.
    """

    package: str
    name: str
    fields: tuple[Field, ...]
    syntax: Literal["proto2", "proto3"] = "proto3"

    @property
    def full_name(self) -> str:
        """Name under which viewers look it up."""
        return f"{self.package}.{self.name}"


def declared(package: str, text: str, **known: Enum | Schema) -> dict[str, Schema]:
    """Return the messages that a text in protobuf's language declares, by name.

    Args:
        package: of all of them.
        text: messages of plain and repeated fields, each after those that it names.
        known: other types that it names.
    """
    messages: dict[str, Schema] = {}
    for name, body in re.findall(r"message (\w+) {(.*?)}", text, re.DOTALL):
        types: dict[str, Enum | Schema] = {**known, **messages}
        found = re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body)
        made = (Field(each, int(number), types.get(of, of), bool(many)) for many, of, each, number in found)
        messages[name] = Schema(package, name, tuple(made))
    return messages


def encode(schema: Schema, values: Mapping[str, Any]) -> bytes:
    """Return `values` as a message of `schema`.

    Values that are None or missing are left out; a mapping for a repeated field becomes entries `name`,
    `value`.
    """
    out = bytearray()
    for field in schema.fields:
        value = values.get(field.name)
        if value is None:
            continue
        if not field.repeated:
            _append(out, field, value)
            continue
        entries = isinstance(value, Mapping)
        for item in value.items() if entries else value:
            _append(out, field, {"name": item[0], "value": item[1]} if entries else item)
    return bytes(out)


def tag(number: int, size: int) -> bytes:
    """Return the bytes that precede the `size` bytes of a string, bytes or message field."""
    return _varint(number << 3 | _LENGTH) + _varint(size)


def fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and bytes of every length-delimited field; ValueError if the data is invalid."""
    for number, kind, value in _all_fields(data):
        if kind == _LENGTH and isinstance(value, memoryview):
            yield number, value


def decode(schema: Schema, data: memoryview) -> dict[str, Any]:
    """Return the scalar fields and messages of `data` that `schema` names; ValueError if it is invalid.

    Of a repeated field only the last value is returned.
    """
    named = {field.number: field for field in schema.fields}
    found: dict[str, Any] = {}
    for number, kind, value in _all_fields(data):
        field = named.get(number)
        if field is not None and kind == _WIRE.get(_kind(field), _VARINT):
            found[field.name] = _decoded(field, value)
    return found


def _decoded(field: Field, value: int | memoryview) -> Any:
    if isinstance(value, int):
        return value - (1 << 64) if value >> 63 else value
    kind = _kind(field)
    if isinstance(field.type, Schema):
        return decode(field.type, value)
    if kind == "string":
        return bytes(value).decode("utf-8", "replace")
    return bytes(value) if kind == "bytes" else struct.unpack(_FIXED[kind], value)[0]


def _all_fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield number, wire type and value of every field: a number, or its bytes."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _read_varint(data, position)
            yield key >> 3, kind, number
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _LENGTH:
            size, position = _read_varint(data, position)
        if size is None or size > len(data) - position:
            raise ValueError("not a protobuf message")
        yield key >> 3, kind, data[position : position + size]
        position += size


@cache
def describe(schema: Schema) -> bytes:
    """Return `schema` and all it refers to as a serialised FileDescriptorSet, as MCAP requires."""
    files: dict[str, list[Schema]] = {}
    _collect(schema, files)
    described = [
        {
            "name": _file(package),
            "package": package,
            # Packages are collected in order of reference: each refers to later ones only.
            "dependency": [_file(other) for other in list(files)[place + 1 :]],
            "message_type": [_descriptor(one) for one in schemas],
            "syntax": schemas[0].syntax,
        }
        for place, (package, schemas) in enumerate(files.items())
    ]
    return encode(_FILE_SET, {"file": described[::-1]})


def _append(out: bytearray, field: Field, value: Any) -> None:
    kind = _kind(field)
    out += _varint(field.number << 3 | _WIRE.get(kind, _VARINT))
    if kind == "double":
        out += struct.pack("<d", value)
    elif kind == "fixed32":
        out += struct.pack("<I", value)
    elif _WIRE.get(kind) == _LENGTH:
        data = _bytes(field, value)
        out += _varint(len(data))
        out += data
    else:
        out += _varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def _bytes(field: Field, value: Any) -> bytes:
    if isinstance(field.type, Schema):
        return encode(field.type, value)
    return value if isinstance(value, bytes) else str(value).encode()


def _kind(field: Field) -> str:
    if isinstance(field.type, str):
        return field.type
    return "message" if isinstance(field.type, Schema) else "enum"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError("not a protobuf message")


def _collect(schema: Schema, files: dict[str, list[Schema]]) -> None:
    if schema not in files.setdefault(schema.package, []):
        files[schema.package].append(schema)
        for field in schema.fields:
            if isinstance(field.type, Schema):
                _collect(field.type, files)


def _file(package: str) -> str:
    return f"{package.replace('.', '/')}.proto"


def _descriptor(schema: Schema) -> dict[str, Any]:
    enums = {field.type for field in schema.fields if isinstance(field.type, Enum)}
    return {
        "name": schema.name,
        "field": [_field_descriptor(schema, field) for field in schema.fields],
        "enum_type": [
            {
                "name": enum.name,
                "value": [{"name": name, "number": number} for number, name in enumerate(enum.values)],
            }
            for enum in enums
        ],
    }


def _field_descriptor(schema: Schema, field: Field) -> dict[str, Any]:
    type_name = None
    if isinstance(field.type, Schema):
        type_name = f".{field.type.full_name}"
    elif isinstance(field.type, Enum):
        type_name = f".{schema.full_name}.{field.type.name}"
    return {
        "name": field.name,
        "number": field.number,
        "label": 3 if field.repeated else 1,
        "type": _TYPES[_kind(field)],
        "type_name": type_name,
    }


_DESCRIPTOR: Final = declared(
    "google.protobuf",
    """
    message EnumValueDescriptorProto { string name = 1; int32 number = 2; }
    message EnumDescriptorProto { string name = 1; repeated EnumValueDescriptorProto value = 2; }
    message FieldDescriptorProto {
      string name = 1; int32 number = 3; int32 label = 4; int32 type = 5; string type_name = 6;
    }
    message DescriptorProto {
      string name = 1; repeated FieldDescriptorProto field = 2; repeated EnumDescriptorProto enum_type = 4;
    }
    message FileDescriptorProto {
      string name = 1; string package = 2; repeated string dependency = 3;
      repeated DescriptorProto message_type = 4; string syntax = 12;
    }
    message FileDescriptorSet { repeated FileDescriptorProto file = 1; }
    """,
)
"""The part of descriptor.proto that the functions above fill."""
_FILE_SET: Final = _DESCRIPTOR["FileDescriptorSet"]
