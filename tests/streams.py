"""Synthetic streams for the scenario tests: messages with known stamps, no device and no clock."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from perception.devices.scripted import messages
from perception.fusion.core import FusionCore
from perception.fusion.presence import Presence
from perception.fusion.window import Window
from perception.messages import AudioBlock, CameraFrame, ClockTick, Header, Message, TextCommand, checked
from perception.profile import (
    CameraConfig,
    EncoderConfig,
    FusionConfig,
    HeadConfig,
    InputConfig,
    MicrophoneConfig,
    ScriptConfig,
)
from perception.units import SECOND_NS

MS = 1_000_000
START_NS = 1_700_000_000 * SECOND_NS
CAMERA, MICROPHONE, TEXT = "camera/front", "microphone/main", "text/terminal"


Stream = list[Message[Header]]


def of(stream: Stream, topic: str) -> Stream:
    return [one for one in stream if one.topic == topic]


def scripted_room() -> Stream:
    """Four seconds of the scripted devices, in order of arrival."""
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=20)
    microphone = MicrophoneConfig(source="scripted")
    return list(messages(ScriptConfig(seed=3), camera, microphone, 4.0, origin_ns=START_NS))


def config(**changes: object) -> FusionConfig:
    base: dict[str, object] = {
        "hop_ms": 100.0,
        "lateness_ms": 200.0,
        "inputs": {
            "camera": InputConfig(topic=CAMERA),
            "microphone": InputConfig(topic=MICROPHONE, length_ms=980.0),
            "text": InputConfig(topic="text/*", ttl_ms=2000.0),
        },
        "encoders": {"level": EncoderConfig(input="microphone", kind="level")},
        "head": HeadConfig(weights="random", classes=("a", "b")),
    }
    return FusionConfig.model_validate(base | changes)


def frame(seq: int, stamp_ns: int, **header: object) -> Message[CameraFrame]:
    size = {"width": 2, "height": 1, "encoding": "mono8"}
    fields = {"seq": seq, "stamp_ns": stamp_ns, "source": "c#1", "condition": "ok"} | size
    return Message(CAMERA, checked(CameraFrame, fields | header), bytes((seq % 256, 0)))


def block(
    seq: int, stamp_ns: int, samples: np.ndarray, sample_index: int, rate_hz: int = 16_000, **header: object
) -> Message[AudioBlock]:
    fields = {
        "seq": seq,
        "stamp_ns": stamp_ns,
        "sample_index": sample_index,
        "samples": len(samples),
        "rate_hz": rate_hz,
        "format": "f32",
        "source": "m#1",
        "condition": "ok",
    }
    payload = np.asarray(samples, dtype="<f4").tobytes()
    return Message(MICROPHONE, checked(AudioBlock, fields | header), payload)


def text(seq: int, stamp_ns: int, words: str) -> Message[TextCommand]:
    return Message(TEXT, TextCommand(seq=seq, stamp_ns=stamp_ns, source="t#1", text=words))


def clock_tick(stamp_ns: int) -> Message[ClockTick]:
    return Message("clock/fusion", ClockTick(stamp_ns=stamp_ns))


def camera_stream(seconds: float, rate_hz: int = 30) -> Iterator[Message[Header]]:
    for k in range(int(seconds * rate_hz)):
        yield frame(k, START_NS + k * SECOND_NS // rate_hz)


def microphone_stream(seconds: float, rate_hz: int = 16_000, size: int = 512) -> Iterator[Message[Header]]:
    """Samples whose value is their index, so that a window shows which samples it contains."""
    for k in range(int(seconds * rate_hz / size)):
        index = k * size
        stamp_ns = START_NS + index * SECOND_NS // rate_hz
        yield block(k, stamp_ns, np.arange(index, index + size), index, rate_hz)


def text_stream(seconds: float, every_s: float = 1.7) -> Iterator[Message[Header]]:
    for k in range(int(seconds / every_s)):
        yield text(k, START_NS + int((0.33 + k * every_s) * SECOND_NS), f"command {k}")


def end_ns(message: Message[Header]) -> int:
    """Time of the last of the message's data: the earliest time at which it can arrive."""
    header = message.header
    if isinstance(header, AudioBlock):
        return header.stamp_ns + header.samples * SECOND_NS // header.rate_hz
    return header.stamp_ns


def arrivals(
    streams: Iterable[Iterable[Message[Header]]], delay_ns: Callable[[Message[Header]], int]
) -> list[Message[Header]]:
    """Messages in order of arrival, each stream in its own order as a socket keeps it.

    The delay counts from the start of the message's data, but nothing arrives before its end.
    """
    timed: list[tuple[int, int, Message[Header]]] = []
    for number, stream in enumerate(streams):
        last_ns = 0
        for message in stream:
            last_ns = max(last_ns, end_ns(message), message.header.stamp_ns + delay_ns(message))
            timed.append((last_ns, number, message))
    return [message for _, _, message in sorted(timed, key=lambda item: item[:2])]


def run(core: FusionCore, messages: Iterable[Message[Header]]) -> list[Window]:
    """Push all, anchored by a first ClockTick as a node does."""
    presence = Presence()
    windows = core.push(clock_tick(START_NS))
    for message in messages:
        windows += core.push(message)
    return [presence.mark_held(window) for window in windows]


def run_live(core: FusionCore, messages: Iterable[Message[Header]], until_ns: int) -> list[Window]:
    """Push all at their own time, with the ClockTicks a node adds when a window is overdue."""
    windows = core.push(clock_tick(START_NS))
    for message in [*sorted(messages, key=end_ns), clock_tick(until_ns)]:
        while (deadline_ns := core.deadline_ns) is not None and deadline_ns < end_ns(message):
            windows += core.push(clock_tick(deadline_ns))
        windows += core.push(message)
    return windows
