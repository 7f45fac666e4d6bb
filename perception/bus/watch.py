"""Watches a ZeroMQ socket's connections: those that ZeroMQ abandons, and failed handshakes."""

from collections import Counter
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from perception.bus.peers import Peers

_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


_WRONG: Final = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED: Final = _WRONG | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_OPENED: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_STATUS: Final = zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED
_CERTAIN: Final = 2
"""Failures after which a handshake counts as failed: one may fail because the peer ends during it."""


class Watch:
    """Reports endpoints that must be connected again.

    ZeroMQ reconnects after a lost connection, but not after a protocol error, such as a message over
    MAXMSGSIZE: the publisher's next incarnation would not be received. The thread that uses the socket calls
    every method.
    """

    def __init__(self, socket: zmq.Socket[bytes], peers: Peers) -> None:
        """Watch `socket`; add its TCP connections to `peers`, and remove those that end."""
        self._socket = socket
        self._peers = peers
        self._events = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | _OPENED | _STATUS)
        self._down: set[str] = set()
        self._failures: Counter[str] = Counter()

    def abandoned(self) -> set[str]:
        """Return the endpoints that were down at the previous call and were not retried since."""
        before = self._down.copy()
        while int(self._events.get(_EVENTS)) & _POLLIN:
            event = recv_monitor_message(self._events)
            endpoint = event["endpoint"].decode()
            self._count(endpoint, event["event"])
            if event["event"] & _OPENED and endpoint.startswith("tcp:"):
                self._peers.opened(int(event["value"]))
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._peers.closed(int(event["value"]))
                self._down.add(endpoint)
            else:
                self._down.discard(endpoint)
                before.discard(endpoint)
        abandoned = before & self._down
        self._down -= abandoned
        return abandoned

    def failed_handshakes(self) -> set[str]:
        """Return the endpoints at which handshakes failed, up to the last call of `abandoned`."""
        return {endpoint for endpoint, count in self._failures.items() if count >= _CERTAIN}

    def _count(self, endpoint: str, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            del self._failures[endpoint]
        elif event & _FAILED and endpoint.startswith("tcp:"):  # ipc endpoints use no keys
            self._failures[endpoint] += _CERTAIN if event & _WRONG else 1

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()
        self._events.close()
