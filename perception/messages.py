"""Every message on the bus, declared once, with the unit of each field.

Plain data, no I/O. On the wire a message is `[topic, header, payload]`: the header is a msgpack map of one
of these models, the payload holds pixels, samples or nothing.
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
ConditionName = Literal[
    "ok",
    "starting",
    "frozen",
    "black",
    "blown out",
    "covered",
    "noise",
    "blurred",
    "dead channel",
    "torn",
    "silent",
    "stuck",
    "clipped",
    "DC",
    "hum",
    "wrong rate",
    "jittery",
    "slow",
    "lagging",
    "lost",
    "reconnecting",
]
"""The conditions of a stream that this version knows. A judge reports one: the most serious that holds."""
MAX_COUNT: Final = (1 << 63) - 1
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
MAX_TIME_NS: Final = 1 << 62
"""Latest event time, in the year 2116: sums and differences of times and durations fit into 64 bits."""
Time = Annotated[int, Meta(ge=-MAX_TIME_NS, le=MAX_TIME_NS)]
"""In ns."""
Position = Annotated[int, Meta(ge=0, le=1 << 62)]
"""Of a sample; sums of several fit into 64 bits."""
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Neither NaN nor infinite."""
Condition = Annotated[
    str, Meta(max_length=32, description="condition of the stream's signal, empty if it was not judged")
]
"""A `ConditionName`, or the name of a later version: readers treat an unknown name as suspect."""
Many = Annotated[tuple[ItemT, ...], Meta(max_length=1 << 16)]
"""A decoder allocates as many items as the data claims: the limit protects the reader's memory."""


def measured(description: str) -> Meta:
    """Return the mark of a field that differs between runs with equal results: wall time, publisher id."""
    return Meta(description=description, extra_json_schema={"measured": True})


def is_measured(field: structs.FieldInfo) -> bool:
    """Return whether a field is declared as `measured`."""
    notes = (note.extra_json_schema or {} for note in get_args(field.type) if isinstance(note, Meta))
    return any(note.get("measured", False) for note in notes)


class _Declaration(msgspec.StructMeta):
    """Makes all fields keyword-only in every subclass; msgspec's `kw_only` covers one class only."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(cls, name, bases, namespace, kw_only=True, **options)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Model(msgspec.Struct, metaclass=_Declaration, frozen=True, gc=False):
    """Base of messages and their parts: frozen. Unknown keys are ignored, so old readers accept new writers.

    Constructors do not validate. Data from outside is validated by the codec or by `checked`.
    """


def checked(kind: type[ModelT], fields: Mapping[str, Any]) -> ModelT:
    """Return a message of type `kind` from unvalidated values; ValueError gives the reason in one line."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=kind)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def duration_ns(samples: int, rate_hz: int) -> int:
    """Return the duration of `samples` samples in ns, rounded."""
    return (samples * SECOND_NS + rate_hz // 2) // rate_hz


class Header(Model):
    """Fields of every message. The publisher sets `seq`, `sent_ns` and `source`."""

    v: Annotated[int, Meta(ge=1, description="schema version")] = SCHEMA_VERSION
    seq: Annotated[Count, Meta(description="counts up per publisher id and topic; a gap is a loss")] = 0
    stamp_ns: Annotated[Time, Meta(description="event time, UNIX nanoseconds that never step")]
    sent_ns: Annotated[Time, measured("time of publication, same clock")] = 0
    source: Annotated[str, Meta(max_length=264), measured("publisher id: name#incarnation")] = ""
    correction_ns: Annotated[
        Time,
        measured("added to all times by the host that received it: its clock minus that of the publisher"),
    ] = 0


HeaderT = TypeVar("HeaderT", bound=Header, covariant=True)
ShiftedT = TypeVar("ShiftedT", bound=Header)


class CameraFrame(Header):
    """One frame; the payload holds its pixels (rows top-down) or its JPEG."""

    width: Annotated[int, Meta(ge=1, le=16384, description="pixels")]
    height: Annotated[int, Meta(ge=1, le=16384, description="pixels")]
    encoding: Annotated[Literal["bgr8", "mono8", "jpeg"], Meta(description="payload format")]
    exposure_ns: Annotated[Count | None, Meta(description="exposure time if known")] = None
    condition: Condition = ""


PIXEL_BYTES: Final = {"bgr8": 3, "mono8": 1}
"""Size of a pixel by encoding; that of JPEG depends on the picture."""
SAMPLE_BYTES: Final = {"s16": 2, "f32": 4}
"""Size of a sample of one channel by format."""
MAX_BLOCK_NS: Final = SECOND_NS
"""Longest block of sound that `perception.publish` sends, in ns; fusion does not wait longer for its end."""


class AudioBlock(Header):
    """Consecutive samples; `stamp_ns` is the time of the first. The payload interleaves channels."""

    sample_index: Annotated[Position, Meta(description="first sample, counted since the device opened")]
    samples: Annotated[int, Meta(ge=1, le=1 << 20, description="samples per channel")]
    rate_hz: Annotated[int, Meta(ge=1000, le=768_000, description="nominal sample rate")]
    channels: Annotated[int, Meta(ge=1, le=64)] = 1
    format: Annotated[Literal["s16", "f32"], Meta(description="little-endian samples")] = "s16"
    gap: Annotated[Position, Meta(description="samples lost just before this block")] = 0
    condition: Condition = ""


def condition_of(header: Header) -> str:
    """Return the condition of a frame or block, empty for other messages and if it was not judged."""
    return header.condition if isinstance(header, CameraFrame | AudioBlock) else ""


def reached_ns(header: Header) -> int:
    """Return the end of a message in event time: for sound the end of its last sample, else `stamp_ns`."""
    if isinstance(header, AudioBlock):
        return header.stamp_ns + duration_ns(header.samples, header.rate_hz)
    return header.stamp_ns


class TextCommand(Header):
    """One line of text, typed or recognised."""

    text: Annotated[str, Meta(max_length=4096)]
    language: Annotated[str, Meta(max_length=256, description="BCP 47 tag, empty if unknown")] = ""
    final: Annotated[bool, Meta(description="false while a recogniser may still change it")] = True


class Label(Header):
    """Ground truth or annotation over `[start_ns, end_ns)`; `stamp_ns` equals `start_ns`."""

    start_ns: Time
    end_ns: Time
    name: Annotated[str, Meta(max_length=4096, description="class")]
    track: Annotated[str, Meta(max_length=4096, description="labels of different tracks may overlap")] = (
        "truth"
    )


def moved(header: ShiftedT, by_ns: int) -> ShiftedT:
    """Return the header with its stamps `by_ns` later."""
    update = {"stamp_ns": header.stamp_ns + by_ns}
    if isinstance(header, Label):
        update |= {"start_ns": header.start_ns + by_ns, "end_ns": header.end_ns + by_ns}
    return structs.replace(header, **update)


def corrected(header: ShiftedT, by_ns: int) -> ShiftedT:
    """Return the header with all of its times on another clock, which is ahead by `by_ns`.

    `as_published` undoes it.
    """
    times = {"sent_ns": header.sent_ns + by_ns, "correction_ns": header.correction_ns + by_ns}
    return structs.replace(moved(header, by_ns), **times)


def as_published(header: ShiftedT) -> ShiftedT:
    """Return the header with the times of its publisher's clock, the same on every host."""
    return corrected(header, -header.correction_ns) if header.correction_ns else header


class Box(Model):
    """Axis-aligned rectangle in pixels of the source frame."""

    x: Number
    y: Number
    width: Number
    height: Number
    label: str = ""
    score: Number = 1.0


class BranchState(Model):
    """Result of one encoder."""

    labels: Many[str] = ()
    scores: Annotated[Many[Number], Meta(description="one per label")] = ()
    boxes: Many[Box] = ()


class ModalityState(Model):
    """One stream of the fusion in this window."""

    topic: str
    presence: Presence
    reason: Annotated[str, Meta(description="why presence is not `present`, else empty")] = ""
    age_ms: Annotated[Number | None, Meta(description="window end minus newest data used")] = None
    seqs: Annotated[tuple[int, int] | None, Meta(description="first and last seq used")] = None
    branches: Annotated[dict[str, BranchState], Meta(description="by encoder")] = {}
    condition: Condition = ""

    @property
    def word(self) -> str:
        """The one word for people: the condition if it is not ok, else the reason of the presence."""
        return self.reason if self.condition in ("", "ok") else self.condition


class Fused(Model):
    """Output of the fusion head."""

    classes: Many[str]
    probabilities: Annotated[Many[Number], Meta(description="one per class, sums to 1")]
    label: Annotated[str, Meta(description="the most probable class")]
    confidence: Annotated[Number, Meta(description="its probability")]
    entropy: Annotated[Number, Meta(description="of the probabilities, in nats")]


class Latency(Model):
    """Wall time per stage, in milliseconds."""

    receive_ms: Annotated[Number, Meta(description="newest input: happened -> received")] = 0.0
    align_ms: Annotated[Number, Meta(description="window end -> window cut")] = 0.0
    queue_ms: Annotated[Number, Meta(description="window cut -> compute began")] = 0.0
    encoders_ms: Annotated[dict[str, Number], Meta(description="per encoder, 0 when reused")] = {}
    head_ms: Annotated[Number, Meta(description="fusion and head")] = 0.0
    publish_ms: Annotated[Number, Meta(description="previous state: encode and send")] = 0.0
    total_ms: Annotated[Number, Meta(description="window end -> ready to publish")] = 0.0


class ModelInfo(Model):
    """The model that computed a state: hashes of its configuration and weights."""

    config_hash: str
    weights_hash: str


class FusedState(Header):
    """The state of one tick; `stamp_ns` is the end of its window."""

    tick: Annotated[int, Meta(description="window end divided by the hop")]
    fused: Fused
    modalities: dict[str, ModalityState]
    shed: Annotated[Count, Meta(description="windows shed since the state before")] = 0
    model: ModelInfo
    latency: Annotated[Latency, measured("per-stage wall time")] = Latency()


class InputHealth(Model):
    """Exact counts of one topic: sent = lost + received; received = consumed + dropped + queued."""

    received: Annotated[Count, Meta(description="messages that reached this process")] = 0
    consumed: Annotated[Count, Meta(description="messages handed to the node")] = 0
    queued: Annotated[Count, Meta(description="messages waiting now")] = 0
    lost: Annotated[Count, Meta(description="seq gaps: sent but never received")] = 0
    dropped: Annotated[dict[str, int], Meta(description="received but not consumed, by reason")] = {}
    age_ms: Annotated[Number | None, Meta(description="now minus newest stamp")] = None


class HostTime(Model):
    """The clock of another host, as this process estimates it."""

    offset_ms: Annotated[Number | None, Meta(description="that clock minus this one; none: not known")] = None
    drift_ppm: Annotated[Number, Meta(description="positive if that clock runs fast")] = 0.0
    round_trip_ms: Annotated[Number, Meta(description="of the fastest request in the last minute")] = 0.0
    residual_ms: Annotated[Number, Meta(description="root mean square about the fitted line")] = 0.0
    bound_ms: Annotated[Number, Meta(description="the true offset is no farther than this")] = 0.0
    age_ms: Annotated[Number, Meta(description="since the newest answer")] = 0.0
    bursts: Annotated[Count, Meta(description="bursts of requests in the line")] = 0
    steps: Annotated[Count, Meta(description="how often one of the two clocks was set")] = 0


class Health(Header):
    """Status and counts of one node, published once a second."""

    node: str
    status: Literal["ok", "degraded", "lost"] = "ok"
    reason: str = ""
    inputs: Annotated[dict[str, InputHealth], Meta(description="by topic")] = {}
    outputs: Annotated[dict[str, int], Meta(description="messages published, by topic")] = {}
    counts: Annotated[dict[str, int], Meta(description="refused, shed or repaired, by reason")] = {}
    device: Annotated[dict[str, str | Number], Meta(description="facts of the open device")] = {}
    condition: Condition = ""
    hosts: Annotated[dict[str, HostTime], Meta(description="other hosts whose stamps are corrected")] = {}


PROCESS: Final = "pid"
"""Name of the process id among the facts in `Health.device`."""
SUPERVISOR: Final = "supervisor"
"""Node name of the supervisor, in a graph of several hosts with `-HOST` after it.

Its `Health.device` holds the status of the process of each of its nodes.
"""


def is_supervisor(node: str) -> bool:
    """Return whether a node is the supervisor of a host."""
    return node == SUPERVISOR or node.startswith(f"{SUPERVISOR}-")


class ClockTick(Header):
    """Time as an input: no message with a later `stamp_ns` was received before it."""


JournalKind = Literal["input", "shed"]


class JournalEntry(Model):
    """One decision of a fusion process. `seq` is the input's seq, or the tick of a shed window."""

    kind: JournalKind
    topic: str = ""
    source: str = ""
    seq: int
    condition: Annotated[Condition, Meta(description="judged on receipt; empty: the input's own counts")] = ""
    correction_ns: Annotated[Time, Meta(description="of the input, as this process received it")] = 0


class HeldInput(Model):
    """A frame or command that a fusion core still keeps."""

    topic: str
    source: str
    seq: Count
    stamp_ns: int
    condition: Condition = ""


class SampleMark(Model):
    """Position of a microphone's samples in a fusion core: its newest block."""

    source: str
    rate_hz: int
    offset: Annotated[int, Meta(description="sample index in the core minus the device's own")]
    first: Annotated[int, Meta(description="index of the first sample since the rate changed")]
    start: Annotated[int, Meta(description="index of the block's first sample")]
    stop: Annotated[int, Meta(description="index one past the block's last sample")]
    stamp_ns: int
    seq: Count


class InputMark(Model):
    """State of one input of a fusion core."""

    held: Many[HeldInput] = ()
    used: Annotated[HeldInput | None, Meta(description="rules 0: what the previous window used")] = None
    samples: SampleMark | None = None


class CoreMark(Model):
    """State of a fusion core between two messages, without payloads: recompute can begin here."""

    config_hash: Annotated[str, Meta(description="hash of hop, lateness and inputs")]
    newest_ns: Annotated[int | None, Meta(description="none: no message was received before")] = None
    next_tick: int | None = None
    newest_of_topic: dict[str, int] = {}
    inputs: dict[str, InputMark] = {}
    rules: Annotated[Count, Meta(description="version of the rules of refusal and presence")] = 0
    first_ns: Annotated[int | None, Meta(description="event time of the first message")] = None


class HeadUse(Model):
    """A fusion head and the first tick it is used for."""

    head_hash: Annotated[str, Meta(description="hash of its configuration and weights")]
    folder: Annotated[str, Meta(description="checkpoint folder, empty if not loaded from one")] = ""
    from_tick: Annotated[int | None, Meta(description="first tick it computed, none: the first")] = None


class Journal(Header):
    """Decisions of a fusion process: which inputs it accepted, in which order, and which windows it shed."""

    entries: Many[JournalEntry]
    before: Annotated[CoreMark | None, Meta(description="state of the core before the first entry")] = None
    heads: Annotated[Many[HeadUse], Meta(description="live before the first entry, then every change")] = ()
    state_topic: Annotated[str, Meta(description="topic of this core's states")] = ""
    state_source: Annotated[str, Meta(description="publisher id of this core's states")] = ""


class SwapRequest(Header):
    """Request to a fusion process: compare another head with the live one, switch to it, or switch back."""

    action: Literal["shadow", "go", "back"]
    folder: Annotated[str, Meta(max_length=4096, description="shadow: absolute path of the checkpoint")] = ""
    head_hash: Annotated[str, Meta(max_length=64, description="shadow, go: required hash of the head")] = ""
    ticks: Annotated[int, Meta(ge=1, le=1_000_000, description="shadow: number of windows to compare")] = 50


class Agreement(Model):
    """Agreement of two heads over the same windows."""

    ticks: Annotated[Count, Meta(description="windows compared")] = 0
    equal: Annotated[Number, Meta(description="share of them with the same label")] = 0.0
    variation: Annotated[Number, Meta(description="mean total-variation distance of the probabilities")] = 0.0


class HeadStatus(Header):
    """Progress of a request for another head."""

    asked_by: Annotated[str, Meta(description="publisher id of the request")]
    phase: Literal["shadow", "compared", "live", "refused"]
    reason: Annotated[str, Meta(description="why the request was refused, else empty")] = ""
    in_force: Annotated[HeadUse, Meta(description="the live head: it computes the published states")]
    agreement: Annotated[Agreement, Meta(description="of the shadow head with the live head")] = Agreement()


Payload = bytes | bytearray | memoryview


class Message(msgspec.Struct, Generic[HeaderT], frozen=True, gc=False, eq=False):
    """One message inside a process: topic, validated header, payload, time of arrival."""

    topic: str
    header: HeaderT
    payload: Payload = b""
    received_ns: int = 0
    came_as: tuple[Header, bytes] | None = None
    """The received header and its bytes; `wire` returns the bytes."""

    @property
    def wire(self) -> bytes:
        """The received header, byte for byte, for recording.

        Empty if the message was not received from a socket, or if `structs.replace` replaced the header. Not
        part of equality.
        """
        return self.came_as[1] if self.came_as is not None and self.came_as[0] is self.header else b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        return self.topic, self.header, self.payload, self.received_ns


def with_condition(message: Message[Header], condition: str) -> Message[Header]:
    """Return a frame or block with another condition in its header; unchanged if it has that one."""
    header = message.header
    if not isinstance(header, CameraFrame | AudioBlock) or header.condition == condition:
        return message
    return structs.replace(message, header=structs.replace(header, condition=condition))
