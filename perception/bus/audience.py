"""Who listens to one topic, and whether by the lane or through ZeroMQ."""

import select
from pathlib import Path
from typing import Final

import zmq

from perception.bus import packet

_POLLIN: Final = int(zmq.POLLIN)  # plain numbers: arithmetic of enums is slow
_EVENTS: Final = int(zmq.EVENTS)
_MAX_NOTE_BYTES: Final = 1024  # readers send subscriptions only; a CURVE handshake takes some 300


class Audience:
    """Answers the subscriptions that reach an XPUB socket.

    A reader that subscribes to a topic and then asks for the lane gets one of them only: ZeroMQ's manual
    mode lets the publisher decide what each connection is subscribed to.
    """

    def __init__(self, socket: zmq.Socket[bytes], topic: str, directory: Path) -> None:
        """Watch `socket`, which publishes `topic`; readers on this host listen in the runtime directory."""
        socket.set(zmq.XPUB_MANUAL, 1)
        socket.set(zmq.MAXMSGSIZE, _MAX_NOTE_BYTES)
        self._socket = socket
        self._notes = select.poll()
        self._notes.register(int(socket.get(zmq.FD)), select.POLLIN)
        self.used = True
        """Whether the socket has been used since `update`: then it may hide that there are notes."""
        self._topic = topic.encode()
        self._directory = directory
        self.plain = 0
        """Subscriptions that are served through ZeroMQ."""
        self.near: dict[bytes, packet.Sender] = {}
        """Readers that are served by the lane, in order of name: those who are to miss nothing come first.

        Whoever is served later can then have nothing that a recorder lacks, even if this process is killed.
        """
        self.wants_every = False
        """Whether a reader on this host is to miss nothing."""

    def __len__(self) -> int:
        return self.plain + len(self.near)

    def update(self) -> None:
        """Take in what readers have sent since the last call."""
        if not self.used and not self._notes.poll(0):  # a fifth of the time of asking ZeroMQ
            return
        self.used = False
        while not self._socket.closed and int(self._socket.get(_EVENTS)) & _POLLIN:
            note = self._socket.recv()
            if note[:1] not in (b"\0", b"\1"):
                continue
            joins, beginning = note[0] == 1, note[1:]
            if beginning[:1] == b"~":
                name, _, beginning = beginning[1:].partition(b"/")
                if self._topic.startswith(beginning):
                    self._change_lane(joins, name, beginning)
            elif self._topic.startswith(beginning):
                self.plain += 1 if joins else -1
                self._set(joins, beginning)

    def close(self) -> None:
        """Let go of the readers on this host."""
        for sender in self.near.values():
            sender.close()
        self.near.clear()

    def _change_lane(self, joins: bool, name: bytes, beginning: bytes) -> None:
        if joins == (name in self.near):
            return
        if joins:
            try:
                self.near[name] = packet.Sender(packet.path(self._directory, name), self._topic)
            except OSError:
                return  # a reader elsewhere
            self.near = dict(sorted(self.near.items()))
            self.plain -= 1
        else:
            self.near.pop(name).close()
            self.plain += 1
        self.wants_every = packet.wants_every(next(iter(self.near), b""))
        self._set(not joins, beginning)

    def _set(self, joins: bool, beginning: bytes) -> None:
        self._socket.set(zmq.SUBSCRIBE if joins else zmq.UNSUBSCRIBE, beginning)
