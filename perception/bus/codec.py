"""Messages to bytes and back: `[topic, msgpack map, payload?]`. Whatever the bytes, decoding is safe."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgpack
from pydantic import ValidationError
from typing_extensions import Buffer

from perception import topics
from perception.errors import BusError, MalformedMessageError
from perception.messages import (
    AudioBlock,
    CameraFrame,
    Header,
    Message,
    Payload,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Data: TypeAlias = Buffer | npt.NDArray[Any]
    """Bytes or an array; numpy itself is not imported here."""

MAX_PART_BYTES: Final = max(row.max_payload_bytes for row in topics.TOPICS.values())
"""No part of any message is larger; sockets refuse to buffer more."""

_LIMITS: Final[dict[str, Any]] = {
    "max_str_len": 64 * 1024,
    "max_array_len": 64 * 1024,
    "max_map_len": 4 * 1024,
    "max_bin_len": 0,
    "max_ext_len": 0,
}
_FIELDS: Final = attrgetter("__dict__")
"""A model as msgpack gets it: half the time of `model_dump`, which copies everything first."""
_PIXEL_BYTES: Final = {"bgr8": 3, "mono8": 1}
_SAMPLE_BYTES: Final = {"s16": 2, "f32": 4}


def encode(
    topic: str, header: Header, payload: "Data" = b"", stamp: Mapping[str, int | str] | None = None
) -> list[bytes | memoryview]:
    """Return the parts of a message on the wire.

    Args:
        topic: such as `camera/front`.
        header: of the topic's message type.
        payload: bytes or a C-contiguous array; it is not copied, so it must not change until it is sent.
        stamp: fields that replace those of the header.

    Raises:
        BusError: `topic` is not a topic.
        MalformedMessageError: header or payload is not what the topic carries.
    """
    row = topics.lookup(topic)
    if not isinstance(header, row.message):
        raise MalformedMessageError(f"{topic} carries {row.message.__name__}, not {type(header).__name__}")
    data = _flat(topic, payload)
    _check_payload(topic, row, header, len(data))
    try:
        packed: bytes = msgpack.packb({**_FIELDS(header), **(stamp or {})}, default=_FIELDS)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise MalformedMessageError(f"{topic}: header cannot be packed: {error}") from error
    if len(packed) > topics.MAX_HEADER_BYTES:
        raise MalformedMessageError(
            f"{topic}: header of {len(packed)} bytes; at most {topics.MAX_HEADER_BYTES} are allowed"
        )
    parts: list[bytes | memoryview] = [topic.encode(), packed]
    return [*parts, data] if len(data) else parts


def decode(parts: Sequence[Payload], *, received_ns: int) -> Message[Header]:
    """Return the message in `parts`; MalformedMessageError says in one line what is wrong with them."""
    if len(parts) not in (2, 3):
        raise MalformedMessageError(f"a message has 2 or 3 parts, not {len(parts)}")
    topic, row = _topic(bytes(parts[0][: topics.MAX_TOPIC_LENGTH + 1]))
    header = _header(topic, row, parts[1])
    payload = parts[2] if len(parts) == 3 else b""
    _check_payload(topic, row, header, len(payload))
    return Message(topic, header, payload, received_ns, wire=bytes(parts[1]))


def describe(error: ValidationError) -> str:
    """Return one line that names every wrong field."""
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'header'}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_context=False, include_input=False)[:4]
    )


@lru_cache(maxsize=256)
def _topic(part: bytes) -> tuple[str, topics.Topic]:
    if len(part) > topics.MAX_TOPIC_LENGTH:
        raise MalformedMessageError(f"a topic of over {topics.MAX_TOPIC_LENGTH} bytes")
    try:
        topic = part.decode()
        return topic, topics.lookup(topic)
    except UnicodeDecodeError as error:
        raise MalformedMessageError("the topic is not UTF-8") from error
    except BusError as error:
        raise MalformedMessageError(str(error)) from error


def _header(topic: str, row: topics.Topic, part: Payload) -> Header:
    if len(part) > topics.MAX_HEADER_BYTES:
        raise MalformedMessageError(
            f"{topic}: header of {len(part)} bytes; at most {topics.MAX_HEADER_BYTES} are allowed"
        )
    try:
        # Tuples because strict validation takes nothing else for the tuples of a message.
        data = msgpack.unpackb(part, use_list=False, strict_map_key=True, **_LIMITS)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise MalformedMessageError(f"{topic}: header is not msgpack within limits: {reason}") from error
    try:
        return row.message.__pydantic_validator__.validate_python(data, strict=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise MalformedMessageError(f"{topic}: {describe(error)}") from error


def _check_payload(topic: str, row: topics.Topic, header: Header, size: int) -> None:
    if size > row.max_payload_bytes:
        raise MalformedMessageError(
            f"{topic}: payload of {size} bytes; at most {row.max_payload_bytes} are allowed"
        )
    if isinstance(header, CameraFrame):
        if not size:
            raise MalformedMessageError(f"{topic}: empty {header.encoding} frame")
        if header.encoding == "jpeg":
            return
        expected = header.width * header.height * _PIXEL_BYTES[header.encoding]
    elif isinstance(header, AudioBlock):
        expected = header.samples * header.channels * _SAMPLE_BYTES[header.format]
    else:
        return
    if size != expected:
        raise MalformedMessageError(f"{topic}: payload of {size} bytes where the header says {expected}")


def _flat(topic: str, payload: Any) -> memoryview:
    try:
        view = memoryview(payload)
        if not view.nbytes:
            return memoryview(b"")
        return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    except (TypeError, ValueError, BufferError, NotImplementedError) as error:
        raise MalformedMessageError(f"{topic}: payload is no plain buffer: {error}") from error
