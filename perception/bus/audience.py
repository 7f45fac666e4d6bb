"""Who listens to one topic, and whether through shared memory or not."""

from typing import Final

import zmq

from perception.bus import lane

_MAX_NOTE_BYTES: Final = 1024  # readers send subscriptions only; a CURVE handshake takes some 300


class Audience:
    """Answers the subscriptions that reach an XPUB socket.

    A reader that subscribes to a topic and then to the same on this host's lane gets one of them only:
    ZeroMQ's manual mode lets the publisher decide what each connection is subscribed to.
    """

    def __init__(self, socket: zmq.Socket[bytes], topic: str) -> None:
        socket.set(zmq.XPUB_MANUAL, 1)
        socket.set(zmq.MAXMSGSIZE, _MAX_NOTE_BYTES)
        self._socket = socket
        self._topic = topic.encode()
        self._prefix = lane.prefix() if lane.carries(topic) else None
        self.lane_topic = b"" if self._prefix is None else self._prefix + self._topic
        self.plain = 0
        """Subscriptions that want payloads inline."""
        self.lane = 0
        """Subscriptions that want the place of large payloads."""
        self.newcomers = False
        """Whether there are readers on the lane that have not been told yet where the ring is."""

    def update(self) -> None:
        """Take in what readers have sent since the last call."""
        while not self._socket.closed and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            note = self._socket.recv()
            if note[:1] not in (b"\0", b"\1"):
                continue
            joins, beginning = note[0] == 1, note[1:]
            if self._prefix is not None and beginning.startswith(self._prefix):
                self._change_lane(joins, beginning, beginning[len(self._prefix) :])
            elif self._topic.startswith(beginning):
                self.plain += 1 if joins else -1
                self._set(joins, self._inline(beginning))

    def _change_lane(self, joins: bool, beginning: bytes, inline: bytes) -> None:
        if not self._topic.startswith(inline):
            return
        change = 1 if joins else -1
        self.lane += change
        self.plain -= change
        self.newcomers |= joins
        self._set(not joins, self._inline(inline))
        self._set(joins, beginning)

    def _inline(self, beginning: bytes) -> bytes:
        # a reader of everything is not meant to get the lane as well
        return beginning or self._topic[:1]

    def _set(self, joins: bool, beginning: bytes) -> None:
        self._socket.set(zmq.SUBSCRIBE if joins else zmq.UNSUBSCRIBE, beginning)
