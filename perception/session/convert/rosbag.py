"""Export a session as a rosbag2, without ROS; `ros_messages` converts the messages."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from perception.io.beside import beside
from perception.messages import AudioBlock, FusedState
from perception.session.convert import ros_messages as ros
from perception.session.convert.incoming import UnusableError
from perception.session.file.reader import Session, nothing_to_export

_BAG_VERSION: Final = 9


def write(session: Session, target: Path | str, topics: Sequence[str] = ("*",)) -> Iterator[str]:
    """Write a session as a rosbag2 (MCAP) into the new folder `target`; yield lines about the result.

    The zero of the session is stored in the custom data `perception.zero.stamp_ns` and `.log_ns`.
    """
    store, counts, refused = ros.types(), Counter[str](), Counter[str]()
    connections: dict[str, Connection] = {}
    described: set[str] = set()
    with (
        beside(target) as folder,
        Writer(folder, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as bag,
    ):
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
                if isinstance(message.header, FusedState):
                    for found in ros.detections(store, message.topic, message.header):
                        put(found, message.received_ns)
            except UnusableError as error:
                refused[f"{message.topic}: left out: {error}"] += 1
        if not counts:
            raise nothing_to_export(session, topics)
    yield from (f"{topic}: {number} messages" for topic, number in counts.items())
    yield from (f"{text} ({number} times)" for text, number in refused.items())
