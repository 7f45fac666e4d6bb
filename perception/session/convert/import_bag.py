"""Import a recording of ROS or Foxglove as a session; `incoming` converts the messages."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Final

from perception.errors import SessionError
from perception.errors.credentials import harmless
from perception.io.progress import progress
from perception.session.convert import bags, foxglove
from perception.session.convert.bag import Bag, BagStream
from perception.session.convert.incoming import (
    AUDIO_INFO,
    ROS_PREFIXES,
    Converted,
    Numbered,
    UnusableError,
    topic_for,
)
from perception.session.convert.selection import EVERYTHING, Selection
from perception.session.file.writer import atomic_session
from perception.session.file.zero import NAME, Zero

_SOURCE: Final = "rosbag#import"
_REASONS: Final = 20
"""Number of reasons listed; damaged bytes may give a different one per message."""
_ROS: Final = ("cdr", "ros1")
_ZERO: Final = re.compile(r"perception\.zero\.(\w+): '?(-?\d+)")
_ENDINGS: Final = ("/compressed", "/image_raw", "/image", "/audio_stamped", "/audio")
Converter = Callable[[bytes, int], Converted]


def read(
    source: Path | str,
    target: Path | str,
    selection: Selection = EVERYTHING,
    audio_rate_hz: int | None = None,
) -> Iterator[str]:
    """Write a recording to the session `target`; yield lines about the result.

    Args:
        source: an MCAP file, a db3 file, a ROS 1 bag, or a folder of these.
        target: file to write.
        selection: streams and time to import, and their topics.
        audio_rate_hz: sample rate of sound that the bag does not describe; it is read as S16LE, mono.

    Raises:
        SessionError: `source` cannot be read or holds nothing usable, or `target` exists.
    """
    counts, refused = Counter[str](), Counter[str]()
    source = Path(source)
    with bags.opened(source) as bag, atomic_session(target) as writer, progress("importing") as advance:
        streams = _streams(bag, source, selection, audio_rate_hz)
        begin_ns, end_ns = selection.span_ns(*bag.times_ns)
        if (zero := _exported_zero(source)) is not None:
            writer.set_zero(zero.later(max(begin_ns - zero.log_ns, 0)))
        for time_ns, stream, data in bag.messages(streams.keys()):
            advance()
            if not begin_ns <= time_ns < end_ns:
                continue
            try:
                message = streams[stream].message(data, time_ns)
            except UnusableError as error:
                refused[f"{stream.topic}: left out: {error}"] += 1
                continue
            writer.write(message)
            counts[message.topic] += 1
        notes = _notes(bag, refused)
        if not counts:
            raise SessionError(f"{source}: nothing to import: {'; '.join(notes) or 'it holds no messages'}")
        kind = "rosbag" if any(stream.encoding in _ROS for stream in streams) else "foxglove"
        writer.add_metadata("imported", {"from": str(source), "kind": kind, "notes": notes})
    yield from (f"{topic}: {number} messages" for topic, number in counts.items())
    yield from notes


def _notes(bag: Bag, refused: Counter[str]) -> list[str]:
    """Return lines about what was not imported."""
    named = refused.most_common(_REASONS)
    lines = [f"{text} ({number} times)" for text, number in named]
    if rest := refused.total() - sum(number for _, number in named):
        lines.append(f"{rest} more messages left out for other reasons")
    lines += [f"damage: {text}" for text in bag.damage]
    lines += [
        f"{one.topic}: left out: {kind_of(one)} has no counterpart"
        for one in bag.streams
        if prefix_of(one) is None and _type(one) != AUDIO_INFO
    ]
    return [harmless(line) for line in lines]


def _exported_zero(source: Path) -> Zero | None:
    """Return the zero of the session that this bag was exported from, None if it is no export."""
    described = source / "metadata.yaml"
    if not described.is_file():
        return None
    return Zero.stored({NAME: dict(_ZERO.findall(described.read_text("utf-8", "replace")))})


def _streams(
    bag: Bag, source: Path, selection: Selection, audio_rate_hz: int | None
) -> dict[BagStream, Numbered]:
    """Return the converter of every selected stream, each to its own topic."""
    usable = sorted((one for one in bag.streams if prefix_of(one)), key=lambda one: (one.topic, one.type))
    if not usable:
        types = ", ".join(sorted(set(map(kind_of, bag.streams))))
        damage = "".join(f"; damage: {text}" for text in bag.damage)
        raise SessionError(f"{source}: no camera, sound or text in it; it holds {types or 'nothing'}{damage}")
    defaults: list[str] = []
    for stream in usable:
        base = default_topic(stream)
        names = (base if n == 1 else f"{base}-{n}" for n in count(1))
        defaults.append(next(name for name in names if name not in defaults))
    chosen = selection.choose([(one.topic, topic) for one, topic in zip(usable, defaults, strict=True)])
    wanted = {stream: topic for stream, topic in zip(usable, chosen, strict=True) if topic is not None}
    ros = _ros_converters(bag, wanted, audio_rate_hz)
    return {
        stream: Numbered(topic, ros.get(stream) or foxglove.converter(stream.type, stream.encoding), _SOURCE)
        for stream, topic in wanted.items()
    }


def _ros_converters(
    bag: Bag, wanted: Mapping[BagStream, str], audio_rate_hz: int | None
) -> dict[BagStream, Converter]:
    if not any(stream.encoding in _ROS for stream in wanted):
        return {}
    from perception.session.convert import ros_messages as ros

    infos: dict[str, Any] = {}
    described = [one for one in bag.streams if _type(one) == AUDIO_INFO]
    readers = {stream: ros.deserializer(stream) for stream in [*wanted, *described]}
    for _, stream, data in bag.messages(described) if described else ():
        namespace = str(PurePosixPath(stream.topic).parent)
        if namespace not in infos:
            with suppress(UnusableError):
                infos[namespace] = readers[stream](data)
    return {
        stream: ros.Converter(
            topic,
            _type(stream),
            readers[stream],
            infos.get(str(PurePosixPath(stream.topic).parent)),
            audio_rate_hz,
        )
        for stream, topic in wanted.items()
        if stream.encoding in _ROS
    }


def prefix_of(stream: BagStream) -> str | None:
    """Return the topic prefix for a stream, None if it cannot be converted."""
    if stream.encoding in _ROS:
        return ROS_PREFIXES.get(_type(stream))
    return foxglove.PREFIXES.get(stream.type) if stream.encoding in foxglove.ENCODINGS else None


def default_topic(stream: BagStream) -> str:
    """Return the topic for a stream: its own name if valid, else `camera/NAME` or the like."""
    name, prefix = stream.topic.strip("/"), prefix_of(stream) or ""
    if prefix != "text":
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
    return topic_for(name, prefix)


def _type(stream: BagStream) -> str:
    """Return the type of a stream as in ROS 2; ROS 1 omits the folder."""
    package, _, name = stream.type.rpartition("/")
    return f"{package}/msg/{name}" if stream.encoding == "ros1" and "/" not in package else stream.type


def kind_of(stream: BagStream) -> str:
    """Return type and encoding of a stream, for people."""
    return f"{stream.type or 'a message without schema'} ({stream.encoding or 'unknown encoding'})"
