"""Other hosts of a graph, seen from a reader: where they publish, and what their clocks read.

Threads: `RemoteClocks` starts one daemon thread, which alone uses the sockets and the estimates. Any thread
may call `correction_ns` and `report`: they read values that the thread replaces as a whole. The thread does
not refer to the reader, so a reader without references is closed.
"""

import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zmq

from perception import topics
from perception.bus import endpoints
from perception.bus.time_service import MAX_REQUEST_BYTES, TIME, TOPICS
from perception.clock.remote import Correction, Estimate, Probe, RemoteClock
from perception.errors import BusError, PerceptionError
from perception.messages import MAX_TIME_NS, HostTime
from perception.profile.endpoint import parse
from perception.profile.hosts import DEFAULT_PORT, RemoteHost
from perception.units import Clock

if TYPE_CHECKING:
    from perception.bus.keys import Keys

BURST: Final = 8
"""Requests of one burst: on a link that is 90 % full, most bursts have one that found it free."""
_SPACING_S: Final = (0.004, 0.022)
"""Time between two requests, at random: else all might meet the same frame of a camera."""
_WAIT_S: Final = 0.25
"""For the last answers of a burst."""
_PAUSE_S: Final = 0.7
"""Between bursts: about one burst a second."""
_FIRST_PAUSE_S: Final = 0.05
_FIRST_BURSTS: Final = 5
"""So many bursts come at once, so that a reader that has just started knows the offset well."""
_RETRY_S: Final = 0.02
_POLL_S: Final = 0.05
_RECONNECT_MS: Final = 50
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_PORTS: Final = 1024
_ASK_S: Final = 0.5
ANSWER_S: Final = 5.0
"""How long `serving` waits for an answer."""
_ADDRESS: Final = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:/\[\]]+)(?::(?P<port>\d+))?")
_encode: Final = msgspec.msgpack.Encoder().encode
_time: Final = msgspec.msgpack.Decoder(tuple[int, int, int, int]).decode
_topics: Final = msgspec.msgpack.Decoder(tuple[int, int, dict[str, int]]).decode


class _Peer:
    """The time service of one host: sends bursts, collects answers. Used by one thread."""

    def __init__(self, socket: zmq.Socket[bytes], clock: Clock) -> None:
        self.socket = socket
        self.due_s = 0.0
        self.correction = Correction()
        self._remote = RemoteClock()
        self._clock = clock
        self._number = random.getrandbits(32)
        self._sent: dict[int, int] = {}
        self._answers: list[Probe] = []
        self._left = BURST
        self._bursts = 0

    @property
    def estimate(self) -> Estimate | None:
        """The newest estimate, None before the first answer."""
        return self._remote.estimate

    def step(self, now_s: float) -> None:
        """Send the next request, or end the burst, if it is time."""
        if now_s < self.due_s:
            return
        if self._left:
            sent = self._send()
            self._left -= sent
            self.due_s = now_s + (random.uniform(*_SPACING_S) if sent else _RETRY_S)
            if not self._left:
                self.due_s = now_s + _WAIT_S
        else:
            self._end_burst()
            hurry = self._remote.suspect or self._bursts < _FIRST_BURSTS
            self.due_s = now_s + (_FIRST_PAUSE_S if hurry else _PAUSE_S)

    def _send(self) -> bool:
        """Send one request; return False while the host is not connected."""
        self._number += 1
        sent_ns = self._clock()
        try:
            self.socket.send(_encode((TIME, self._number)), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._sent[self._number] = sent_ns
        return True

    def receive(self) -> None:
        """Read the answers that have arrived; others than those to requests of this burst are dropped."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            returned_ns = self._clock()
            try:
                kind, number, received_ns, answered_ns = _time(frames[0])
            except (msgspec.MsgspecError, RecursionError):
                continue
            sane = max(abs(received_ns), abs(answered_ns)) <= MAX_TIME_NS
            if kind == TIME and sane and (sent_ns := self._sent.pop(number, None)) is not None:
                self._answers.append(Probe(sent_ns, received_ns, answered_ns, returned_ns))

    def _end_burst(self) -> None:
        before = self.estimate
        self._remote.add(self._answers)
        if self.estimate is not None and self.estimate is not before:
            self.correction.update(self.estimate)
        self._bursts += bool(self._answers)
        self._sent, self._answers, self._left = {}, [], BURST


class RemoteClocks:
    """Estimates the clocks of other hosts all the time.

    Args:
        services: name of a host -> endpoint of its time service.
        clock: host time in ns.
        keys: pair for all of them.
    """

    def __init__(self, services: Mapping[str, str], clock: Clock, keys: "Keys | None") -> None:
        self._clock = clock
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._end = threading.Event()
        try:
            self._peers = {
                name: _Peer(connected(self._context, endpoint, keys), clock)
                for name, endpoint in services.items()
            }
        except BaseException:
            self._context.destroy(linger=0)
            raise
        for peer in self._peers.values():
            self._poller.register(peer.socket, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name="clocks of other hosts", daemon=True)
        self._thread.start()

    def correction_ns(self, host: str, stamp_ns: int) -> int | None:
        """Return what to add to a stamp of a host to get this host's time; None while that is not known."""
        local_ns = self._peers[host].correction.to_local_ns(stamp_ns)
        return None if local_ns is None else local_ns - stamp_ns

    def report(self) -> dict[str, HostTime]:
        """Return what is known of each clock, by host."""
        now_ns = self._clock()
        return {name: _reported(peer.estimate, now_ns) for name, peer in self._peers.items()}

    def close(self) -> None:
        """End the thread, which closes the sockets."""
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        peers = {peer.socket: peer for peer in self._peers.values()}
        try:
            while not self._end.is_set():
                now_s = time.monotonic()
                for peer in peers.values():
                    peer.step(now_s)
                wait_s = min(peer.due_s for peer in peers.values()) - time.monotonic()
                for socket, _ in self._poller.poll(round(min(max(wait_s, 0.0), _POLL_S) * 1e3)):
                    peers[socket].receive()
        finally:
            self._context.destroy(linger=0)


def connected(
    context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, keys: "Keys | None"
) -> "zmq.Socket[bytes]":
    """Return a socket that is connected to a time service; BusError if the endpoint cannot be used."""
    socket = context.socket(zmq.DEALER)
    for option, value in {
        zmq.LINGER: 0,
        zmq.IMMEDIATE: 1,  # a request that waits for a connection would measure that
        zmq.MAXMSGSIZE: _MAX_ANSWER_BYTES,
        zmq.SNDHWM: 2 * BURST,
        zmq.RCVHWM: 8 * BURST,
        zmq.RECONNECT_IVL: _RECONNECT_MS,
        zmq.HEARTBEAT_IVL: 1000,
        zmq.HEARTBEAT_TIMEOUT: 5000,
        zmq.IPV6: int("[" in endpoint),
    }.items():
        socket.set(option, value)
    try:
        parsed = parse(endpoint)
        if keys is not None:
            keys.connect(socket, keys.trust.publisher_key(parsed.name, "*"))
        socket.connect(parsed.address)
    except zmq.ZMQError as error:
        raise BusError(f"cannot connect to the time service {endpoint}: {error.strerror}") from error
    return socket


def ask(
    address: str, *, timeout_s: float, insecure: bool = False, keys: str | Path | None = None
) -> RemoteHost:
    """Return where a host publishes its topics, as its time service answers.

    Args:
        address: `HOST`, `HOST:PORT` or `tcp://HOST:PORT` of the time service.
        timeout_s: how long to wait for an answer.
        insecure: allow an address off loopback without keys.
        keys: folder of CURVE keys.

    Raises:
        BusError: the address is malformed or unsafe, or there is no answer.
    """
    endpoint = service_at(address)
    endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
    pair = None
    if keys is not None:
        from perception.bus.keys import load  # 40 ms of imports

        pair = load(Path(keys))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with connected(context, endpoint, pair) as socket:
            ports = _asked(socket, time.monotonic() + timeout_s)
    finally:
        context.destroy(linger=0)
    if ports is None:
        raise BusError(
            f"no answer from {endpoint} within {timeout_s:g} s: a graph must be up there with --host, "
            "and its keys be the same as here"
        )
    base = endpoint.rpartition(":")[0]
    return RemoteHost(endpoint, {topic: f"{base}:{port}" for topic, port in ports.items()})


def serving(
    patterns: Sequence[str], address: str, *, insecure: bool = False, keys: str | Path | None = None
) -> RemoteHost:
    """Return a host with those of its topics that match a pattern; arguments and errors as of `ask`.

    Raises PerceptionError if it serves none.
    """
    wanted = tuple(map(topics.check_pattern, patterns))
    host = ask(address, timeout_s=ANSWER_S, keys=keys, insecure=insecure)
    found = {
        topic: endpoint
        for topic, endpoint in host.connect.items()
        if any(topics.matches(pattern, topic) for pattern in wanted)
    }
    if not found:
        served, asked = ", ".join(sorted(host.connect)) or "nothing", ", ".join(wanted)
        raise PerceptionError(f"{address} serves no topic that matches {asked}; it serves {served}")
    return host._replace(connect=found)


def service_at(address: str) -> str:
    """Return the endpoint of the time service at an address as of `ask`; BusError if it is malformed."""
    match = _ADDRESS.fullmatch(address)
    endpoint = f"tcp://{match['host']}:{match['port'] or DEFAULT_PORT}" if match else address
    if parse(endpoint).bindable_only:
        raise BusError(f"'{address[:80]}' is not a single address to connect to; expected HOST or HOST:PORT")
    return endpoint


def _asked(socket: "zmq.Socket[bytes]", deadline_s: float) -> dict[str, int] | None:
    """Ask until there is a valid answer, None after the deadline."""
    request = _encode((TOPICS, random.getrandbits(32)))
    assert len(request) <= MAX_REQUEST_BYTES
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            socket.send(request, zmq.NOBLOCK)
        except zmq.Again:
            time.sleep(_RETRY_S)
            continue
        if socket.poll(round(min(left_s, _ASK_S) * 1e3)):
            return _ports(socket.recv_multipart()[0])
    return None


def _ports(answer: bytes) -> dict[str, int]:
    try:
        _, _, ports = _topics(answer)
        if len(ports) > _MAX_PORTS or not all(0 < port <= 65535 for port in ports.values()):
            raise ValueError("not a map of ports")
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BusError(f"the time service answered what is no list of topics: {str(error)[:80]}") from error
    return ports


def _reported(estimate: Estimate | None, now_ns: int) -> HostTime:
    if estimate is None:
        return HostTime()
    facts: dict[str, Any] = {
        "offset_ms": estimate.offset_at(now_ns) / 1e6,
        "drift_ppm": estimate.drift_ppm,
        "round_trip_ms": estimate.round_trip_ns / 1e6,
        "residual_ms": estimate.residual_ns / 1e6,
        "bound_ms": estimate.bound_at(now_ns) / 1e6,
        "age_ms": max(0, now_ns - estimate.at_ns) / 1e6,
    }
    digits = {name: round(value, 4) for name, value in facts.items()}
    return HostTime(**digits, bursts=estimate.bursts, steps=estimate.steps)
