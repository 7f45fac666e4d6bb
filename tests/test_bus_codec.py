"""Messages are equal after encoding and decoding, and no bytes can crash a reader."""

import random
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception import topics
from perception.bus import codec
from perception.bus.schema import golden_vectors
from perception.errors import BusError, MalformedMessageError
from perception.messages import AudioBlock, CameraFrame, ClockTick, Health, Journal, JournalEntry, TextCommand

VECTORS = [[bytes.fromhex(part) for part in vector["parts"]] for vector in golden_vectors()]
STAMPS = st.integers(-(2**62), 2**62)


def frame(**changes: Any) -> CameraFrame:
    return CameraFrame(**{"stamp_ns": 1, "width": 4, "height": 2, "encoding": "bgr8", **changes})


def header(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def refuse(*parts: bytes) -> str:
    with pytest.raises(MalformedMessageError) as error:
        codec.decode(parts, received_ns=0)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- encode and decode ---


@pytest.mark.parametrize("parts", VECTORS, ids=lambda parts: parts[0].decode())
def test_what_is_decoded_encodes_to_the_same_bytes(parts: list[bytes]) -> None:
    message = codec.decode(parts, received_ns=5)
    assert message.received_ns == 5
    again = codec.encode(message.topic, message.header, message.payload)
    assert [bytes(part) for part in again] == parts


@given(text=st.text(max_size=200), stamp_ns=STAMPS, final=st.booleans())
def test_any_text_comes_back_equal(text: str, stamp_ns: int, final: bool) -> None:
    command = TextCommand(stamp_ns=stamp_ns, text=text, final=final)
    assert codec.decode(codec.encode("text/say", command), received_ns=0).header == command


@given(
    samples=st.integers(1, 400),
    channels=st.integers(1, 4),
    kind=st.sampled_from(["s16", "f32"]),
    stamp_ns=STAMPS,
)
def test_any_sound_comes_back_equal(samples: int, channels: int, kind: Any, stamp_ns: int) -> None:
    sound = np.arange(samples * channels).astype({"s16": np.int16, "f32": np.float32}[kind])
    block = AudioBlock(
        stamp_ns=stamp_ns, sample_index=3, samples=samples, rate_hz=16_000, channels=channels, format=kind
    )
    message = codec.decode(
        codec.encode("microphone/a", block, sound.reshape(samples, channels)), received_ns=0
    )
    assert message.header == block
    assert np.array_equal(np.frombuffer(message.payload, sound.dtype), sound)


def test_pixels_are_their_own_part_and_not_copied() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    payload = codec.encode("camera/a", frame(), image)[2]
    image[0, 0] = 7
    assert payload[0] == 7


def test_a_cut_out_of_an_image_travels_as_it_looks() -> None:
    image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    cut = image[::2, ::2]
    assert bytes(codec.encode("camera/a", frame(), cut)[2]) == cut.tobytes()


def test_numbers_and_texts_of_other_libraries_travel_as_what_they_are() -> None:
    version = type("Version", (str,), {})("2.1")
    numpy_header = Health(stamp_ns=1, node="n", device={"rate_hz": np.float64(0.5), "version": version})
    plain_header = Health(stamp_ns=1, node="n", device={"rate_hz": 0.5, "version": "2.1"})
    assert codec.decode(codec.encode("health/n", numpy_header), received_ns=0).header == plain_header
    assert codec.encode("health/n", numpy_header) == codec.encode("health/n", plain_header)


def test_an_old_reader_takes_a_newer_writer() -> None:
    data = header(v=2, stamp_ns=4, seq=1, novelty={"deep": [1, 2]})
    assert codec.decode([b"clock/a", data], received_ns=0).header == ClockTick(v=2, stamp_ns=4, seq=1)


@pytest.mark.parametrize(
    "novelty", [b"raw", msgpack.Timestamp(1), "y" * 70_000, [0] * 70_000, {1: 1}, None], ids=type
)
def test_what_a_reader_does_not_know_it_passes_over_unread(novelty: Any) -> None:
    data = header(stamp_ns=4, novelty=novelty, seq=1)
    assert codec.decode([b"clock/a", data], received_ns=0).header == ClockTick(stamp_ns=4, seq=1)


# --- errors of a writer ---


@pytest.mark.parametrize(
    ("topic", "message", "payload", "reason"),
    [
        ("text/say", frame(), bytes(24), "text/say carries TextCommand, not CameraFrame"),
        ("camera/a", frame(), bytes(23), "payload of 23 bytes; the header requires 24"),
        ("camera/a", frame(encoding="mono8"), bytes(24), "the header requires 8"),
        ("camera/a", frame(encoding="jpeg"), b"", "empty jpeg frame"),
        ("text/say", TextCommand(stamp_ns=0, text="x"), b"1", "at most 0 are allowed"),
        ("clock/a", ClockTick(stamp_ns=2**70), b"", "header cannot be packed"),
        ("camera/a", frame(), "pixels", "payload is not a plain buffer"),
    ],
)
def test_a_message_that_fits_no_topic_is_not_sent(
    topic: str, message: Any, payload: Any, reason: str
) -> None:
    with pytest.raises(MalformedMessageError, match=reason):
        codec.encode(topic, message, payload)


def test_a_header_larger_than_the_bound_is_not_sent() -> None:
    entries = tuple(JournalEntry(kind="input", topic="camera/" + "x" * 50, seq=n) for n in range(4000))
    with pytest.raises(MalformedMessageError, match="at most 262144 are allowed"):
        codec.encode("journal/fusion", Journal(stamp_ns=0, entries=entries))


def test_an_unknown_topic_is_a_bus_error() -> None:
    with pytest.raises(BusError, match="'smell/nose' is not a topic"):
        codec.encode("smell/nose", ClockTick(stamp_ns=0))


# --- what a reader refuses ---


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "2 or 3 parts, not 0"),
        ([b"clock/a"], "2 or 3 parts, not 1"),
        ([b"clock/a", header(stamp_ns=1), b"", b""], "2 or 3 parts, not 4"),
        ([b"clock/\xff", header(stamp_ns=1)], "not UTF-8"),
        ([b"c" * 65, header(stamp_ns=1)], "topic of over 64 bytes"),
        ([b"clock/../a", header(stamp_ns=1)], "is not a topic"),
        ([b"clock/a", b""], "not msgpack within limits"),
        ([b"clock/a", header(stamp_ns=1) + b"\x00"], "not msgpack within limits"),
        ([b"clock/a", b"\x82\xa1x" + b"\x91" * 5000 + b"\x01"], "not msgpack within limits"),
        ([b"clock/a", header(stamp_ns=1)[:-1] + b"\xc1"], "not msgpack within limits"),
        ([b"clock/a", b"\x82\xa8stamp_ns\x01\xa6source\xa1\xff"], "not msgpack within limits"),
        ([b"clock/a", header(stamp_ns=msgpack.Timestamp(1))], "Expected `int`, got `ext`"),
        ([b"clock/a", header(stamp_ns=1, source=b"raw")], "Expected `str`, got `bytes`"),
        ([b"clock/a", msgpack.packb({1: 1})], "Expected `str`"),
        ([b"clock/a", bytes(topics.MAX_HEADER_BYTES + 1)], "at most 262144 are allowed"),
        ([b"clock/a", msgpack.packb([1])], "Expected `object`, got `array`"),
        ([b"clock/a", header()], "missing required field `stamp_ns`"),
        ([b"clock/a", header(stamp_ns="1")], "Expected `int`, got `str` - at `$.stamp_ns`"),
        ([b"clock/a", header(stamp_ns=1.0)], "Expected `int`, got `float` - at `$.stamp_ns`"),
        ([b"clock/a", header(stamp_ns=True)], "Expected `int`, got `bool` - at `$.stamp_ns`"),
        ([b"clock/a", header(stamp_ns=1, seq=-1)], "Expected `int` >= 0 - at `$.seq`"),
        ([b"clock/a", header(stamp_ns=1, seq=2**63)], "at `$.seq`"),
        ([b"text/a", header(stamp_ns=1, text="x", final=1)], "Expected `bool`, got `int` - at `$.final`"),
        ([b"text/a", header(stamp_ns=1, text="x" * 4097)], "at `$.text`"),
        ([b"health/a", header(stamp_ns=1, node="n", device={"t": float("inf")})], "device"),
        ([b"camera/a", header(stamp_ns=1, width=2, height=2, encoding="z" * 70_000)], "zz…"),
        ([b"journal/a", b"\x82\xa8stamp_ns\x01\xa7entries\xdd\xff\xff\xff\xff"], "of length <= 65536"),
        ([b"health/a", header(stamp_ns=1, node="n", device={"t": float("nan")})], "device"),
        ([b"clock/a", header(stamp_ns=1), b"x"], "payload of 1 bytes; at most 0"),
        ([b"camera/a", header(stamp_ns=1, width=2, height=2, encoding="bgr8"), bytes(11)], "requires 12"),
        ([b"camera/a", header(stamp_ns=1, width=2, height=2, encoding="jpeg")], "empty jpeg frame"),
        ([b"camera/a", header(stamp_ns=1, width=2, height=2, encoding="gif"), b"GIF"], "encoding"),
        ([b"camera/a", header(stamp_ns=1, width=10**9, height=2, encoding="bgr8"), b"x"], "width"),
        (
            [b"microphone/a", header(stamp_ns=1, sample_index=0, samples=2, rate_hz=8000), b"x"],
            "header requires 4",
        ),
    ],
)
def test_a_malformed_message_is_refused_in_one_clear_line(parts: list[bytes], reason: str) -> None:
    assert reason in refuse(*parts)


def attempt(parts: list[bytes]) -> None:
    with suppress(MalformedMessageError):
        codec.decode(parts, received_ns=0)


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_random_parts_never_crash(parts: list[bytes]) -> None:
    attempt(parts)


@given(st.sampled_from(VECTORS), st.binary(max_size=300), st.binary(max_size=20))
def test_random_headers_and_payloads_never_crash(vector: list[bytes], data: bytes, payload: bytes) -> None:
    attempt([vector[0], data, payload])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.sampled_from(VECTORS), st.data())
def test_fields_of_any_type_never_crash(vector: list[bytes], data: st.DataObject) -> None:
    fields = msgpack.unpackb(vector[1])
    name = data.draw(st.sampled_from(sorted(fields)))
    attempt([vector[0], msgpack.packb({**fields, name: data.draw(JSON)}), *vector[2:]])


def test_flipped_bits_never_crash() -> None:
    rng = random.Random(5)
    for _ in range(20_000):
        parts = [bytearray(part) for part in rng.choice(VECTORS)]
        for _ in range(rng.randint(1, 4)):
            part = rng.choice(parts)
            part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
        attempt([bytes(part) for part in parts])


def with_nan(value: Any) -> list[Any]:
    """Return `value` once for each fraction in it, with that one replaced by NaN."""
    if isinstance(value, float):
        return [float("nan")]
    if isinstance(value, dict):
        return [{**value, key: wrong} for key, item in value.items() for wrong in with_nan(item)]
    if isinstance(value, list):
        return [
            [*value[:at], wrong, *value[at + 1 :]]
            for at, item in enumerate(value)
            for wrong in with_nan(item)
        ]
    return []


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector[0].decode())
def test_no_number_of_any_message_may_be_none(vector: list[bytes]) -> None:
    topic, packed, *payload = vector
    for wrong in with_nan(msgpack.unpackb(packed)):
        with pytest.raises(MalformedMessageError):
            codec.decode([topic, msgpack.packb(wrong), *payload], received_ns=0)
