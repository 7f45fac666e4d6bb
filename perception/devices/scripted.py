"""Devices that play a script: live on a clock, or offline as fast as they can be computed.

All items are functions of (script, origin): camera, microphone and text of different processes agree, and a
process that starts late or again begins at the present.
"""

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol, TypeVar

from perception.devices.device import (
    Captured,
    CapturedBlock,
    CapturedFrame,
    CapturedLabel,
    CapturedText,
    Device,
    DeviceReport,
)
from perception.devices.pixels import Layout
from perception.devices.scene import Scene
from perception.devices.script import Script
from perception.devices.soundtrack import Soundtrack
from perception.devices.wire import Numbering, block_message, frame_message, label_message, text_message
from perception.messages import Header, Message, Payload
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from perception.profile.keys import SCRIPTED
from perception.units import SECOND_NS, Clock
from perception.units.closing import Closing

Wait = Callable[[float], None]
Item = TypeVar("Item", covariant=True)

# Sound that waits for a slow reader, as in a sound card's driver.
_SOUND_BACKLOG_S: Final = 1.0
_TEXT_BACKLOG: Final = 64
_SOURCE: Final = "scripted#0"


class _Sequence(Protocol[Item]):
    """Numbered items, each available from a known script time."""

    backlog: int
    """Number of items before the newest that wait for a slow reader; older ones are skipped."""
    valid: int
    """Number of past items that are still valid when a reader starts."""
    facts: dict[str, str | float]

    def due_ns(self, number: int) -> int:
        """Return the script time in ns at which the item is available."""

    def newest(self, t_ns: int) -> int:
        """Return the number of the last item available at `t_ns`, -1 if none."""

    def item(self, number: int, origin_ns: int, missed: int) -> Item | None:
        """Return the item, None if it is empty; `missed` items were skipped just before it."""


def _facts(**delivered: float) -> dict[str, str | float]:
    """Return the facts of a scripted device for its report."""
    return {"source": SCRIPTED, **delivered}


class _Frames:
    backlog = 0
    valid = 0

    def __init__(self, script: Script, config: CameraConfig) -> None:
        self._layout = Layout.of(config)
        self._scene = Scene(script, *self._layout.before((config.width, config.height)))
        self._rate_hz = config.rate_hz
        self.facts = _facts(width=config.width, height=config.height, rate_hz=config.rate_hz)

    def due_ns(self, number: int) -> int:
        return round(number * SECOND_NS / self._rate_hz)

    def newest(self, t_ns: int) -> int:
        number = math.ceil(t_ns * self._rate_hz / SECOND_NS)
        while number >= 0 and self.due_ns(number) > t_ns:
            number -= 1
        return max(number, -1)

    def item(self, number: int, origin_ns: int, missed: int) -> CapturedFrame:
        t_ns = self.due_ns(number)
        return CapturedFrame(self._layout.of_image(self._scene.at(t_ns)), origin_ns + t_ns)


class _Blocks:
    valid = 0

    def __init__(self, script: Script, config: MicrophoneConfig) -> None:
        self._track = Soundtrack(script, config.rate_hz)
        self._rate_hz = config.rate_hz
        self._channels = config.channels
        self._size = max(round(config.rate_hz * config.block_ms / 1000), 1)
        self.backlog = math.ceil(_SOUND_BACKLOG_S * config.rate_hz / self._size)
        self.facts = _facts(rate_hz=config.rate_hz, channels=config.channels, block_samples=self._size)

    def due_ns(self, number: int) -> int:
        return -(-(number + 1) * self._size * SECOND_NS // self._rate_hz)

    def newest(self, t_ns: int) -> int:
        return max(t_ns * self._rate_hz // (SECOND_NS * self._size) - 1, -1)

    def item(self, number: int, origin_ns: int, missed: int) -> CapturedBlock:
        first = number * self._size
        mono = self._track.samples(first, self._size)[:, None]
        return CapturedBlock(
            samples=mono.repeat(self._channels, axis=1),
            stamp_ns=origin_ns + first * SECOND_NS // self._rate_hz,
            sample_index=first,
            gap=missed * self._size,
        )


class _Lines:
    """Even numbers are the segments' labels, odd ones their texts."""

    backlog = _TEXT_BACKLOG
    valid = 2

    def __init__(self, script: Script) -> None:
        self._script = script
        self.facts = _facts(seed=script.config.seed)

    def due_ns(self, number: int) -> int:
        return self._script.segment(number // 2).start_ns

    def newest(self, t_ns: int) -> int:
        return self._script.at(t_ns).index * 2 + 1 if t_ns >= 0 else -1

    def item(self, number: int, origin_ns: int, missed: int) -> CapturedText | CapturedLabel | None:
        segment = self._script.segment(number // 2)
        start_ns = origin_ns + segment.start_ns
        if number % 2 == 0:
            return CapturedLabel(segment.name, start_ns, origin_ns + segment.end_ns)
        return CapturedText(segment.text, start_ns) if segment.text else None


def _first(sequence: _Sequence[Item], t_ns: int) -> int:
    """Return the first item for a reader that starts at `t_ns`: the next one, or the oldest valid one."""
    if sequence.valid:
        return max(sequence.newest(t_ns) + 1 - sequence.valid, 0)
    return sequence.newest(t_ns - 1) + 1


class _Player(Closing, Device[Captured]):
    """Returns a sequence's items when they are due on the clock."""

    def __init__(self, sequence: _Sequence[Captured], clock: Clock, origin_ns: int, wait: Wait) -> None:
        self._sequence = sequence
        self._clock = clock
        self._origin_ns = origin_ns
        self._wait = wait
        self._next = _first(sequence, clock() - origin_ns)
        self._missed = 0
        self._counts: Counter[str] = Counter(skipped=0)

    def read(self, timeout_s: float) -> Captured | None:
        deadline_ns = self._clock() + round(timeout_s * SECOND_NS)
        while True:
            now_ns = self._clock()
            if (item := self._due(now_ns - self._origin_ns)) is not None:
                return item
            if now_ns >= deadline_ns:
                return None
            due_ns = self._origin_ns + self._sequence.due_ns(self._next)
            self._wait((min(due_ns, deadline_ns) - now_ns) / SECOND_NS)

    def _due(self, t_ns: int) -> Captured | None:
        newest = self._sequence.newest(t_ns)
        late = newest - self._sequence.backlog - self._next
        if late > 0:
            self._counts["skipped"] += late
            self._missed += late
            self._next += late
        while self._next <= newest:
            item = self._sequence.item(self._next, self._origin_ns, self._missed)
            self._next += 1
            self._missed = 0
            if item is not None:
                return item
        return None

    def report(self) -> DeviceReport:
        return DeviceReport(dict(self._counts), dict(self._sequence.facts))

    def close(self) -> None:
        """Do nothing: no resource is open."""


class _TextPlayer(_Player[CapturedText | CapturedLabel]):
    """Stamps a line when it is read: a reader that starts late gets the current line with a later stamp."""

    def read(self, timeout_s: float) -> CapturedText | CapturedLabel | None:
        item = super().read(timeout_s)
        if isinstance(item, CapturedText):
            return CapturedText(item.text, max(item.stamp_ns, self._clock()))
        return item


def open_scripted_camera(
    config: CameraConfig, script: ScriptConfig, *, clock: Clock, origin_ns: int, wait: Wait = time.sleep
) -> Device[CapturedFrame]:
    """Return a camera whose frame k is stamped `origin_ns` + k / rate; a slow reader gets the newest only."""
    return _Player(_Frames(Script(script), config), clock, origin_ns, wait)


def open_scripted_microphone(
    config: MicrophoneConfig, script: ScriptConfig, *, clock: Clock, origin_ns: int, wait: Wait = time.sleep
) -> Device[CapturedBlock]:
    """Return a microphone that counts samples from `origin_ns`; a block is due at its last sample."""
    return _Player(_Blocks(Script(script), config), clock, origin_ns, wait)


def open_scripted_text(
    script: ScriptConfig, *, clock: Clock, origin_ns: int, wait: Wait = time.sleep
) -> Device[CapturedText | CapturedLabel]:
    """Return texts and labels, each at its segment's start; those of the current segment at once."""
    return _TextPlayer(_Lines(Script(script)), clock, origin_ns, wait)


def messages(
    script: ScriptConfig,
    camera: CameraConfig,
    microphone: MicrophoneConfig,
    seconds: float,
    *,
    start_s: float = 0.0,
    origin_ns: int = 0,
    topics: tuple[str, str, str] = ("camera/front", "microphone/main", "text/terminal"),
) -> Iterator[Message[Header]]:
    """Yield the messages of the three devices in order of arrival, without waiting.

    Args:
        script: seed and noise.
        camera: size, rate and encoding of its frames.
        microphone: rate, block length and format of its sound.
        seconds: duration.
        start_s: script time of the beginning.
        origin_ns: host time of script time 0.
        topics: of frames, sound and text; labels go to `label/truth`.
    """
    played = Script(script)
    lines: _Sequence[CapturedText | CapturedLabel] = _Lines(played)

    def framed(frame: CapturedFrame) -> tuple[str, Header, Payload]:
        return topics[0], *frame_message(frame, camera)

    def blocked(block: CapturedBlock) -> tuple[str, Header, Payload]:
        return topics[1], *block_message(block, microphone)

    span_ns = (round(start_s * SECOND_NS), round((start_s + seconds) * SECOND_NS))
    arrivals = heapq.merge(
        _arrivals(lines, span_ns, origin_ns, partial(_line_message, topics[2])),
        _arrivals(_Frames(played, camera), span_ns, origin_ns, framed),
        _arrivals(_Blocks(played, microphone), span_ns, origin_ns, blocked),
        key=lambda arrival: arrival[0],
    )
    numbering = Numbering(_SOURCE)
    for due_ns, topic, header, payload in arrivals:
        yield numbering.message(topic, header, payload, due_ns)


def _line_message(topic: str, line: CapturedText | CapturedLabel) -> tuple[str, Header, Payload]:
    if isinstance(line, CapturedLabel):
        return "label/truth", label_message(line), b""
    return topic, text_message(line, "en"), b""


def _arrivals(
    sequence: _Sequence[Item],
    span_ns: tuple[int, int],
    origin_ns: int,
    convert: Callable[[Item], tuple[str, Header, Payload]],
) -> Iterator[tuple[int, str, Header, Payload]]:
    number = _first(sequence, span_ns[0])
    while (due_ns := sequence.due_ns(number)) < span_ns[1]:
        item = sequence.item(number, origin_ns, 0)
        if item is not None:
            yield origin_ns + due_ns, *convert(item)
        number += 1
