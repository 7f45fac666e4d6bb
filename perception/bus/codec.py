"""Messages to bytes and back: `[topic, msgpack map, payload?]`. Whatever the bytes, decoding is safe."""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
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

_MAX_REASON: Final = 120
_PIXEL_BYTES: Final = {"bgr8": 3, "mono8": 1}
_SAMPLE_BYTES: Final = {"s16": 2, "f32": 4}


def _plain(value: object) -> object:
    """Return a number or text of a type of its own, such as NumPy's float64, as it is on the wire."""
    for kind in (str, float, int):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} has no place in a header")


_pack: Final = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def encode(topic: str, header: Header, payload: "Data" = b"") -> list[bytes | memoryview]:
    """Return the parts of a message on the wire.

    Args:
        topic: such as `camera/front`.
        header: of the topic's message type.
        payload: bytes or a C-contiguous array; it is not copied, so it must not change until it is sent.

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
        packed = _pack(header)
    except (ValueError, TypeError, OverflowError) as error:
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
    topic, row, decoder = _topic(bytes(parts[0][: topics.MAX_TOPIC_LENGTH + 1]))
    header = _header(topic, decoder, parts[1])
    payload = parts[2] if len(parts) == 3 else b""
    _check_payload(topic, row, header, len(payload))
    return Message(topic, header, payload, received_ns, wire=bytes(parts[1]))


@lru_cache(maxsize=256)
def _topic(part: bytes) -> tuple[str, topics.Topic, "msgspec.msgpack.Decoder[Header]"]:
    if len(part) > topics.MAX_TOPIC_LENGTH:
        raise MalformedMessageError(f"a topic of over {topics.MAX_TOPIC_LENGTH} bytes")
    try:
        topic = part.decode()
        row = topics.lookup(topic)
        return topic, row, _decoder(row.message)
    except UnicodeDecodeError as error:
        raise MalformedMessageError("the topic is not UTF-8") from error
    except BusError as error:
        raise MalformedMessageError(str(error)) from error


@cache
def _decoder(message: type[Header]) -> "msgspec.msgpack.Decoder[Header]":
    return msgspec.msgpack.Decoder(message)


def _header(topic: str, decoder: "msgspec.msgpack.Decoder[Header]", part: Payload) -> Header:
    if len(part) > topics.MAX_HEADER_BYTES:
        raise MalformedMessageError(
            f"{topic}: header of {len(part)} bytes; at most {topics.MAX_HEADER_BYTES} are allowed"
        )
    try:
        return decoder.decode(part)
    except msgspec.ValidationError as error:
        raise MalformedMessageError(f"{topic}: {_brief(error)}") from error
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(
            f"{topic}: header is not msgpack within limits: {_brief(error)}"
        ) from error


def _brief(error: Exception) -> str:
    text = str(error)  # it may quote what came
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"


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
