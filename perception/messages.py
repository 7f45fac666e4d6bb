"""Every message on the bus, declared once, its unit beside each field.

The lowest layer: plain data, no I/O. The wire form is `[topic, header, payload]`, the header a small
msgpack map of these models, pixels and samples the payload.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1

Presence = Literal["present", "held", "absent"]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


def measured(description: str) -> Any:
    """Field that differs between two runs that conclude the same: wall time, or who ran."""
    return Field(description=description, json_schema_extra={"measured": True})


class Model(BaseModel):
    """Frozen; unknown keys are ignored, so an old reader takes a newer writer; NaN is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Header(Model):
    """What every message carries. The publisher fills `seq`, `sent_ns` and `source`."""

    v: Annotated[int, Field(ge=1, description="schema version")] = SCHEMA_VERSION
    seq: Annotated[Count, Field(description="counts up per publisher and topic; a gap is a loss")] = 0
    stamp_ns: Annotated[int, Field(description="when it happened, UNIX nanoseconds that never step")]
    sent_ns: Annotated[int, measured("when it was published, same clock")] = 0
    source: Annotated[str, measured("publisher and its incarnation: name#id")] = ""


class CameraFrame(Header):
    """One frame; the payload holds its pixels (rows top-down) or its JPEG."""

    width: Annotated[int, Field(ge=1, le=16384, description="pixels")]
    height: Annotated[int, Field(ge=1, le=16384, description="pixels")]
    encoding: Annotated[Literal["bgr8", "mono8", "jpeg"], Field(description="payload format")]
    exposure_ns: Annotated[Count | None, Field(description="exposure time if known")] = None


class AudioBlock(Header):
    """Consecutive samples; `stamp_ns` is the moment of the first. The payload interleaves channels."""

    sample_index: Annotated[Count, Field(description="first sample, counted since the device opened")]
    samples: Annotated[int, Field(ge=1, le=1 << 20, description="samples per channel")]
    rate_hz: Annotated[int, Field(ge=1000, le=768_000, description="nominal sample rate")]
    channels: Annotated[int, Field(ge=1, le=64)] = 1
    format: Annotated[Literal["s16", "f32"], Field(description="little-endian samples")] = "s16"
    gap: Annotated[Count, Field(description="samples lost just before this block")] = 0


class TextCommand(Header):
    """One line of text, typed or recognised."""

    text: Annotated[str, Field(max_length=4096)]
    language: Annotated[str, Field(description="BCP 47 tag, empty if unknown")] = ""
    final: Annotated[bool, Field(description="false while a recogniser may still change it")] = True


class Label(Header):
    """Ground truth or annotation over `[start_ns, end_ns)`; `stamp_ns` equals `start_ns`."""

    start_ns: int
    end_ns: int
    name: Annotated[str, Field(description="class")]
    track: Annotated[str, Field(description="several tracks may overlap")] = "truth"


class Box(Model):
    """Axis-aligned rectangle in pixels of the source frame."""

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    score: float = 1.0


class BranchState(Model):
    """What one encoder said on its own."""

    labels: tuple[str, ...] = ()
    scores: Annotated[tuple[float, ...], Field(description="one per label")] = ()
    boxes: tuple[Box, ...] = ()


class ModalityState(Model):
    """One input of the fusion, as it was in this window."""

    topic: str
    presence: Presence
    reason: Annotated[str, Field(description="why it is not simply present, empty if it is")] = ""
    age_ms: Annotated[float | None, Field(description="window end minus newest data used")] = None
    seqs: Annotated[tuple[int, int] | None, Field(description="first and last seq used")] = None
    branches: Annotated[dict[str, BranchState], Field(description="by encoder")] = {}


class Fused(Model):
    """The fused conclusion."""

    classes: tuple[str, ...]
    probabilities: Annotated[tuple[float, ...], Field(description="one per class, sums to 1")]
    label: Annotated[str, Field(description="the most probable class")]
    confidence: Annotated[float, Field(description="its probability")]
    entropy: Annotated[float, Field(description="of the probabilities, in nats")]


class Latency(Model):
    """Where the time went, in milliseconds of wall time."""

    receive_ms: Annotated[float, Field(description="newest input: happened -> received")] = 0.0
    align_ms: Annotated[float, Field(description="window end -> window cut")] = 0.0
    queue_ms: Annotated[float, Field(description="window cut -> compute began")] = 0.0
    encoders_ms: Annotated[dict[str, float], Field(description="per encoder, 0 when reused")] = {}
    head_ms: Annotated[float, Field(description="fusion and head")] = 0.0
    publish_ms: Annotated[float, Field(description="previous state: encode and send")] = 0.0
    total_ms: Annotated[float, Field(description="window end -> ready to publish")] = 0.0


class ModelInfo(Model):
    """Which model concluded this: hashes of its configuration and weights."""

    config_hash: str
    weights_hash: str


class FusedState(Header):
    """The result of one tick; `stamp_ns` is the end of its window."""

    tick: Annotated[int, Field(description="window end divided by the hop")]
    fused: Fused
    modalities: dict[str, ModalityState]
    shed: Annotated[Count, Field(description="windows shed since the state before")] = 0
    model: ModelInfo
    latency: Annotated[Latency, measured("per-stage wall time")] = Latency()


class InputHealth(Model):
    """Exact account of one topic: sent = lost + received; received = consumed + dropped + queued."""

    received: Annotated[Count, Field(description="messages that reached this process")] = 0
    consumed: Annotated[Count, Field(description="messages handed to the node")] = 0
    queued: Annotated[Count, Field(description="messages waiting now")] = 0
    lost: Annotated[Count, Field(description="seq gaps: sent but never received")] = 0
    dropped: Annotated[dict[str, int], Field(description="received but not consumed, by reason")] = {}
    age_ms: Annotated[float | None, Field(description="now minus newest stamp")] = None


class Health(Header):
    """A node's own account, once a second."""

    node: str
    status: Literal["ok", "degraded", "lost"] = "ok"
    reason: str = ""
    inputs: Annotated[dict[str, InputHealth], Field(description="by topic")] = {}
    outputs: Annotated[dict[str, int], Field(description="messages published, by topic")] = {}
    counts: Annotated[dict[str, int], Field(description="refusals, sheds and repairs, by reason")] = {}
    device: Annotated[dict[str, str | float], Field(description="what the device really delivers")] = {}


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
    offset: Annotated[int, Field(description="sample index in the core minus the device's own")]
    first: Annotated[int, Field(description="index of the first sample since the rate changed")]
    start: Annotated[int, Field(description="index of the block's first sample")]
    stop: Annotated[int, Field(description="index one past the block's last sample")]
    stamp_ns: int
    seq: Count


class InputMark(Model):
    """One input of a fusion core as it stood."""

    held: tuple[HeldInput, ...] = ()
    used: Annotated[HeldInput | None, Field(description="what the window before took")] = None
    samples: SampleMark | None = None


class CoreMark(Model):
    """A fusion core as it stood between two messages, without pixels and samples: a replay can begin here."""

    config_hash: Annotated[str, Field(description="of the grid, the waiting and the inputs")]
    newest_ns: Annotated[int | None, Field(description="none: nothing was taken in before")] = None
    next_tick: int | None = None
    newest_of_topic: dict[str, int] = {}
    inputs: dict[str, InputMark] = {}


class HeadUse(Model):
    """A fusion head and where its reign begins."""

    head_hash: Annotated[str, Field(description="of its configuration and weights")]
    folder: Annotated[str, Field(description="where it was loaded from, empty if it was not")] = ""
    from_tick: Annotated[int | None, Field(description="first tick it concluded, none: the first")] = None


class Journal(Header):
    """What a fusion process took in, in which order, and which windows it shed."""

    entries: tuple[JournalEntry, ...]
    before: Annotated[CoreMark | None, Field(description="the core before the first entry")] = None
    heads: Annotated[
        tuple[HeadUse, ...], Field(description="in force before the first entry, then every change")
    ] = ()
    state_topic: Annotated[str, Field(description="where the states of this core are published")] = ""
    state_source: Annotated[str, Field(description="their publisher and its incarnation")] = ""


class SwapRequest(Header):
    """Ask a fusion process for another head: try it beside the one in force, switch to it, or switch back."""

    action: Literal["shadow", "go", "back"]
    folder: Annotated[str, Field(max_length=4096, description="shadow: of the checkpoint, absolute")] = ""
    head_hash: Annotated[str, Field(max_length=64, description="shadow, go: no other head will do")] = ""
    ticks: Annotated[int, Field(ge=1, le=1_000_000, description="shadow: how many windows to compare")] = 50


class Agreement(Model):
    """How alike two heads concluded the same windows."""

    ticks: Annotated[Count, Field(description="windows compared")] = 0
    equal: Annotated[float, Field(description="share of them with the same label")] = 0.0
    variation: Annotated[float, Field(description="mean total-variation distance of the probabilities")] = 0.0


class HeadStatus(Header):
    """What became of a request for another head."""

    asked_by: Annotated[str, Field(description="source of the request")]
    phase: Literal["shadow", "compared", "live", "refused"]
    reason: Annotated[str, Field(description="why it is refused")] = ""
    in_force: Annotated[HeadUse, Field(description="the head that concludes what is published")]
    agreement: Annotated[Agreement, Field(description="of the head on trial with that one")] = Agreement()


Payload = bytes | bytearray | memoryview


HeaderT = TypeVar("HeaderT", bound=Header, covariant=True)


@dataclass(frozen=True, slots=True)
class Message(Generic[HeaderT]):
    """One message as it travels in a process: topic, validated header, payload, arrival."""

    topic: str
    header: HeaderT
    payload: Payload = b""
    received_ns: int = 0
    wire: bytes = field(default=b"", compare=False, repr=False)
    """The header as it came, byte for byte, for who records it; empty if it never travelled."""
