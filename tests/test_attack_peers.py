"""Strangers at an endpoint send without end: the process's memory stays bounded and others are served."""

import contextlib
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from perception.bus.peers import MAX_CONNECTIONS
from perception.messages import CameraFrame
from perception.torture.zmtp import (
    FLOODS,
    connected,
    frame,
    greet,
    publisher,
    sent_until_disconnected,
    subscriber,
)
from tests.bus import Bus, say, text
from tests.waiting import LONG_S, eventually

MIB = 1 << 20


def memory_mib() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@pytest.mark.parametrize("kind", FLOODS)
def test_a_stranger_that_floods_a_publisher_is_disconnected(bus: Bus, kind: str) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as out,
        bus.subscriber("text/say") as reader,
        subscriber(out.endpoint) as outsider,
    ):
        assert out.wait_for_subscriber(LONG_S)
        before = memory_mib()
        for work in (
            lambda: sent_until_disconnected(outsider, FLOODS[kind], 1 << 40),
            lambda: _read_all(outsider),
        ):
            threading.Thread(target=work, daemon=True).start()
        peak = before
        while not out._excess_warned:
            peak = max(peak, memory_mib())
            out.send(say("received"))
            assert text(reader.receive(LONG_S)) == "received"
        assert peak - before < 20


def _read_all(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while peer.recv(65_536):
            pass


def test_strangers_do_not_take_all_connections(bus: Bus) -> None:
    with (
        bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as out,
        subscriber(out.endpoint, frame(b"\1text/say")) as early,
        contextlib.ExitStack() as stack,
    ):
        eventually(lambda: out.subscribers == 1)
        for _ in range(MAX_CONNECTIONS + 60):
            with contextlib.suppress(OSError):
                stack.enter_context(connected(out.endpoint))
        eventually(lambda: len(out._peers) <= MAX_CONNECTIONS)
        out.send(say("received"))
        assert b"text/say" in early.recv(100)


def test_a_publisher_whose_message_never_ends_is_disconnected(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        publisher() as (endpoint, listener),
        bus.publisher("text/say") as honest,
        bus.subscriber("text/say", "text/evil", connect={"text/evil": endpoint}) as reader,
    ):
        outsider, _ = listener.accept()
        with outsider, caplog.at_level(logging.WARNING):
            greet(outsider, b"PUB")
            sent = sent_until_disconnected(outsider, frame(b"x" * MIB, more=True), 3000 * MIB)
            eventually(lambda: "disconnected a publisher: 127.0.0.1 sent" in caplog.text)
        assert sent < 1500 * MIB
        honest.send(say("received"))
        assert text(reader.receive(LONG_S)) == "received"


def test_a_message_of_many_parts_ends_the_connection_and_the_next_one_is_read(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        publisher() as (endpoint, listener),
        bus.subscriber("text/evil", connect={"text/evil": endpoint}) as reader,
    ):
        for parts in (100_000, 0):
            outsider, _ = listener.accept()
            with outsider, contextlib.suppress(OSError):
                greet(outsider, b"PUB")
                outsider.sendall(frame(b"text/evil", more=True) + frame(b"x", more=True) * parts)
                outsider.sendall(frame(b"\x83\xa8stamp_ns\x01\xa3seq\x00\xa4text\xa2ok"))
                if not parts:
                    assert text(reader.receive(LONG_S)) == "ok"
                while outsider.recv(1000):
                    reader.receive(0)
        assert reader.health()["text/evil"].dropped == {"malformed": 1}
        ended = "disconnected a publisher: 127.0.0.1 sent a message of more than three parts"
        eventually(lambda: ended in caplog.text)


def test_whole_messages_may_be_any_number(bus: Bus) -> None:
    with (
        publisher() as (endpoint, listener),
        bus.subscriber("text/far", connect={"text/far": endpoint}) as reader,
    ):
        reader._drain._peers._most_bytes = 10_000
        far, _ = listener.accept()
        with far:
            greet(far, b"PUB")
            for seq in range(100):
                header = b"\x83\xa8stamp_ns\x01\xa3seq" + bytes([seq]) + b"\xa4text\xd9\xff" + b"a" * 255
                far.sendall(frame(b"text/far", more=True) + frame(header))
                assert reader.receive(LONG_S) is not None
                assert not reader._drain._peers.check()
            assert reader.health()["text/far"].consumed == 100


def test_a_reader_that_never_reads_is_disconnected_and_another_reads_on(bus: Bus) -> None:
    frame_header = CameraFrame(stamp_ns=1, width=1000, height=1000, encoding="mono8")
    with (
        bus.publisher("camera/a", endpoint="tcp://127.0.0.1:*") as out,
        subscriber(out.endpoint, frame(b"\1camera/a")),
        bus.subscriber("camera/a", connect={"camera/a": out.endpoint}) as reader,
    ):
        out._peers._stall_s = 0.5
        eventually(lambda: out.subscribers == 2)
        before = memory_mib()
        peak = 0.0
        while not out._excess_warned:
            out.send(frame_header, bytes(1_000_000))
            assert reader.receive(LONG_S) is not None
            peak = max(peak, memory_mib() - before)
        eventually(lambda: len(out._peers) == 1)
        out.send(frame_header, bytes(1_000_000))
        assert reader.receive(LONG_S) is not None
        assert peak < 200
