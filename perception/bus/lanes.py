"""A subscriber's side of the lane: asks for it, opens rings, and gives it up where they cannot be opened.

A reader asks by a second subscription, `~NAME/` before the beginning of topics: its publishers find the
socket of that name in the directory of their domain, unless they are on another host, and from then on send
there and no longer through ZeroMQ.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

import zmq

from perception.bus import lane
from perception.bus.datagram import Receiver

_LOG: Final = logging.getLogger(__name__)


class Lanes:
    """What one subscriber receives from publishers on its host."""

    def __init__(self, socket: zmq.Socket[bytes], directory: Path | None) -> None:
        """Open in the directory of the domain; with None, all messages come through the ZeroMQ socket."""
        self._socket = socket
        self._asked: list[str] = []
        self._readers: dict[bytes, lane.Reader] = {}
        self.receiver: Receiver | None = None
        if directory is not None:
            with contextlib.suppress(OSError):
                self.receiver = Receiver(directory)

    def subscribe(self, beginning: str) -> None:
        """Subscribe to all topics that begin so, through the lane where it is of use."""
        self._socket.subscribe(beginning)
        if self.receiver is not None and lane.carries(beginning):
            # ZeroMQ tells publishers in order of bytes, '~' after all letters, so that this one prevails
            self._asked.append(f"~{self.receiver.name}/{beginning}")
            self._socket.subscribe(self._asked[-1])

    def receive(self) -> tuple[list[bytes | memoryview], bool] | None:
        """Return the parts of the message that came first, and whether its payload is there; None if none."""
        datagram = self.receiver.receive() if self.receiver is not None else None
        if datagram is None:
            return None
        parts, place, file = datagram
        if file is not None:
            self._open(parts[0], place, file)
        if place is None:
            return [*parts], True
        reader = self._readers.get(parts[0])
        payload = None if reader is None else reader.payload(place)
        return ([*parts], False) if payload is None else ([*parts, payload], True)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.receiver is not None:
            self.receiver.close()

    def _open(self, topic: bytes, place: lane.Place | None, file: int) -> None:
        try:
            if place is not None:
                self._readers[topic] = lane.Reader(file, place)
        except (OSError, ValueError):
            self._readers.pop(topic, None)
            self._give_up(topic)
        finally:
            os.close(file)

    def _give_up(self, topic: bytes) -> None:
        if self._asked:
            name = topic.decode("utf-8", "replace")
            _LOG.warning("%s: cannot open its shared memory; payloads come through the socket", name)
        for beginning in self._asked:
            self._socket.unsubscribe(beginning)
        self._asked.clear()
