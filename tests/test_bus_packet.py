"""The sockets of the lane return a valid message or nothing."""

import contextlib
import os
import resource
import select
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.bus import lane, packet

UNIX = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
TOPIC = b"camera/a"
HEAD_BYTES = 20

pytestmark = pytest.mark.skipif(not lane.SUPPORTED, reason="needs Linux")


class Listening:
    """A reader's socket and its received messages."""

    def __init__(self, directory: Path) -> None:
        self.poll = select.poll()
        self.unreadable: list[str] = []
        self.receiver = packet.Receiver(
            directory, self.poll, lossless=False, on_unreadable=self.unreadable.append
        )
        self.path = str(packet.path(directory, self.receiver.name))

    def take(self) -> list[Any]:
        return [self.receiver.receive(descriptor) for descriptor, _ in self.poll.poll(0)]


@given(data=st.binary(min_size=1, max_size=64) | st.binary(max_size=40).map(bytes(HEAD_BYTES).__add__))
def test_any_packet_is_a_message_within_bounds_or_nothing(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="bus") as folder, socket.socket(*UNIX) as sender:
        reader = Listening(Path(folder))
        sender.connect(reader.path)
        sender.send(TOPIC)
        assert reader.take() == [None]
        assert reader.take() == [None]
        sender.send(data)
        for coder, header, payload in filter(None, reader.take()):
            assert coder.name == TOPIC
            assert payload is None or data[HEAD_BYTES:] == header + payload
        reader.receiver.close()


@given(topic=st.binary(min_size=1, max_size=80))
def test_who_does_not_say_which_topic_it_publishes_is_not_heard(topic: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="bus") as folder, socket.socket(*UNIX) as sender:
        reader = Listening(Path(folder))
        sender.connect(reader.path)
        sender.send(b"~" + topic)
        sender.send(packet.pack(b"header", b"payload"))
        assert [one for _ in range(3) for one in reader.take()] == [None] * 3
        reader.receiver.close()


def test_a_file_that_is_no_ring_is_closed_and_told(tmp_path: Path) -> None:
    reader = Listening(tmp_path)
    with socket.socket(*UNIX) as sender, (tmp_path / "file").open("wb") as file:
        sender.connect(reader.path)
        sender.send(TOPIC)
        assert reader.take() == [None]
        assert reader.take() == [None]
        before = os.listdir("/proc/self/fd")
        for data in (b"senseless", b"\xff" * 60):
            socket.send_fds(sender, [data], [file.fileno()] * 2)  # without `+` before: the kernel closes them
            assert reader.take() == [None]
        assert reader.unreadable == []
        for data in (b"senseless", b"\xff" * 60):
            sender.send(b"+")
            socket.send_fds(sender, [data], [file.fileno()] * 2)
            assert [one for _ in range(2) for one in reader.take()] == [None, None]
        assert os.listdir("/proc/self/fd") == before
    assert reader.unreadable == [TOPIC.decode()] * 2
    reader.receiver.close()


def test_a_ring_whose_file_cannot_be_had_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    reader = Listening(tmp_path)
    sender = packet.Sender(Path(reader.path), TOPIC)
    assert reader.take() == [None]
    assert reader.take() == [None]

    def sent(ring: lane.Ring, data: bytes) -> bytes | None:
        loan = ring.lend(len(data))
        assert loan is not None
        loan.data[:] = data
        placed = packet.pack_placed(b"header", loan.slot, len(data), ring.commit(loan.slot))
        sender.send(placed, ring)
        [payload] = [one[2] for _ in range(2) for one in reader.take() if one is not None]
        return None if payload is None else bytes(payload)

    before, after = lane.Ring(4096), lane.Ring(8192)
    assert sent(before, b"before") == b"before"
    with no_more_files():
        assert sent(after, b"after!") is None
    assert sent(after, b"after!") is None
    assert reader.unreadable == [TOPIC.decode()]
    sender.close()
    reader.receiver.close()


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process cannot open files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_publisher_that_has_gone_is_forgotten_once_all_it_sent_is_taken(tmp_path: Path) -> None:
    reader = Listening(tmp_path)
    before = os.listdir("/proc/self/fd")
    sender = packet.Sender(Path(reader.path), TOPIC)
    for number in range(100):
        sender.send(packet.pack(b"%d" % number, b""), None)
    sender.close()
    taken = [one for _ in range(103) for one in reader.take()]
    assert [header for _, header, _ in filter(None, taken)] == [b"%d" % one for one in range(100)]
    assert os.listdir("/proc/self/fd") == before
    assert reader.take() == []
    reader.receiver.close()


def test_who_cannot_listen_leaves_nothing_behind(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    with pytest.raises(OSError, match="too long"):
        packet.Receiver(deep, select.poll(), lossless=True, on_unreadable=print)
    assert not list(deep.iterdir())
