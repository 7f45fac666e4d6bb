"""A peer may send anything to a publisher, well-formed or not, without effect on other readers."""

import contextlib
import socket

import pytest
import zmq

from perception.torture.zmtp import PING, PONG, frame, read, subscriber
from tests.bus import Bus, say, text
from tests.waiting import LONG_S, eventually

_UNSUBSCRIPTION = frame(b"\0text/say")


def _wait_until_taken(peer: socket.socket) -> None:
    """Wait until ZeroMQ has received what this peer sent, and passed it to the publisher's socket.

    ZeroMQ answers a ping at once, and passes on what it read together with the ping only then. So the answer
    to a second ping is the one that tells.
    """
    for _ in range(2):
        peer.sendall(PING)
        assert read(peer, len(PONG)) == PONG


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(_UNSUBSCRIPTION * 5, id="never subscribed"),
        pytest.param(frame(b"\1text/say") + _UNSUBSCRIPTION * 5, id="subscribed once"),
        pytest.param(frame(b"\0text/say/and/more") + frame(b"\0text/sayer"), id="longer"),
        pytest.param(frame(b"\0text/") + frame(b"\0t") + frame(b"\0"), id="shorter"),
        pytest.param(frame(b"\0~newest00000000/text/say") + frame(b"\0~/text/say") * 3, id="of a lane"),
        pytest.param(frame(b"\1~newest00000000/text/say") * 3, id="to a lane that is not there"),
        pytest.param(b"".join(frame(b"\1t%d" % n) for n in range(10_000)), id="10000 of other topics"),
        pytest.param(frame(b"\1text/say") * 10_000 + _UNSUBSCRIPTION * 10_000, id="10000 of this"),
        pytest.param(frame(b"") + frame(b"nonsense") * 50 + frame(b"\2text/say"), id="no requests"),
        pytest.param((bytes([4, 15]) + b"\x06CANCELtext/say") * 3, id="commands"),
        pytest.param(frame(bytes(2000)), id="too large"),
        pytest.param(b"\xff" * 500, id="no frames"),
    ],
)
def test_a_stranger_silences_nobody(bus: Bus, requests: bytes, leaves: bool) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher,
        bus.subscriber("text/say") as lane_reader,
        zmq.Context() as context,
        context.socket(zmq.SUB) as zmq_reader,
    ):
        zmq_reader.subscribe("text/")
        zmq_reader.connect(publisher.endpoint or "")
        eventually(lambda: publisher.subscribers == 2)
        with subscriber(publisher.endpoint, requests) as outsider:
            if len(requests) < 2000:  # ZeroMQ receives no more until some are read
                with contextlib.suppress(OSError, AssertionError):  # some are disconnected
                    _wait_until_taken(outsider)
            if leaves:
                outsider.close()
            for _ in range(200):  # until the last request is processed
                publisher.wait_for_subscriber(0)
            publisher.send(say("received"))
            assert text(lane_reader.receive(LONG_S)) == "received"
            assert zmq_reader.poll(int(LONG_S * 1000))
            assert b"received" in zmq_reader.recv_multipart()[1]
            assert len(publisher.readers) < 2000


def test_what_is_no_note_leaves_the_others_to_those_who_sent_them(bus: Bus) -> None:
    """ZeroMQ attributes every request behind it to the wrong peer."""
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher,
        subscriber(publisher.endpoint, frame(b"nonsense") * 3) as outsider,
        contextlib.ExitStack() as stack,
    ):
        _wait_until_taken(outsider)
        peers = [
            stack.enter_context(subscriber(publisher.endpoint, frame(b"\1" + beginning)))
            for beginning in (b"text/say", b"text/", b"text/say")
        ]
        for peer in peers:
            _wait_until_taken(peer)
        assert publisher.subscribers == 3
        publisher.send(say("received"))
        for peer in peers:
            assert read(peer, 10) == b"\1\x08text/say"


def test_a_flood_of_notes_holds_up_no_message(bus: Bus) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher,
        subscriber(publisher.endpoint, frame(b"\1text/say") * 5000),
    ):
        assert publisher.wait_for_subscriber(LONG_S)
        assert publisher.subscribers < 1000
        eventually(lambda: publisher.subscribers == 5000)


def test_subscriptions_end_with_their_connection(bus: Bus) -> None:
    """ZeroMQ keeps one subscription per connection and prefix."""
    with bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher:
        with subscriber(publisher.endpoint, b"".join(frame(b"\1" + b"text/say"[:n]) for n in range(9))):
            eventually(lambda: publisher.subscribers == 9)
        eventually(lambda: publisher.subscribers == 0)


@pytest.mark.parametrize(
    "hello",
    [
        pytest.param(b"\x01\0" + b"\x0a\0\0text/say" * 3, id="1.0"),
        pytest.param(b"\xff" + bytes(7) + b"\x01\x7f\x01\x02" + b"\0\0" + b"\0\x09\0text/say" * 3, id="2.0"),
    ],
)
def test_peers_whose_notes_look_like_the_end_of_a_connection_are_refused(bus: Bus, hello: bytes) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher,
        subscriber(publisher.endpoint, frame(b"\1text/say")) as reader,
    ):
        eventually(lambda: publisher.subscribers == 1)
        port = int((publisher.endpoint or "").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=LONG_S) as old:
            old.sendall(hello)
            with contextlib.suppress(ConnectionResetError):
                while old.recv(100):
                    pass
        assert publisher.subscribers == 1
        publisher.send(say("received"))
        assert read(reader, 10) == b"\1\x08text/say"
