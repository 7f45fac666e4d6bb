"""Messages to bytes and back: `[topic, msgpack map, payload?]`. Decoding is safe for any bytes."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from typing_extensions import Buffer

from perception import topics
from perception.errors import BusError, MalformedMessageError
from perception.messages import (
    PIXEL_BYTES,
    SAMPLE_BYTES,
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
"""Size limit of every part of a message; sockets refuse larger ones."""

_JPEG_BYTES_PER_PIXEL: Final = 4
"""More than noise at the highest quality takes."""
_JPEG_EXTRA_BYTES: Final = 1 << 20
"""Tables, a thumbnail and other data of the camera."""
_MAX_REASON_LENGTH: Final = 120


def _plain(value: object) -> object:
    """Return a number or text of a subclass, such as NumPy's float64, as the plain Python type."""
    for kind in (str, float, int):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a header cannot contain {type(value).__name__}")


_pack: Final = msgspec.msgpack.Encoder(enc_hook=_plain).encode


class Coder:
    """Validates, encodes and decodes the messages of one topic."""

    def __init__(self, topic: str) -> None:
        """Create the coder of a topic such as `camera/front`; BusError if it is not a topic."""
        row = topics.lookup(topic)
        self.topic = topic
        self.name: Final = topic.encode()
        """The topic in bytes, as on the wire."""
        self._kind = row.message
        self._unpack = msgspec.msgpack.Decoder(row.message).decode
        self._most_bytes = row.max_payload_bytes
        self._check_payload = _PAYLOAD_CHECKS.get(row.message, _accept_any)

    def pack(self, header: Header, payload_bytes: int) -> bytes:
        """Return the encoded header; MalformedMessageError if it does not fit the topic."""
        if not isinstance(header, self._kind):
            kind = type(header).__name__
            raise MalformedMessageError(f"{self.topic} carries {self._kind.__name__}, not {kind}")
        if payload_bytes > self._most_bytes or self._check_payload(header, payload_bytes) is not None:
            raise self._payload_error(header, payload_bytes)
        try:
            packed = _pack(header)
        except (ValueError, TypeError, OverflowError) as error:
            raise MalformedMessageError(f"{self.topic}: header cannot be packed: {error}") from error
        if len(packed) > topics.MAX_HEADER_BYTES:
            raise self._too_long(packed)
        return packed

    def unpack(self, packed: bytes, payload: Payload, received_ns: int) -> Message[Header]:
        """Return the message; MalformedMessageError with a one-line reason if it is invalid."""
        if len(packed) > topics.MAX_HEADER_BYTES:
            raise self._too_long(packed)
        try:
            header = self._unpack(packed)
        except msgspec.ValidationError as error:
            raise MalformedMessageError(f"{self.topic}: {_shortened(error)}") from error
        except (ValueError, RecursionError) as error:
            raise MalformedMessageError(
                f"{self.topic}: header is not msgpack within limits: {_shortened(error)}"
            ) from error
        size = len(payload)
        if size > self._most_bytes or self._check_payload(header, size) is not None:
            raise self._payload_error(header, size)
        return Message(self.topic, header, payload, received_ns, (header, packed))

    def _payload_error(self, header: Header, size: int) -> MalformedMessageError:
        most = self._most_bytes
        reason = (
            f"payload of {size} bytes; at most {most} are allowed"
            if size > most
            else self._check_payload(header, size)
        )
        return MalformedMessageError(f"{self.topic}: {reason}")

    def _too_long(self, packed: bytes) -> MalformedMessageError:
        size, most = len(packed), topics.MAX_HEADER_BYTES
        return MalformedMessageError(f"{self.topic}: header of {size} bytes; at most {most} are allowed")


def encode(topic: str, header: Header, payload: "Data" = b"") -> list[bytes | memoryview]:
    """Return the parts of a message on the wire.

    Args:
        topic: such as `camera/front`.
        header: of the topic's message type.
        payload: bytes or array; a C-contiguous one is not copied and must not change until it is sent.

    Raises:
        BusError: `topic` is not a topic.
        MalformedMessageError: header or payload does not fit the topic.
    """
    coder, data = coder_of(topic), flat(topic, payload)
    parts: list[bytes | memoryview] = [coder.name, coder.pack(header, len(data))]
    return [*parts, data] if len(data) else parts


def decode(parts: Sequence[Payload], *, received_ns: int) -> Message[Header]:
    """Return the message in `parts`; MalformedMessageError with a one-line reason if they are invalid."""
    coder, packed, payload = split(parts)
    return coder.unpack(packed, payload, received_ns)


def split(parts: Sequence[Payload]) -> tuple[Coder, bytes, Payload]:
    """Return (coder of the topic, header, payload) of a message; MalformedMessageError if it is invalid."""
    if len(parts) not in (2, 3):
        raise MalformedMessageError(f"a message has 2 or 3 parts, not {len(parts)}")
    coder = coder_named(bytes(parts[0][: topics.MAX_TOPIC_LENGTH + 1]))
    return coder, bytes(parts[1]), parts[2] if len(parts) == 3 else b""


coder_of: Final = lru_cache(maxsize=256)(Coder)
"""Return the coder of a topic, created once; BusError if it is not a topic."""


@lru_cache(maxsize=256)
def coder_named(name: bytes) -> Coder:
    """Return the coder of a received topic; MalformedMessageError if it is not a topic."""
    if len(name) > topics.MAX_TOPIC_LENGTH:
        raise MalformedMessageError(f"a topic of over {topics.MAX_TOPIC_LENGTH} bytes")
    try:
        return coder_of(name.decode())
    except UnicodeDecodeError as error:
        raise MalformedMessageError("the topic is not UTF-8") from error
    except BusError as error:
        raise MalformedMessageError(str(error)) from error


def flat(topic: str, payload: Any) -> memoryview:
    """Return a payload as contiguous bytes; MalformedMessageError if it is not a buffer."""
    try:
        view = memoryview(payload)
        if not view.nbytes:
            return memoryview(b"")
        return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    except (TypeError, ValueError, BufferError, NotImplementedError) as error:
        raise MalformedMessageError(f"{topic}: payload is not a plain buffer: {error}") from error


def _shortened(error: Exception) -> str:
    text = str(error)  # it may quote received bytes
    return text if len(text) <= _MAX_REASON_LENGTH else f"{text[:_MAX_REASON_LENGTH]}…"


def _accept_any(_: Any, __: int) -> None:
    """Accept any payload, for messages without a rule."""


def _check_frame(header: Any, size: int) -> str | None:
    if not size:
        return f"empty {header.encoding} frame"
    if header.encoding == "jpeg":
        most = _JPEG_BYTES_PER_PIXEL * header.width * header.height + _JPEG_EXTRA_BYTES
        if size <= most:
            return None
        return f"JPEG of {size} bytes; {header.width} x {header.height} pixels take at most {most}"
    expected = header.width * header.height * PIXEL_BYTES[header.encoding]
    return None if size == expected else _size_mismatch(size, expected)


def _check_block(header: Any, size: int) -> str | None:
    expected = header.samples * header.channels * SAMPLE_BYTES[header.format]
    return None if size == expected else _size_mismatch(size, expected)


def _size_mismatch(size: int, expected: int) -> str:
    return f"payload of {size} bytes; the header requires {expected}"


_PAYLOAD_CHECKS: Final[dict[type[Header], Callable[[Any, int], str | None]]] = {
    CameraFrame: _check_frame,
    AudioBlock: _check_block,
}
"""By message type: returns why a payload's size does not fit its header, None if it does."""
