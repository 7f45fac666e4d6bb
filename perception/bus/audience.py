"""The readers of one topic: which of them receive by a lane, and which through ZeroMQ.

A reader subscribes through ZeroMQ and then requests a lane (`perception.bus.lanes`). It must get each message
once, so the XPUB socket runs in manual mode: the publisher decides what each connection is subscribed to.

A peer may send any request. So the count of subscriptions decreases only when a connection ends, which ZeroMQ
itself reports, without its name. It is never too low: a message is sent through ZeroMQ if there may be a
reader.

`perception.bus.gate` decides which peers of a TCP endpoint may subscribe. ZeroMQ applies a subscription to
the connection that it believes the request came from, and a frame that is no request confuses it. So after
such a frame of a peer that may not subscribe, nothing is subscribed until all requests are read: the
connections whose requests are among them are ended, and their readers connect again.

Threads: not thread-safe. `Publisher._lock` is held during every call; all fields are guarded by it.
"""

import select
from collections import Counter
from pathlib import Path
from typing import Final

import zmq

from perception.bus import packet
from perception.bus.gate import Gate

_POLLIN: Final = int(zmq.POLLIN)  # plain numbers: arithmetic of enums is slow
_EVENTS: Final = int(zmq.EVENTS)
_MAX_REQUEST_BYTES: Final = 1024  # readers send subscriptions only; a CURVE handshake takes some 300
_MAX_BATCH: Final = 256
"""Requests per call, so that a flood delays a message by at most a millisecond; the others wait in ZeroMQ."""


class Audience:
    """Answers the subscription requests that reach an XPUB socket."""

    def __init__(self, socket: zmq.Socket[bytes], topic: str, directory: Path) -> None:
        """Read requests from `socket`, which publishes `topic`; lanes lead to sockets in `directory`."""
        socket.set(zmq.XPUB_MANUAL, 1)
        socket.set(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
        self._socket = socket
        self._misattributed = False
        """Whether ZeroMQ attributes requests to wrong connections; reset when no request is left."""
        self.gate: Gate | None = None
        """Decides who may subscribe; None: every peer."""
        self._confused = False
        """Whether a peer that may not subscribe made ZeroMQ do so; reset likewise."""
        self._unmade: Counter[bytes] = Counter()
        """Subscriptions that were refused and whose end ZeroMQ has not yet reported, by prefix."""
        self._poller = select.poll()
        self._poller.register(int(socket.get(zmq.FD)), select.POLLIN)
        self.socket_used = True
        """Whether the socket was used since `update`: its descriptor may then not signal requests."""
        self._topic = topic.encode()
        self._directory = directory
        self._joined = 0
        """Subscriptions of open connections, including those of `lane_readers`."""
        self._unread = False
        """Whether requests are left for the next call of `update`: a reader may be half processed."""
        self.lane_readers: dict[bytes, packet.Sender] = {}
        """Readers that receive by a lane, in order of name: lossless readers (recorders) first.

        So a message that any reader has received has also reached every recorder, even if this process is
        killed between two sends.
        """
        self.lossless = False
        """Whether a reader on this host must receive every message."""

    def __len__(self) -> int:
        return self.zmq_readers + len(self.lane_readers)

    @property
    def zmq_readers(self) -> int:
        """Number of subscriptions served through ZeroMQ, never too low.

        An unsubscribed one is still counted until its connection ends.
        """
        return max(self._joined - len(self.lane_readers), int(self._unread))

    def update(self) -> None:
        """Process the requests of readers since the last call."""
        if not self.socket_used and not self._poller.poll(0):  # five times as fast as reading zmq.EVENTS
            return
        self.socket_used = self._unread = True
        for _ in range(_MAX_BATCH):
            if self._socket.closed or not int(self._socket.get(_EVENTS)) & _POLLIN:
                self.socket_used = self._unread = self._misattributed = self._confused = False
                return
            self._handle(self._socket.recv(copy=False))

    def close(self) -> None:
        """Disconnect the lanes."""
        for sender in self.lane_readers.values():
            sender.close()
        self.lane_readers.clear()

    def _handle(self, frame: zmq.Frame) -> None:
        request = frame.bytes
        is_request = request[:1] in (b"\0", b"\1")
        if self.gate is not None and _is_from_peer(frame) and not self._admits(frame, is_request):
            return
        # ZeroMQ keeps a queue of connections beside the queue of requests and removes one for each frame
        # read. A frame that is no request shifts the two queues: the next connections then get the whole
        # topic.
        self._misattributed |= not is_request
        if self._misattributed:
            self._socket.set(zmq.SUBSCRIBE, self._topic)
        if not is_request:
            return
        joins, beginning = request[0] == 1, request[1:]
        if beginning[:1] == b"~":
            name, _, beginning = beginning[1:].partition(b"/")
            if self._topic.startswith(beginning) and not (joins and self._misattributed):
                self._change_lane(joins, name, beginning)
        elif self._topic.startswith(beginning):
            if joins or not _is_from_peer(frame):
                if not joins and self._unmade[beginning]:
                    self._unmade[beginning] -= 1
                    return
                self._joined += 1 if joins else -1
            self._set(joins, beginning)

    def _admits(self, frame: zmq.Frame, is_request: bool) -> bool:
        """Return whether a request may be processed; else its connection is ended."""
        assert self.gate is not None
        admitted = self.gate.admits(frame)
        if admitted and not self._confused:
            return True
        if admitted:
            self.gate.cut(frame)
        elif not is_request:
            self._confused = True
        beginning = frame.bytes[1:]
        if frame.bytes[:1] == b"\1" and self._topic.startswith(beginning):
            self._unmade[beginning] += 1  # requested twice: `_joined` then stays too high
        return False

    def _change_lane(self, joins: bool, name: bytes, beginning: bytes) -> None:
        if joins == (name in self.lane_readers):
            return
        if joins:
            try:
                self.lane_readers[name] = packet.Sender(packet.path(self._directory, name), self._topic)
            except OSError:
                return  # a reader on another host
            self.lane_readers = dict(sorted(self.lane_readers.items()))
        else:
            self.lane_readers.pop(name).close()
        self.lossless = packet.is_lossless(next(iter(self.lane_readers), b""))
        self._set(not joins, beginning)

    def _set(self, joins: bool, beginning: bytes) -> None:
        if not self._misattributed:
            self._socket.set(zmq.SUBSCRIBE if joins else zmq.UNSUBSCRIBE, beginning)


def _is_from_peer(frame: zmq.Frame) -> bool:
    """Return whether a peer sent this frame; ZeroMQ itself sends one when a peer's connection ends."""
    try:
        frame.get("Peer-Address")
    except zmq.ZMQError:
        return False
    return True
