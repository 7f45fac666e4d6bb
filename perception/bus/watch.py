"""Watches a socket's connections: those that ZeroMQ gives up for good, and strangers."""

from collections import Counter
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


_WRONG: Final = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED: Final = _WRONG | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_CERTAIN: Final = 2
"""A handshake may fail once because the other process ends in the middle of it."""


class Watch:
    """Tells which endpoints must be connected anew.

    ZeroMQ retries after a lost connection, but not after a breach of protocol, such as a message over
    MAXMSGSIZE: without this, the publisher's next incarnation would not be heard.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._events = socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED
        )
        self._down: set[str] = set()
        self._failures: Counter[str] = Counter()

    def given_up(self) -> set[str]:
        """Return the endpoints that were down at the call before and that nobody has retried since."""
        before = self._down.copy()
        while int(self._events.get(_EVENTS)) & _POLLIN:
            event = recv_monitor_message(self._events)
            endpoint = event["endpoint"].decode()
            self._count(endpoint, event["event"])
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._down.add(endpoint)
            else:
                self._down.discard(endpoint)
                before.discard(endpoint)
        given_up = before & self._down
        self._down -= given_up
        return given_up

    def strangers(self) -> set[str]:
        """Return the endpoints at which handshakes failed, up to the last call of `given_up`."""
        return {endpoint for endpoint, count in self._failures.items() if count >= _CERTAIN}

    def _count(self, endpoint: str, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            del self._failures[endpoint]
        elif event & _FAILED and endpoint.startswith("tcp:"):  # on this host nobody needs keys
            self._failures[endpoint] += _CERTAIN if event & _WRONG else 1

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()
        self._events.close()
