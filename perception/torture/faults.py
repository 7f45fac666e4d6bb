"""The faults: each breaks a graph and returns how to end it. One without a node must have no effect."""

import contextlib
import os
import random
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.messages import MAX_COUNT, MAX_TIME_NS
from perception.torture import zmtp
from perception.torture.graph import Graph

CAMERA: Final = "camera-front"
MODALITIES: Final = {CAMERA: "camera", "microphone-main": "microphone", "text-script": "text"}
Undo = Callable[[], None]
_PEERS: Final = 200
_CONNECTIONS: Final = 600


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    name: str
    node: str
    """The node that it hurts; empty: the graph has to go on as if nothing happened."""
    inject: Callable[[Graph, random.Random], Undo]
    seconds: tuple[float, float]
    """How long it lasts, by seed between these."""
    by_itself: bool = False
    """Whether the graph recovers while the fault lasts: time of recovery counts from the injection."""
    silences: bool = False
    """Whether nothing arrives from the node while it lasts."""


def _nothing() -> None:
    """End a fault that is over."""


def _kill(node: str, graph: Graph, _: random.Random) -> Undo:
    with contextlib.suppress(ProcessLookupError):
        os.kill(graph.witness.pid(node), signal.SIGKILL)
    return _nothing


def _stop(node: str, graph: Graph, _: random.Random) -> Undo:
    pid = graph.witness.pid(node) if node else graph.process.pid

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    return go_on


def _kill_supervisor(graph: Graph, _: random.Random) -> Undo:
    graph.process.kill()
    return graph.restart


def _full_disk(graph: Graph, _: random.Random) -> Undo:
    """Let every write of the recorder that makes its file longer fail."""
    pid = graph.witness.pid("recorder")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))

    def undo() -> None:
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    return undo


def _in_thread(work: Callable[[threading.Event], None]) -> Undo:
    end = threading.Event()
    thread = threading.Thread(target=work, args=(end,), daemon=True)
    thread.start()

    def undo() -> None:
        end.set()
        thread.join(zmtp.LONG_S)

    return undo


def _flood(kind: str, graph: Graph, _: random.Random) -> Undo:
    """Send a flood, again after each disconnection."""

    def work(end: threading.Event) -> None:
        while not end.is_set():
            with contextlib.suppress(OSError), zmtp.subscriber(graph.endpoint) as peer:
                peer.settimeout(0.2)
                while not end.is_set():
                    peer.sendall(zmtp.FLOODS[kind])
            end.wait(0.05)

    return _in_thread(work)


def _connections(graph: Graph, _: random.Random) -> Undo:
    def work(end: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(_CONNECTIONS):
                with contextlib.suppress(OSError):
                    stack.enter_context(zmtp.connected(graph.endpoint))
            end.wait()

    return _in_thread(work)


def _slow_reader(graph: Graph, _: random.Random) -> Undo:
    """Subscribe and read nothing."""

    def work(end: threading.Event) -> None:
        request = zmtp.frame(b"\1camera/front")
        with contextlib.suppress(OSError), zmtp.subscriber(graph.endpoint, request):
            end.wait()

    return _in_thread(work)


def _subscribers(graph: Graph, chance: random.Random) -> Undo:
    """Open and close readers of any topics of this host, 200 in all, as fast as possible."""
    seed = chance.random()

    def work(end: threading.Event) -> None:
        pick, runtime, clock = random.Random(seed), Runtime(graph.domain), HostClock()
        for _ in range(_PEERS):
            if end.is_set():
                return
            topics = pick.sample(("camera/front", "microphone/main", "text/*", "state/*", "*"), 1)
            with Subscriber(*topics, runtime=runtime, clock=clock.now_ns) as reader:
                reader.receive(pick.random() * 0.02)

    return _in_thread(work)


def _hostile_publisher(graph: Graph, chance: random.Random) -> Undo:
    """Publish on `text/stranger`, which the graph reads, what no publisher should."""
    messages = list(_hostile_messages(chance, HostClock().now_ns()))
    listener = socket.create_server(("127.0.0.1", graph.stranger), reuse_port=True)
    listener.settimeout(0.2)

    def serve(peer: socket.socket, end: threading.Event) -> None:
        with contextlib.suppress(OSError), peer:
            zmtp.greet(peer, b"PUB")
            peer.settimeout(0.2)
            while not end.is_set():
                peer.sendall(chance.choice(messages))

    def work(end: threading.Event) -> None:
        with listener:
            while not end.is_set():
                with contextlib.suppress(OSError):
                    peer, _ = listener.accept()
                    threading.Thread(target=serve, args=(peer, end), daemon=True).start()

    return _in_thread(work)


def _hostile_messages(chance: random.Random, now_ns: int) -> Iterator[bytes]:
    extremes = (0, 1, -1, MAX_COUNT, 2**62, MAX_TIME_NS, -MAX_TIME_NS, 2**64 - 1, now_ns, now_ns + 10**10)
    for _ in range(300):
        header: dict[str, object] = {
            "v": chance.choice((1, 1, 1, 0, 2**31)),
            "seq": chance.choice(extremes),
            "stamp_ns": chance.choice(extremes),
            "source": chance.choice(("a#1", "", "s" * 264, "s" * 200_000, "\x1b[2J\n")),
            "text": chance.choice(("come here", "t" * 4096, "t" * 100_000, "\0", "\u202e")),
        }
        packed = msgspec.msgpack.encode(header)
        if chance.random() < 0.3:
            packed = bytes(chance.choice((one, chance.randrange(256))) for one in packed[:2000])
        topic = chance.choice(
            (b"text/stranger", b"text/stranger", b"text/script", b"camera/front", b"\xff" * 300)
        )
        parts = [topic, packed, *[bytes(chance.choice((1, 10_000)))] * chance.choice((0, 0, 1, 5))]
        yield b"".join(zmtp.frame(part, more=part is not parts[-1]) for part in parts)


def catalogue() -> tuple[Fault, ...]:
    """Return all faults of one host, except the full disk, which ends a recording."""
    nodes = (CAMERA, "microphone-main", "text-script", "fusion", "recorder")
    kills = [
        Fault(f"kill -9 {node}", node, partial(_kill, node), (0.5, 1.0), by_itself=True) for node in nodes
    ]
    short = [
        Fault(f"SIGSTOP {node}, 1 to 2 s", node, partial(_stop, node), (1.0, 2.0), silences=True)
        for node in (CAMERA, "microphone-main", "fusion", "recorder")
    ]
    long = [
        Fault(f"SIGSTOP {node}, until restarted", node, partial(_stop, node), (5.0, 6.0), by_itself=True)
        for node in (CAMERA, "microphone-main", "fusion")
    ]
    floods = [Fault(f"flood: {kind}", "", partial(_flood, kind), (2.0, 3.0)) for kind in zmtp.FLOODS]
    return (
        *kills,
        *short,
        *long,
        *floods,
        Fault("none, to compare with", "", lambda *_: _nothing, (2.0, 3.0)),
        Fault("SIGSTOP supervisor", "", partial(_stop, ""), (1.0, 3.0)),
        Fault("kill -9 supervisor", "all", _kill_supervisor, (2.0, 3.0)),
        Fault(f"{_CONNECTIONS} connections", "", _connections, (2.0, 3.0)),
        Fault("reader that never reads", "", _slow_reader, (2.0, 4.0)),
        Fault(f"{_PEERS} readers come and go", "", _subscribers, (3.0, 5.0)),
        Fault("hostile messages", "", _hostile_publisher, (2.0, 4.0)),
    )


FULL_DISK: Final = Fault("full disk", "recorder", _full_disk, (3.0, 4.0), by_itself=True)
