"""Every message on the bus, declared once, its unit beside each field.

The lowest layer: plain data, no I/O. The wire form is `[topic, header, payload]`, the header a small
msgpack map of these models, pixels and samples the payload.
"""

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, dataclass_transform, get_args

import msgspec
from msgspec import Meta, structs

from perception.units import SECOND_NS

SCHEMA_VERSION: Final = 1

ItemT = TypeVar("ItemT")
ModelT = TypeVar("ModelT", bound="Model")
Presence = Literal["present", "held", "absent"]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Neither NaN nor infinite."""
Many = Annotated[tuple[ItemT, ...], Meta(max_length=1 << 16)]
"""Room for as many as a writer claims is made before they are read: the bound is for the reader's memory."""


def measured(description: str) -> Meta:
    """Field that differs between two runs that conclude the same: wall time, or who ran."""
    return Meta(description=description, extra_json_schema={"measured": True})


def is_measured(field: structs.FieldInfo) -> bool:
    """Return whether a field was declared as `measured`."""
    notes = (note.extra_json_schema or {} for note in get_args(field.type) if isinstance(note, Meta))
    return any(note.get("measured", False) for note in notes)


class _Declaration(msgspec.StructMeta):
    """Fields go by name in every class; a struct's own `kw_only` ends with the class that says it."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(cls, name, bases, namespace, kw_only=True, **options)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Model(msgspec.Struct, metaclass=_Declaration, frozen=True, gc=False):
    """Frozen; unknown keys are passed over, so an old reader takes a newer writer.

    What comes from outside is checked where it is read, by the codec or by `checked`, not by constructors.
    """


def checked(kind: type[ModelT], fields: Mapping[str, Any]) -> ModelT:
    """Return a message of values from outside; ValueError says in one line why they cannot travel."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=kind)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def duration_ns(samples: int, rate_hz: int) -> int:
    """Return how long so many samples last, in ns, rounded."""
    return (samples * SECOND_NS + rate_hz // 2) // rate_hz


class Header(Model):
    """What every message carries. The publisher fills `seq`, `sent_ns` and `source`."""

    v: Annotated[int, Meta(ge=1, description="schema version")] = SCHEMA_VERSION
    seq: Annotated[Count, Meta(description="counts up per publisher and topic; a gap is a loss")] = 0
    stamp_ns: Annotated[int, Meta(description="when it happened, UNIX nanoseconds that never step")]
    sent_ns: Annotated[int, measured("when it was published, same clock")] = 0
    source: Annotated[str, measured("publisher and its incarnation: name#id")] = ""


class CameraFrame(Header):
    """One frame; the payload holds its pixels (rows top-down) or its JPEG."""

    width: Annotated[int, Meta(ge=1, le=16384, description="pixels")]
    height: Annotated[int, Meta(ge=1, le=16384, description="pixels")]
    encoding: Annotated[Literal["bgr8", "mono8", "jpeg"], Meta(description="payload format")]
    exposure_ns: Annotated[Count | None, Meta(description="exposure time if known")] = None


MAX_BLOCK_NS: Final = SECOND_NS
"""Longest block of sound that `perception.publish` sends, in ns: a fusion waits no longer for its end."""


class AudioBlock(Header):
    """Consecutive samples; `stamp_ns` is the moment of the first. The payload interleaves channels."""

    sample_index: Annotated[Count, Meta(description="first sample, counted since the device opened")]
    samples: Annotated[int, Meta(ge=1, le=1 << 20, description="samples per channel")]
    rate_hz: Annotated[int, Meta(ge=1000, le=768_000, description="nominal sample rate")]
    channels: Annotated[int, Meta(ge=1, le=64)] = 1
    format: Annotated[Literal["s16", "f32"], Meta(description="little-endian samples")] = "s16"
    gap: Annotated[Count, Meta(description="samples lost just before this block")] = 0


def reached_ns(header: Header) -> int:
    """Return the event time that a message reaches; sound does so up to the end of its last sample."""
    if isinstance(header, AudioBlock):
        return header.stamp_ns + duration_ns(header.samples, header.rate_hz)
    return header.stamp_ns


class TextCommand(Header):
    """One line of text, typed or recognised."""

    text: Annotated[str, Meta(max_length=4096)]
    language: Annotated[str, Meta(description="BCP 47 tag, empty if unknown")] = ""
    final: Annotated[bool, Meta(description="false while a recogniser may still change it")] = True


class Label(Header):
    """Ground truth or annotation over `[start_ns, end_ns)`; `stamp_ns` equals `start_ns`."""

    start_ns: int
    end_ns: int
    name: Annotated[str, Meta(description="class")]
    track: Annotated[str, Meta(description="several tracks may overlap")] = "truth"


class Box(Model):
    """Axis-aligned rectangle in pixels of the source frame."""

    x: Number
    y: Number
    width: Number
    height: Number
    label: str = ""
    score: Number = 1.0


class BranchState(Model):
    """What one encoder said on its own."""

    labels: Many[str] = ()
    scores: Annotated[Many[Number], Meta(description="one per label")] = ()
    boxes: Many[Box] = ()


class ModalityState(Model):
    """One input of the fusion, as it was in this window."""

    topic: str
    presence: Presence
    reason: Annotated[str, Meta(description="why it is not simply present, empty if it is")] = ""
    age_ms: Annotated[Number | None, Meta(description="window end minus newest data used")] = None
    seqs: Annotated[tuple[int, int] | None, Meta(description="first and last seq used")] = None
    branches: Annotated[dict[str, BranchState], Meta(description="by encoder")] = {}


class Fused(Model):
    """The fused conclusion."""

    classes: Many[str]
    probabilities: Annotated[Many[Number], Meta(description="one per class, sums to 1")]
    label: Annotated[str, Meta(description="the most probable class")]
    confidence: Annotated[Number, Meta(description="its probability")]
    entropy: Annotated[Number, Meta(description="of the probabilities, in nats")]


class Latency(Model):
    """Where the time went, in milliseconds of wall time."""

    receive_ms: Annotated[Number, Meta(description="newest input: happened -> received")] = 0.0
    align_ms: Annotated[Number, Meta(description="window end -> window cut")] = 0.0
    queue_ms: Annotated[Number, Meta(description="window cut -> compute began")] = 0.0
    encoders_ms: Annotated[dict[str, Number], Meta(description="per encoder, 0 when reused")] = {}
    head_ms: Annotated[Number, Meta(description="fusion and head")] = 0.0
    publish_ms: Annotated[Number, Meta(description="previous state: encode and send")] = 0.0
    total_ms: Annotated[Number, Meta(description="window end -> ready to publish")] = 0.0


class ModelInfo(Model):
    """Which model concluded this: hashes of its configuration and weights."""

    config_hash: str
    weights_hash: str


class FusedState(Header):
    """The result of one tick; `stamp_ns` is the end of its window."""

    tick: Annotated[int, Meta(description="window end divided by the hop")]
    fused: Fused
    modalities: dict[str, ModalityState]
    shed: Annotated[Count, Meta(description="windows shed since the state before")] = 0
    model: ModelInfo
    latency: Annotated[Latency, measured("per-stage wall time")] = Latency()


class InputHealth(Model):
    """Exact account of one topic: sent = lost + received; received = consumed + dropped + queued."""

    received: Annotated[Count, Meta(description="messages that reached this process")] = 0
    consumed: Annotated[Count, Meta(description="messages handed to the node")] = 0
    queued: Annotated[Count, Meta(description="messages waiting now")] = 0
    lost: Annotated[Count, Meta(description="seq gaps: sent but never received")] = 0
    dropped: Annotated[dict[str, int], Meta(description="received but not consumed, by reason")] = {}
    age_ms: Annotated[Number | None, Meta(description="now minus newest stamp")] = None


class Health(Header):
    """A node's own account, once a second."""

    node: str
    status: Literal["ok", "degraded", "lost"] = "ok"
    reason: str = ""
    inputs: Annotated[dict[str, InputHealth], Meta(description="by topic")] = {}
    outputs: Annotated[dict[str, int], Meta(description="messages published, by topic")] = {}
    counts: Annotated[dict[str, int], Meta(description="refusals, sheds and repairs, by reason")] = {}
    device: Annotated[dict[str, str | Number], Meta(description="what the device really delivers")] = {}


class ClockTick(Header):
    """Time as an input: nothing younger than `stamp_ns` has been heard of by then."""


JournalKind = Literal["input", "shed"]


class JournalEntry(Model):
    """One decision of a fusion process. `seq` is the input's seq, or the tick of a shed window."""

    kind: JournalKind
    topic: str = ""
    source: str = ""
    seq: int


class HeldInput(Model):
    """A frame or command that a fusion core still holds."""

    topic: str
    source: str
    seq: Count
    stamp_ns: int


class SampleMark(Model):
    """Where the samples of a microphone stand in a fusion core: its newest block."""

    source: str
    rate_hz: int
    offset: Annotated[int, Meta(description="sample index in the core minus the device's own")]
    first: Annotated[int, Meta(description="index of the first sample since the rate changed")]
    start: Annotated[int, Meta(description="index of the block's first sample")]
    stop: Annotated[int, Meta(description="index one past the block's last sample")]
    stamp_ns: int
    seq: Count


class InputMark(Model):
    """One input of a fusion core as it stood."""

    held: Many[HeldInput] = ()
    used: Annotated[HeldInput | None, Meta(description="rules 0: what the window before took")] = None
    samples: SampleMark | None = None


class CoreMark(Model):
    """A fusion core as it stood between two messages, without pixels and samples: a replay can begin here."""

    config_hash: Annotated[str, Meta(description="of the grid, the waiting and the inputs")]
    newest_ns: Annotated[int | None, Meta(description="none: nothing was taken in before")] = None
    next_tick: int | None = None
    newest_of_topic: dict[str, int] = {}
    inputs: dict[str, InputMark] = {}
    rules: Annotated[Count, Meta(description="by which it refuses and tells presence; 0 is of before")] = 0


class HeadUse(Model):
    """A fusion head and where its reign begins."""

    head_hash: Annotated[str, Meta(description="of its configuration and weights")]
    folder: Annotated[str, Meta(description="where it was loaded from, empty if it was not")] = ""
    from_tick: Annotated[int | None, Meta(description="first tick it concluded, none: the first")] = None


class Journal(Header):
    """What a fusion process took in, in which order, and which windows it shed."""

    entries: Many[JournalEntry]
    before: Annotated[CoreMark | None, Meta(description="the core before the first entry")] = None
    heads: Annotated[
        Many[HeadUse], Meta(description="in force before the first entry, then every change")
    ] = ()
    state_topic: Annotated[str, Meta(description="where the states of this core are published")] = ""
    state_source: Annotated[str, Meta(description="their publisher and its incarnation")] = ""


class SwapRequest(Header):
    """Ask a fusion process for another head: try it beside the one in force, switch to it, or switch back."""

    action: Literal["shadow", "go", "back"]
    folder: Annotated[str, Meta(max_length=4096, description="shadow: of the checkpoint, absolute")] = ""
    head_hash: Annotated[str, Meta(max_length=64, description="shadow, go: no other head will do")] = ""
    ticks: Annotated[int, Meta(ge=1, le=1_000_000, description="shadow: how many windows to compare")] = 50


class Agreement(Model):
    """How alike two heads concluded the same windows."""

    ticks: Annotated[Count, Meta(description="windows compared")] = 0
    equal: Annotated[Number, Meta(description="share of them with the same label")] = 0.0
    variation: Annotated[Number, Meta(description="mean total-variation distance of the probabilities")] = 0.0


class HeadStatus(Header):
    """What became of a request for another head."""

    asked_by: Annotated[str, Meta(description="source of the request")]
    phase: Literal["shadow", "compared", "live", "refused"]
    reason: Annotated[str, Meta(description="why it is refused")] = ""
    in_force: Annotated[HeadUse, Meta(description="the head that concludes what is published")]
    agreement: Annotated[Agreement, Meta(description="of the head on trial with that one")] = Agreement()


Payload = bytes | bytearray | memoryview


HeaderT = TypeVar("HeaderT", bound=Header, covariant=True)


class Message(msgspec.Struct, Generic[HeaderT], frozen=True, gc=False, eq=False):
    """One message as it travels in a process: topic, validated header, payload, arrival."""

    topic: str
    header: HeaderT
    payload: Payload = b""
    received_ns: int = 0
    came_as: tuple[Header, bytes] | None = None
    """The header that came and its bytes; read them by `wire`."""

    @property
    def wire(self) -> bytes:
        """The header as it came, byte for byte, for who records it.

        Empty if it never travelled, or if `structs.replace` has put another header in its place. Not part of
        what makes two messages equal.
        """
        return self.came_as[1] if self.came_as is not None and self.came_as[0] is self.header else b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._said())

    def _said(self) -> tuple[object, ...]:
        return self.topic, self.header, self.payload, self.received_ns
