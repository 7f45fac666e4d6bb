"""Time requests between hosts, and what a host serves: one ZeroMQ ROUTER per host, asked by DEALERs.

Wire: a request is one frame, the msgpack array `[kind, number]`; the answer is `[kind, number, ...]`:
    TIME    received_ns, answered_ns: the host clock when the request came and when the answer was sent
    TOPICS  map of the topics that readers on other hosts may connect to -> TCP port
A request is at most 32 bytes. What is no request is counted and gets no answer; so does a peer that sends
more than RATE_HZ, and what all peers together send beyond TOTAL_HZ. A peer that sends parts without an end is
disconnected. Peers need the keys of the host, as readers do.

Threads: one thread uses a `TimeServer`.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import zmq

from perception.bus import endpoints
from perception.bus.peers import Peers
from perception.bus.watch import Watch
from perception.errors import BusError
from perception.units import SECOND_NS, Clock
from perception.units.bounded import Recent
from perception.units.closing import Closing

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

TIME: Final = 1
TOPICS: Final = 2
MAX_REQUEST_BYTES: Final = 32
RATE_HZ: Final = 100
"""Requests per second of one peer: ten times what an estimate sends."""
TOTAL_HZ: Final = 2000
_BURST: Final = 32
_QUEUED: Final = 64
_MAX_FRAME_BYTES: Final = 1024  # of a handshake with keys, ZMTP 3.1
_MAX_BATCH: Final = 256
_UNFINISHED_BYTES: Final = 64 * 1024
"""How much a peer may send that is no whole message: more than a handshake."""
_HEARTBEAT_BYTES_PER_S: Final = 256
_CHECK_S: Final = 0.1
_SOURCE: Final = int(zmq.SRCFD)
_decode: Final = msgspec.msgpack.Decoder(tuple[int, int]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class Allowance:
    """Requests that a peer may still send: `rate_hz` per second, `burst` at once. Pure."""

    def __init__(self, rate_hz: float, burst: float, now_ns: int) -> None:
        self._rate_hz, self._burst = rate_hz, burst
        self._left, self._at_ns = burst, now_ns

    def take(self, now_ns: int) -> bool:
        """Return whether one more is allowed now."""
        gained = max(0, now_ns - self._at_ns) / SECOND_NS * self._rate_hz
        self._left, self._at_ns = min(self._burst, self._left + gained), now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True


class TimeServer(Closing):
    """Answers time requests of other hosts.

    Args:
        endpoint: `tcp://HOST:PORT` to bind; port `*` selects a free one.
        clock: host time in ns.
        ports: topics that this host serves to others -> TCP port.
        insecure: allow an endpoint off loopback without keys.
        keys: folder of CURVE keys; only peers with the same keys are answered.

    Raises:
        BusError: the endpoint is in use, malformed or unsafe.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        clock: Clock,
        ports: Mapping[str, int] | None = None,
        insecure: bool = False,
        keys: str | Path | None = None,
    ) -> None:
        endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
        self.counts: Counter[str] = Counter(answered=0, refused=0, disconnected=0)
        self._clock = clock
        self._ports = dict(ports or {})
        self._allowances: Recent[bytes, Allowance] = Recent()
        """By the name that ZeroMQ gave a peer's connection."""
        self._peers = Peers(_UNFINISHED_BYTES, _HEARTBEAT_BYTES_PER_S)
        self._next_check_s = 0.0
        self._all = Allowance(TOTAL_HZ, TOTAL_HZ / 2, clock())
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._watch = Watch(self._socket, self._peers)
        self._authenticator: ThreadAuthenticator | None = None
        try:
            self._bind(endpoint, keys)
        except BaseException:
            self.close()
            raise
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def serve(self, timeout_s: float) -> None:
        """Answer what has arrived; wait up to `timeout_s` for a first request."""
        if (now_s := time.monotonic()) >= self._next_check_s:
            self._next_check_s = now_s + _CHECK_S
            self._watch.abandoned()
            self.counts["disconnected"] += len(self._peers.check())
        if not self._socket.poll(round(timeout_s * 1e3)):
            return
        for _ in range(_MAX_BATCH):
            try:
                name, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            received_ns = self._clock()
            peer = name.bytes
            self._peers.delivered(int(frames[-1].get(_SOURCE)) if frames else -1)
            answer = self._answer(peer, frames, received_ns)
            self.counts["refused" if answer is None else "answered"] += 1
            if answer is not None:
                self._socket.send_multipart([peer, answer], zmq.NOBLOCK)  # dropped if the peer reads nothing

    def close(self) -> None:
        """Release the endpoint."""
        if self._authenticator is not None:
            self._authenticator.stop()
        self._watch.close()
        self._context.destroy(linger=0)

    def _answer(self, peer: bytes, frames: list[zmq.Frame], received_ns: int) -> bytes | None:
        allowance = self._allowances.renewed(peer, Allowance(RATE_HZ, _BURST, received_ns))
        if not (self._all.take(received_ns) and allowance.take(received_ns)):
            return None
        if len(frames) != 1 or len(frames[0]) > MAX_REQUEST_BYTES:
            return None
        try:
            kind, number = _decode(frames[0].bytes)
        except (msgspec.MsgspecError, RecursionError):
            return None
        if kind == TIME:
            return _encode((kind, number, received_ns, self._clock()))
        return _encode((kind, number, self._ports)) if kind == TOPICS else None

    def _bind(self, endpoint: str, folder: str | Path | None) -> None:
        for option, value in {
            zmq.LINGER: 0,
            zmq.MAXMSGSIZE: _MAX_FRAME_BYTES,
            zmq.RCVHWM: _QUEUED,
            zmq.SNDHWM: _QUEUED,
            zmq.IPV6: int("[" in endpoint),
        }.items():
            self._socket.set(option, value)
        try:
            if folder is None:
                self._socket.bind(endpoint)
                return
            from perception.bus import keys  # 40 ms of imports

            pair = keys.load(Path(folder))
            self._authenticator = keys.authenticator(self._context, pair)
            with pair.serving(self._socket):
                self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            in_use = error.errno == zmq.EADDRINUSE
            why = "is in use by another program; choose another port" if in_use else error.strerror
            raise BusError(f"time service: cannot bind {endpoint}: {why}") from error
