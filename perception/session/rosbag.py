"""Sessions and rosbag2 files, both ways, without ROS: see `ros_messages` for what becomes what."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Final

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag2 import ReaderError, StoragePlugin, Writer

from perception.errors import SessionError
from perception.messages import AudioBlock
from perception.session import ros_messages as ros
from perception.session.convert.selection import EVERYTHING, Selection
from perception.session.reader import Session
from perception.session.writer import whole

_BAG_VERSION: Final = 9


def write(session: Session, target: Path, topics: Sequence[str] = ("*",)) -> Iterator[str]:
    """Write a session as a rosbag2 (MCAP) into the new folder `target`; yield what came of it, in lines.

    The session's zero is in the bag's custom data, `perception.zero.stamp_ns` and `.log_ns`.
    """
    store, counts, refused = ros.types(), Counter[str](), Counter[str]()
    connections: dict[str, Connection] = {}
    described: set[str] = set()
    with Writer(target, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as bag:
        for name, value in session.zero.as_metadata().items():
            bag.set_custom_data(f"perception.zero.{name}", str(value))

        def put(out: ros.Outgoing, time_ns: int) -> None:
            if out.topic not in connections:
                connections[out.topic] = bag.add_connection(out.topic, out.type, typestore=store)
            bag.write(connections[out.topic], time_ns, store.serialize_cdr(out.message, out.type))
            counts[out.topic] += 1

        for message in session.messages(topics):
            if isinstance(message.header, AudioBlock) and message.topic not in described:
                described.add(message.topic)
                put(ros.sound_info(store, message.topic, message.header), message.received_ns)
            try:
                put(ros.encode(store, message), message.received_ns)
            except ros.UnusableError as error:
                refused[f"{message.topic}: left out: {error}"] += 1
    yield from (f"{topic}: {number} messages" for topic, number in counts.items())
    yield from (f"{text} ({number} times)" for text, number in refused.items())


def read(source: Path, target: Path, selection: Selection = EVERYTHING) -> Iterator[str]:
    """Make the session `target` of a rosbag; yield what came of it, in lines.

    Args:
        source: folder of a rosbag2, its file, or a ROS 1 bag.
        target: file to write.
        selection: what to take, and under which topics.

    Raises:
        SessionError: `source` is no rosbag or holds nothing that can be used, `target` exists.
    """
    counts, refused = Counter[str](), Counter[str]()
    try:
        with AnyReader([source], default_typestore=ros.types()) as bag:
            decoders = _decoders(bag)
            if not decoders:
                types = ", ".join(sorted({connection.msgtype for connection in bag.connections}))
                raise SessionError(f"{source}: no camera, sound or text in it; it holds {types or 'nothing'}")
            decoders = _selected(decoders, selection)
            begin_ns, end_ns = selection.span_ns(bag.start_time, bag.end_time)
            with whole(target) as writer:
                writer.add_metadata("imported", {"from": str(source), "kind": "rosbag"})
                wanted = [one for one in bag.connections if (one.topic, one.msgtype) in decoders]
                for connection, time_ns, data in bag.messages(wanted):
                    if not begin_ns <= time_ns < end_ns:
                        continue
                    decoder = decoders[connection.topic, connection.msgtype]
                    try:
                        message = decoder.decode(bag.deserialize(data, connection.msgtype), time_ns)
                        writer.write(message)
                        counts[message.topic] += 1
                    except ros.UnusableError as error:
                        refused[f"{connection.topic}: left out: {error}"] += 1
    except (AnyReaderError, ReaderError, OSError) as error:
        raise SessionError(f"{source}: not a rosbag that can be read: {error}") from error
    yield from (f"{topic}: {number} messages" for topic, number in counts.items())
    yield from (f"{text} ({number} times)" for text, number in refused.items())


def _decoders(bag: AnyReader) -> dict[tuple[str, str], ros.Decoder]:
    """Return a decoder for every ROS topic and type that can be used, each with a topic of its own."""
    sounds = _sounds(bag)
    decoders: dict[tuple[str, str], ros.Decoder] = {}
    taken: set[str] = set()
    for key in sorted({(connection.topic, connection.msgtype) for connection in bag.connections}):
        if key[1] not in ros.USABLE:
            continue
        base = ros.our_topic(*key)
        name = next(name for n in count(1) if (name := base if n == 1 else f"{base}-{n}") not in taken)
        taken.add(name)
        decoders[key] = ros.Decoder(name, sounds.get(str(PurePosixPath(key[0]).parent)))
    return decoders


def _selected(
    decoders: dict[tuple[str, str], ros.Decoder], selection: Selection
) -> dict[tuple[str, str], ros.Decoder]:
    """Return the wanted decoders, under the topics asked for."""
    topics = selection.choose([(key[0], decoder.topic) for key, decoder in decoders.items()])
    wanted = {}
    for (key, decoder), topic in zip(decoders.items(), topics, strict=True):
        if topic is not None:
            decoder.topic = topic
            wanted[key] = decoder
    return wanted


def _sounds(bag: AnyReader) -> dict[str, Any]:
    """Return the first `AudioInfo` of every namespace."""
    found: dict[str, Any] = {}
    infos = [connection for connection in bag.connections if connection.msgtype == ros.AUDIO_INFO]
    if infos:
        for connection, _, data in bag.messages(infos):
            namespace = str(PurePosixPath(connection.topic).parent)
            if namespace not in found:
                found[namespace] = bag.deserialize(data, connection.msgtype)
    return found
