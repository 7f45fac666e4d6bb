"""Read a ROS 1 bag through the interface `bag.Bag`."""

from collections.abc import Collection, Iterator
from pathlib import Path

from rosbags.rosbag1 import Reader, ReaderError

from perception.errors import SessionError
from perception.session.convert.bag import BagStream, Raw


class Ros1Bag:
    """An open ROS 1 bag.

    Raises:
        SessionError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._reader = Reader(path)
        self.damage: list[str] = []
        try:
            self._reader.open()
        except (ReaderError, OSError) as error:
            raise SessionError(f"{path}: not a rosbag that can be read: {error}") from error
        self._by_connection = {
            connection.id: BagStream(
                connection.topic, connection.msgtype, "ros1", connection.msgdef.data, "ros1msg"
            )
            for connection in self._reader.connections
        }
        self.streams = list(self._by_connection.values())

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def times_ns(self) -> tuple[int, int]:
        """First and last time of receipt."""
        return self._reader.start_time, self._reader.end_time

    def messages(self, streams: Collection[BagStream]) -> Iterator[Raw]:
        """Yield the messages of `streams` in order of receipt."""
        wanted = [one for one in self._reader.connections if self._by_connection[one.id] in streams]
        try:
            for connection, time_ns, data in self._reader.messages(wanted) if wanted else ():
                yield time_ns, self._by_connection[connection.id], data
        except (ReaderError, ValueError, EOFError, OSError) as error:
            self.damage.append(f"cannot be read to its end: {error}")
