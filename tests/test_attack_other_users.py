"""Other users of a host reach its loopback addresses: they receive nothing, nothing is taken from them."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from perception.bus import codec, owner
from perception.torture.zmtp import PING, PONG, frame, read, subscriber
from tests.bus import Bus, say, text
from tests.other_user import line, other_user, proceed
from tests.waiting import LONG_S, eventually

LOOPBACK = ["tcp://127.0.0.1:*", "tcp://localhost:*", "tcp://[::1]:*"]
READS = """
reader = zmq.Context().socket(zmq.SUB)
reader.set(zmq.IPV6, 1)
reader.subscribe("")
reader.connect(sys.argv[1])
show("connected")
input()
show(len(reader.recv_multipart()) if reader.poll(500) else "nothing")
"""
ZMTP = """
def connected():
    host, _, port = sys.argv[1].removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)))
    peer.sendall(b"\\xff" + bytes(7) + b"\\x01\\x7f\\x03\\x01NULL" + bytes(16) + bytes(32))
    greeting = b""
    while len(greeting) < 64 and (more := peer.recv(64 - len(greeting))):
        greeting += more
    peer.sendall(b"\\x04\\x19\\x05READY\\x0bSocket-Type\\0\\0\\0\\x03SUB")
    return peer
def frame(data):
    return bytes([0, len(data)]) + data
def received(peer):
    data = b""
    peer.settimeout(0.5)
    try:
        while more := peer.recv(65536):
            data += more
    except OSError:
        pass
    return data
"""
CONFUSES = (
    ZMTP
    + """
peer = connected()
peer.sendall(frame(b"nonsense") * 3 + frame(b"\\1text/say") + frame(b"\\1text/") + frame(b"nonsense"))
time.sleep(0.1)
show("connected")
input()
show(b"secret" in received(peer))
"""
)
CONFUSES_FIRST = (
    ZMTP
    + """
peer = connected()
peer.settimeout(60)
peer.sendall(frame(b"nonsense"))
for _ in range(2):  # the answer to the second ping means that the request was passed on
    peer.sendall(b"\\x04\\x09\\x04PING\\0\\0me")
    data = b""
    while not data.endswith(b"PONGme") and (more := peer.recv(1000)):
        data += more
show("confused")
input()
"""
)
COMES_AGAIN = (
    ZMTP
    + """
show("connected")
peers = []
for number in range(24):
    peer = connected()
    peer.sendall((frame(b"nonsense") + frame(b"\\1text/say")) * 5)
    peers.append(peer)
    if number % 2:
        peer.close()
input()
show(any(b"secret" in received(peer) for peer in peers if peer.fileno() >= 0))
"""
)
PUBLISHES = """
out = zmq.Context().socket(zmq.PUB)
out.bind(sys.argv[1])
show(out.get_string(zmq.LAST_ENDPOINT))
while True:
    out.send_multipart([b"text/say", bytes.fromhex(sys.argv[2])])
    time.sleep(0.01)
"""
PUBLISHES_AND_LEAVES = """
while True:
    context = zmq.Context()
    out = context.socket(zmq.PUB)
    out.bind(sys.argv[1])
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        out.send_multipart([b"text/say", bytes.fromhex(sys.argv[2])])
    context.destroy(0)
    show("left")
"""


def lie() -> str:
    return bytes(codec.encode("text/say", say("lie"))[1]).hex()


@pytest.fixture(params=LOOPBACK)
def endpoint(request: pytest.FixtureRequest) -> str:
    if "::1" in request.param and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this host has no IPv6")
    return str(request.param)


def test_attack_another_user_receives_nothing_on_loopback(bus: Bus, endpoint: str) -> None:
    with (
        bus.publisher("text/say", endpoint=endpoint) as publisher,
        bus.subscriber("text/say") as reader,
        other_user(READS, str(publisher.endpoint)) as outsider,
    ):
        assert line(outsider) == "connected"
        eventually(lambda: publisher._gate is not None and publisher.subscribers and publisher._gate.refused)
        publisher.send(say("secret"))
        proceed(outsider)
        assert text(reader.receive(LONG_S)) == "secret"
        assert line(outsider) == "nothing"
        assert publisher.subscribers == 1


@pytest.mark.parametrize("attack", [CONFUSES, COMES_AGAIN], ids=["once", "again and again"])
def test_attack_another_user_that_confuses_zeromq_receives_nothing_and_silences_nobody(
    bus: Bus, attack: str
) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as early,
        context.socket(zmq.SUB) as late,
        other_user(attack, str(publisher.endpoint)) as outsider,
    ):
        for reader in (early, late):
            reader.subscribe("text/say")
        early.connect(str(publisher.endpoint))
        eventually(lambda: publisher.subscribers == 1)
        assert line(outsider) == "connected"
        late.connect(str(publisher.endpoint))

        def all_receive() -> bool:
            publisher.send(say("secret"))
            return bool(early.poll(10) and late.poll(10))

        eventually(all_receive)
        proceed(outsider)
        for _ in range(50):
            publisher.send(say("secret"))
        assert line(outsider) == "False"
        assert publisher.subscribers >= 2


def test_attack_who_subscribes_behind_a_confusing_stranger_is_not_silenced(bus: Bus) -> None:
    """ZeroMQ would subscribe another connection in its place; so it has to connect again."""
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher,
        other_user(CONFUSES_FIRST, str(publisher.endpoint)) as outsider,
    ):
        assert line(outsider) == "confused"
        with subscriber(publisher.endpoint or "", frame(b"\1text/say")) as honest:
            for _ in range(2):
                honest.sendall(PING)
                assert read(honest, len(PONG)) == PONG
            assert publisher.subscribers == 0
            assert honest.recv(1) == b"", "it was disconnected"
        with subscriber(publisher.endpoint or "", frame(b"\1text/say")) as honest:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(say("received"))
            assert b"text/say" in honest.recv(100)
            assert publisher.subscribers == 1


def test_attack_nothing_is_taken_from_another_user_on_loopback(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    with other_user(PUBLISHES, "tcp://127.0.0.1:*", lie()) as outsider:
        endpoint = line(outsider)
        with bus.subscriber("text/say", connect={"text/say": endpoint}) as reader:
            eventually(lambda: "is a process of another user" in caplog.text)
            assert reader.receive(0.3) is None
            assert reader.health()["text/say"].received == 0


def test_attack_nothing_is_taken_from_another_user_that_leaves_before_it_is_read(bus: Bus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with (
        bus.subscriber("text/say", connect={"text/say": endpoint}) as reader,
        other_user(PUBLISHES_AND_LEAVES, endpoint, lie()) as outsider,
    ):
        for _ in range(5):
            assert line(outsider) == "left"
            assert reader.receive(0.0) is None


def test_a_reader_waits_on_a_port_that_another_user_holds_until_its_own_publisher_has_it(bus: Bus) -> None:
    with other_user(PUBLISHES, "tcp://127.0.0.1:*", lie()) as outsider:
        endpoint = line(outsider)
        reader = bus.subscriber("text/say", connect={"text/say": endpoint})
        assert reader.receive(0.2) is None
    with reader, bus.publisher("text/say", endpoint=endpoint) as publisher:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(say("true"))
        assert text(reader.receive(LONG_S)) == "true"


def test_insecure_endpoints_serve_every_user(bus: Bus) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*", insecure=True) as publisher,
        other_user(READS, str(publisher.endpoint)) as outsider,
    ):
        assert line(outsider) == "connected"
        assert publisher.wait_for_subscriber(LONG_S)
        proceed(outsider)
        publisher.send(say("public"))
        assert line(outsider) == "2"


def test_attack_another_user_cannot_look_into_the_runtime_directory(bus: Bus) -> None:
    looks = "try:\n show(os.listdir(sys.argv[1]))\nexcept OSError as error:\n show(type(error).__name__)\n"
    with bus.publisher("text/say"), other_user(looks, str(bus.runtime.base)) as outsider:
        assert line(outsider) == "PermissionError"


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
    ):
        far, _ = listener.accept()
        with far:
            yield near, far


def test_the_owner_of_a_connection_is_found_with_and_without_the_kernels_answers() -> None:
    with pair() as (near, far):
        ends = [owner._address(one.getsockname()) for one in (near, far)]
        asked, listed = owner._asked(*ends), owner._listed(*ends)
        assert asked == listed
        assert asked is not None
        assert asked[1] == owner.inode_of(near.fileno())
        assert owner.is_own(near.fileno())
        assert owner.is_own(far.fileno())


def test_attack_a_closed_connection_is_nobodys() -> None:
    """The kernel reports root for it: an attacker may send and leave."""
    with pair() as (near, far):
        near.close()
        assert not owner.is_own(far.fileno())
    assert not owner.is_own(far.fileno())


def test_a_process_of_another_user_is_not_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connects = (
            "peer = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\nshow('there')\ninput()\n"
        )
        with other_user(connects, str(listener.getsockname()[1])) as outsider:
            accepted, _ = listener.accept()
            with accepted:
                assert line(outsider) == "there"
                assert not owner.is_own(accepted.fileno())
