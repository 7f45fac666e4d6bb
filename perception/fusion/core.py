"""The event-time core: messages in, finished windows out. Pure: no clock, thread or socket.

watermark = max(oldest among the newest stamps of the clocked streams, newest stamp of all - lateness).
A window is cut when the watermark passes its end, so one dead stream delays the output by `lateness` and
never stops it. In `reproducible` alignment the first term is left out: every window waits the whole
`lateness`, and the order of arrival within it cannot matter, not even for sparse text.

Rules. One thread owns a core and calls all of it; no lock. The same messages in the same order give the same
windows, and bad messages are counted, never raised. After `push` every window whose end the watermark has
passed has been returned once, or was counted as skipped. Returned windows are never changed afterwards, so
other threads may read them.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, TypeGuard

from perception.errors import ProfileError
from perception.features.window import CONTEXT_NS
from perception.fusion.audio_stream import AudioStream
from perception.fusion.conditions import Conditions, with_inferred
from perception.fusion.streams import MAX_FRAME_BYTES, CameraStream, Stream, TextStream
from perception.fusion.window import RefusedError, Window
from perception.messages import (
    AudioBlock,
    CameraFrame,
    ClockTick,
    CoreMark,
    Header,
    HeldInput,
    Message,
    reached_ns,
)
from perception.profile import FusionConfig, InputConfig
from perception.topics import lookup
from perception.units import MILLISECOND_NS, SECOND_NS, Counts

MAX_CUT_AT_ONCE: Final = 100
"""If more windows are due at once, the older ones are skipped and counted, not cut."""
MAX_TOPICS: Final = 64
"""Topics of patterns such as `text/*`; one more drops the topic with the oldest stamp."""
MAX_COUNTED: Final = 4 * MAX_TOPICS
"""Topics with counters of their own; further ones are counted by their pattern."""
RULES: Final = 2
"""Number of the current rules; marks store it, so that a recording is cut by the rules it was recorded with.

0: a leap is judged by the stamp alone, the first MAX_TOPICS topics stay, presence compares with the
last window, which may have been shed, and sound of any rate is resampled by exact filters. 1: a leap is
judged by the end of a message, old topics are dropped for new ones, presence compares with the last state,
and odd rates are resampled by the nearest filter of a table. 2: the condition of a signal makes its data
absent or suspect, and the stored frames of a camera have a bound in bytes.
"""
_CONDITIONS_SINCE: Final = 2
"""The first rules by which conditions are read, and by which the bytes of frames are bounded."""


class FusionCore:
    """Cuts aligned windows out of messages. Messages enter by `push` only."""

    def __init__(self, config: FusionConfig, counts: Counts | None = None, *, rules: int = RULES) -> None:
        """Audio windows start CONTEXT_NS before their nominal length: the resampler needs that sound.

        Args:
            config: the grid and the inputs.
            counts: counters to add to, where several cores cut one recording.
            rules: those of a recording; see RULES.
        """
        self.rules = rules
        self.hop_ns = round(config.hop_ms * MILLISECOND_NS)
        self.lateness_ns = round(config.lateness_ms * MILLISECOND_NS)
        self.config_hash = _decisive_hash(config)
        """Hash of all configuration that decides which windows given messages produce."""
        self.counts: Counts = defaultdict(Counter) if counts is None else counts
        self._waits_for_streams = config.alignment == "low-latency"
        self.max_leap_ns = round(config.max_leap_ms * MILLISECOND_NS)
        self._streams: dict[str, Stream] = {
            name: self._stream(name, item) for name, item in config.inputs.items()
        }
        self._clocked = [stream for stream in self._streams.values() if not isinstance(stream, TextStream)]
        self._routes: dict[str, list[Stream]] = {}
        self._newest_of_topic: dict[str, int] = {}
        self._newest_ns: int | None = None
        self._next_tick: int | None = None
        self._final_ns = -math.inf
        self._first_ns: int | None = None
        """Event time of the first message."""

    def _stream(self, name: str, config: InputConfig) -> Stream:
        kind = lookup(config.topic.replace("*", "any")).prefix
        conditions = Conditions(config if self.rules >= _CONDITIONS_SINCE else None)
        if kind == "text":
            return TextStream(config.topic, ttl_ns=round(config.ttl_ms * MILLISECOND_NS), count=self.count)
        if "*" in config.topic:
            raise ProfileError(f"fusion.inputs.{name}: '{config.topic}': only text topics may have a '*'")
        if kind == "camera":
            max_age_ns = round(config.max_age_ms * MILLISECOND_NS)
            return CameraStream(
                config.topic,
                hop_ns=self.hop_ns,
                max_age_ns=max_age_ns,
                count=self.count,
                conditions=conditions,
                max_bytes=MAX_FRAME_BYTES if self.rules >= _CONDITIONS_SINCE else math.inf,
            )
        if kind == "microphone":
            nominal_ns = round(config.length_ms * MILLISECOND_NS)
            length_ns = nominal_ns + CONTEXT_NS
            history_ns = length_ns + self.lateness_ns + self.hop_ns + self.max_leap_ns + SECOND_NS
            counts = self.counts[config.topic]
            return AudioStream(
                config.topic,
                length_ns=length_ns,
                history_ns=history_ns,
                counts=counts,
                exact=not self.rules,
                conditions=conditions,
                nominal_ns=nominal_ns,
            )
        raise ProfileError(
            f"fusion.inputs.{name}: '{config.topic}' cannot be fused; camera, microphone, text can"
        )

    @property
    def watermark_ns(self) -> int | None:
        """Event time up to which windows are final; None before the first message."""
        if self._newest_ns is None:
            return None
        latest_ns = self._newest_ns - self.lateness_ns
        if not self._waits_for_streams or not self._clocked:
            return latest_ns
        oldest_ns = min(s.newest_ns if s.newest_ns is not None else latest_ns for s in self._clocked)
        return max(oldest_ns, latest_ns)

    @property
    def deadline_ns(self) -> int | None:
        """Host time at which a ClockTick must be pushed if nothing arrives, None before the first message.

        The next window is due then, or, where a hop is long, new stamps would be refused as leaps.
        """
        if self._next_tick is None or self._newest_ns is None:
            return None
        due_ns = self._next_tick * self.hop_ns + self.lateness_ns
        return min(due_ns, self._newest_ns + self.max_leap_ns)

    @property
    def newest_of_topic(self) -> Mapping[str, int]:
        """Newest stamp of each topic."""
        return self._newest_of_topic

    def takes(self, topic: str) -> bool:
        """Whether one of the inputs reads this topic."""
        return topic in self._routes or any(fnmatchcase(topic, s.topic) for s in self._streams.values())

    def push(self, message: Message[Header]) -> list[Window]:
        """Add one message; return the windows it completes, oldest first.

        A bad message (its stamp runs backwards, it reaches too far ahead, its samples are not finite) is
        refused and counted in `counts`, never raised.
        """
        header = message.header
        try:
            reach_ns = header.stamp_ns if isinstance(header, ClockTick) else self._admit(message)
        except RefusedError as refusal:
            self.count(message.topic, str(refusal))
            return []
        if self._newest_ns is None or self._next_tick is None:
            self._next_tick = header.stamp_ns // self.hop_ns + 1
            self._first_ns = header.stamp_ns
            self._newest_ns = reach_ns
        elif reach_ns > self._newest_ns:
            self._newest_ns = reach_ns
        # the watermark is never beyond the newest time reached
        return [] if self._newest_ns < self._next_tick * self.hop_ns else self._cut(self._next_tick)

    def count(self, topic: str, reason: str) -> None:
        """Count a message, refused or late, by its topic, or by its pattern if there are too many topics."""
        known = topic in self._routes or len(self.counts) < MAX_COUNTED
        self.counts[topic if known else self._pattern(topic)][reason] += 1

    def expects(self, message: Message[Any]) -> TypeGuard[Message[CameraFrame]]:
        """Return whether the next window will likely use the frame just pushed."""
        if not isinstance(message.header, CameraFrame):
            return False
        for stream in self._routes.get(message.topic, ()):
            if isinstance(stream, CameraStream) and stream.expects(message):
                return True
        return False

    def mark(self) -> CoreMark:
        """Return the position of this core in its streams, without pixels and samples."""
        return CoreMark(
            config_hash=self.config_hash,
            newest_ns=self._newest_ns,
            next_tick=self._next_tick,
            newest_of_topic=dict(self._newest_of_topic),
            inputs={name: stream.mark() for name, stream in self._streams.items()},
            rules=self.rules,
            first_ns=self._first_ns,
        )

    def resume(self, mark: CoreMark, find: Callable[[HeldInput], Message[Any]]) -> None:
        """Continue from the mark of another core of the same configuration; nothing was pushed into this one.

        `find` returns the frames and commands that the mark names. Sound from before the mark is missing.

        Raises:
            ValueError: the mark is of a core with another configuration.
        """
        if (mark.config_hash, mark.rules) != (self.config_hash, self.rules):
            raise ValueError("the mark is of a core with another configuration")
        self._newest_ns, self._next_tick = mark.newest_ns, mark.next_tick
        self._first_ns = mark.first_ns
        self._newest_of_topic = dict(mark.newest_of_topic)
        for name, stream in self._streams.items():
            if isinstance(stream, AudioStream):
                stream.resume(mark.inputs[name])
            else:
                stream.resume(mark.inputs[name], find)

    def _admit(self, message: Message[Any]) -> int:
        """Check the stamp against its topic and the newest of all, then push the message into its streams.

        Return the event time that the message reaches. Raise RefusedError.
        """
        topic, stamp_ns = message.topic, message.header.stamp_ns
        streams = self._routes.get(topic) or self._route(topic)
        newest_ns = self._newest_of_topic.get(topic)
        if newest_ns is not None and stamp_ns <= newest_ns:
            raise RefusedError("stamp backwards")
        reach_ns = reached_ns(message.header)
        if self._newest_ns is not None and reach_ns > (limit_ns := self._newest_ns + self.max_leap_ns):
            reason = leap(message.header, limit_ns)
            if self.rules or reason == "stamp ahead":
                raise RefusedError(reason)
        for stream in streams:
            stream.push(message)
        self._newest_of_topic[topic], self._routes[topic] = stamp_ns, streams
        if newest_ns is None and self.rules:
            self._drop_oldest_topic()
        # a window includes a frame or text exactly at its end, but sound only before it
        if stamp_ns + isinstance(message.header, AudioBlock) <= self._final_ns:
            self.count(topic, "late")
        return reach_ns

    def _route(self, topic: str) -> list[Stream]:
        streams = [s for s in self._streams.values() if fnmatchcase(topic, s.topic)]
        if not streams or (not self.rules and len(self._routes) >= MAX_TOPICS):
            raise RefusedError("no such input" if not streams else "too many topics")
        return streams

    def _drop_oldest_topic(self) -> None:
        """Drop the topic with the oldest stamp if there are too many; add its counts to its pattern's."""
        own = self._newest_of_topic.keys() - {stream.topic for stream in self._streams.values()}
        if len(own) > MAX_TOPICS:
            oldest = min(own, key=lambda topic: (self._newest_of_topic[topic], topic))
            del self._newest_of_topic[oldest]
            self._routes.pop(oldest, None)
            counts = self.counts[self._pattern(oldest)]
            counts.update(self.counts.pop(oldest, Counter()))
            counts["topics forgotten"] += 1

    def _pattern(self, topic: str) -> str:
        return next((s.topic for s in self._streams.values() if fnmatchcase(topic, s.topic)), topic)

    def _cut(self, next_tick: int) -> list[Window]:
        """Return the windows from `next_tick` on that end at or before the watermark."""
        watermark_ns = self.watermark_ns
        assert watermark_ns is not None
        last_tick = watermark_ns // self.hop_ns
        if last_tick < next_tick:
            return []
        first_tick = max(next_tick, last_tick - MAX_CUT_AT_ONCE + 1)
        if first_tick > next_tick:
            self.counts["windows"]["skipped"] += first_tick - next_tick
        self._next_tick = last_tick + 1
        self._final_ns = last_tick * self.hop_ns
        return [self._window(tick) for tick in range(first_tick, last_tick + 1)]

    def _window(self, tick: int) -> Window:
        end_ns = tick * self.hop_ns
        inputs = {name: stream.cut(end_ns) for name, stream in self._streams.items()}
        if self.rules >= _CONDITIONS_SINCE:
            since_ns = end_ns - (self._first_ns or 0)
            inputs = {name: with_inferred(item, since_ns) for name, item in inputs.items()}
        return Window(tick, end_ns, inputs)


def leap(header: Header, limit_ns: int) -> str:
    """Return why a message reaches beyond `limit_ns`, empty if it does not."""
    if header.stamp_ns > limit_ns:
        return "stamp ahead"
    return "end ahead" if reached_ns(header) > limit_ns else ""


def _decisive_hash(config: FusionConfig) -> str:
    decisive = {"hop_ms", "lateness_ms", "alignment", "max_leap_ms", "inputs"}
    text = json.dumps(config.model_dump(mode="json", include=decisive), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
