"""A subscriber's side of the lane: asks for it, opens rings, and gives it up where they cannot be opened."""

import logging
from typing import Final

import zmq

from perception.bus import lane
from perception.messages import Payload

_LOG: Final = logging.getLogger(__name__)


class Lanes:
    """The rings that one SUB socket's publishers have."""

    def __init__(self, socket: zmq.Socket[bytes], *, wanted: bool) -> None:
        """Without `wanted`, all payloads come through the socket, which holds more than a ring has slots."""
        self._socket = socket
        self._prefix = lane.prefix() if wanted else None
        self._asked: list[bytes] = []
        self._readers: dict[str, lane.Reader] = {}

    def subscribe(self, beginning: str) -> None:
        """Subscribe to all topics that begin so, through the lane where it is of use."""
        self._socket.subscribe(beginning)
        if self._prefix is not None and lane.carries(beginning):
            # ZeroMQ tells publishers in order of bytes, '~' after all letters, so that this one prevails
            self._asked.append(self._prefix + beginning.encode())
            self._socket.subscribe(self._asked[-1])

    def strip(self, parts: list[Payload]) -> bool:
        """Leave the bare topic as the first of `parts`; return whether the message came by the lane."""
        if self._prefix is None or parts[0][:1] != b"~":
            return False
        parts[0] = parts[0][len(self._prefix) :]
        return True

    def resolve(self, topic: str, parts: list[Payload]) -> bool:
        """Put the payload where it belongs in `parts`; False if it has been overwritten meanwhile."""
        if len(parts) not in (3, 4) or not len(parts[-1]):
            del parts[3:]
            return True
        try:
            place = lane.Place.unpack(parts.pop())
        except ValueError:
            return False
        reader = self._reader(topic, place)
        if len(parts) == 3:
            return True
        payload = reader.payload(place) if reader is not None else None
        if payload is None:
            return False
        parts.append(payload)
        return True

    def _reader(self, topic: str, place: lane.Place) -> lane.Reader | None:
        reader = self._readers.get(topic)
        if reader is None or reader.ring != place.ring:
            reader = lane.open_ring(place)
            if reader is None:
                self._give_up(topic)
            else:
                self._readers[topic] = reader
        return reader

    def _give_up(self, topic: str) -> None:
        if self._asked:
            _LOG.warning("%s: cannot open its shared memory; payloads come through the socket", topic)
        for beginning in self._asked:
            self._socket.unsubscribe(beginning)
        self._asked.clear()
