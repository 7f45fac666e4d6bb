"""The lane: large payloads in shared memory, constant while referenced; invalid data is refused."""

import copy
import gc
import sys
import weakref
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import zmq

from perception.bus import codec, lane, packet
from perception.bus.drain import Drain
from perception.bus.inbox import Inbox
from perception.bus.mailbox import Mailbox
from perception.errors import BusError
from perception.messages import AudioBlock, CameraFrame, Header, Message, Payload
from tests.bus import Bus
from tests.lane import FRAME, SIZE, CameraBus, exchange, filled, rings, shared
from tests.waiting import LONG_S, eventually

pytestmark = pytest.mark.skipif(not lane.SUPPORTED, reason="needs Linux")


@pytest.fixture
def bus(bus: Bus) -> CameraBus:
    return CameraBus(bus.runtime.base)


# --- what is delivered ---


def test_pixels_are_read_where_the_publisher_put_them(bus: CameraBus) -> None:
    with bus.publisher() as publisher, bus.subscriber() as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        for value in range(3):
            payload = exchange(publisher, subscriber, value).payload
            assert shared(payload)
            assert memoryview(payload).readonly


def test_a_frame_written_in_place_is_delivered(bus: CameraBus) -> None:
    with bus.publisher() as publisher, bus.subscriber() as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        for value in range(20):
            loan = publisher.loan(SIZE)
            np.frombuffer(loan.data, np.uint8)[:] = value
            sent = publisher.send(FRAME, loan)
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert message.header == sent
            assert bytes(message.payload) == bytes(filled(value))
        assert loan.ring is not None
        with pytest.raises(BusError, match="only once"):
            publisher.send(FRAME, loan)


def test_a_loan_reaches_readers_of_every_kind(bus: CameraBus) -> None:
    with (
        bus.publisher() as publisher,
        bus.subscriber() as lane_readers,
        zmq.Context() as context,
        context.socket(zmq.SUB) as foreign,
    ):
        foreign.subscribe(b"")
        foreign.connect(bus.runtime.ipc_endpoint("camera/a"))
        eventually(lambda: publisher.subscribers == 2)
        for value in range(4):
            loan = publisher.loan(SIZE)
            np.frombuffer(loan.data, np.uint8)[:] = value
            publisher.send(FRAME, loan)
            message = lane_readers.receive(LONG_S)
            assert message is not None
            assert bytes(message.payload) == bytes(filled(value))
            topic, header, payload = foreign.recv_multipart()
            assert (topic, payload) == (b"camera/a", bytes(filled(value)))
            assert codec.decode([topic, header, payload], received_ns=0).header == message.header
        assert not foreign.poll(50)


def test_loans_that_are_dropped_or_go_to_nobody_are_given_back(bus: CameraBus) -> None:
    with bus.publisher() as publisher, bus.subscriber() as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        exchange(publisher, subscriber, 0)
        for _ in range(100):
            assert publisher.loan(SIZE).ring is not None
        subscriber.close()
        eventually(lambda: publisher.subscribers == 0)
        assert publisher.loan(SIZE).ring is None
        assert publisher.send(FRAME, publisher.loan(SIZE)).seq == 1


def test_a_ring_is_freed_at_once_whatever_it_has_lent() -> None:
    before = rings()
    ring = lane.Ring(SIZE)
    assert ring.lend(SIZE) is not None
    loan = ring.lend(SIZE)
    gc.disable()
    try:
        del ring, loan
        assert rings(collect=False) == before
    finally:
        gc.enable()


def test_a_remote_reader_gets_the_pixels_inline(bus: CameraBus) -> None:
    with (
        bus.publisher(endpoint="tcp://127.0.0.1:*") as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as remote,
        bus.subscriber() as lane_readers,
    ):
        assert publisher.endpoint is not None
        remote.subscribe(b"camera/")
        remote.subscribe(b"~newest01234567/camera/")
        remote.connect(publisher.endpoint)
        eventually(lambda: publisher.subscribers == 2)
        for value in range(3):
            exchange(publisher, lane_readers, value)
            assert remote.recv_multipart()[2] == bytes(filled(value))
        assert not remote.poll(50)


def test_small_payloads_and_growing_ones_arrive_too(bus: CameraBus) -> None:
    with bus.publisher() as publisher, bus.subscriber() as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        jpeg = CameraFrame(stamp_ns=1, width=9, height=9, encoding="jpeg")
        for size in (3, lane.LANE_BYTES - 1, lane.LANE_BYTES, 70_000, 200_000, 90_000, 1 << 20, 3):
            for _ in range(3):
                publisher.send(jpeg, b"x" * size)
                message = subscriber.receive(LONG_S)
                assert message is not None
                assert bytes(message.payload) == b"x" * size
        assert subscriber.health()["camera/a"].lost == 0


def test_large_blocks_of_sound_wait_for_a_reader_that_is_busy(bus: CameraBus) -> None:
    block = AudioBlock(stamp_ns=1, sample_index=0, samples=8192, rate_hz=48_000, channels=1, format="f32")
    with bus.publisher("microphone/a") as publisher, bus.subscriber("microphone/a") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        assert subscriber.receive(0.1) is None  # as if it processed a message
        for _ in range(20):
            publisher.send(block, bytes(4 * 8192))
        assert [message.header.seq for _ in range(20) if (message := subscriber.receive(LONG_S))] == [
            *range(20)
        ]


# --- references ---


def test_a_payload_never_changes_while_it_is_held(bus: CameraBus) -> None:
    with bus.publisher() as publisher, bus.subscriber() as subscriber, bus.subscriber() as other:
        eventually(lambda: publisher.subscribers == 2)
        held = []
        for value in range(200):
            held.append((value, exchange(publisher, subscriber, value).payload[100:]))
            assert other.receive(LONG_S) is not None
            if value % 3:
                held.pop(value % len(held))
            assert len(held) < 100
        assert any(not shared(payload) for _, payload in held)
        for value, payload in held:
            assert bytes(payload) == bytes(filled(value)[100:])


def test_a_reader_that_looks_back_over_many_frames_need_not_copy_them(bus: CameraBus) -> None:
    with bus.publisher() as publisher, bus.subscriber() as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        held: deque[tuple[int, Payload]] = deque(maxlen=15)
        for value in range(100):
            held.append((value, exchange(publisher, subscriber, value).payload))
            assert shared(held[-1][1])
        for value, payload in held:
            assert bytes(payload) == bytes(filled(value))


def test_a_thread_that_took_a_frame_in_for_others_holds_it_no_longer(bus: CameraBus) -> None:
    class InDemand(Inbox):
        def put(self, message: Message[Header]) -> None:
            super().put(message)
            self.waiting += 1  # so the thread leaves the socket to that consumer

    inbox = InDemand(Mailbox())
    drain = Drain(("camera/a",), bus.runtime, bus.clock.now_ns, {}, None, inbox, lossless=False)
    thread = Thread(target=drain.run, daemon=True)
    with bus.publisher() as publisher:
        thread.start()
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(FRAME, filled(1))
        eventually(lambda: inbox.filled)
        message = inbox.take()
        assert message is not None
        assert shared(message.payload)
        payload = weakref.ref(message.payload)
        del message
        eventually(lambda: payload() is None)
    inbox.close()
    thread.join(LONG_S)


def test_a_slot_is_read_by_no_name_but_the_last_it_was_given() -> None:
    ring = lane.Ring(SIZE)
    reader = lane.Reader(ring.file)
    places: list[tuple[int, int]] = []
    for value in range(40):
        loan = ring.lend(SIZE)
        assert loan is not None
        loan.data[:] = bytes([value]) * SIZE
        places.append((loan.slot, ring.commit(loan.slot)))
    last = dict(places)
    for value, (slot, generation) in enumerate(places):
        payload = reader.payload(slot, SIZE, generation)
        assert payload is None or (last[slot] == generation and set(bytes(payload)) == {value})
    assert payload is not None


def test_a_reader_too_slow_for_the_ring_gets_no_old_slot_under_a_new_name(bus: CameraBus) -> None:
    slow = """
with Subscriber("camera/a", **place) as subscriber:
    seqs = []
    while len(seqs) < 10:
        message = subscriber.receive(5)
        pixels = np.frombuffer(message.payload, np.uint8)
        assert (pixels == message.header.seq % 251).all()
        seqs.append(message.header.seq)
        time.sleep(0.02)
    health = subscriber.health()["camera/a"]
    accounted = health.consumed + health.queued + sum(health.dropped.values())
    print(seqs[0], seqs[-1], health.received, accounted, health.lost)
"""
    with bus.publisher() as publisher, bus.process(slow) as reader:
        while reader.poll() is None:
            publisher.send(FRAME, filled(publisher.published))
        assert reader.stdout is not None
        first, last, received, accounted, lost = map(int, reader.stdout.readline().split())
        assert last - first > 100  # the reader is too slow
        assert received == accounted
        assert last - first < received + lost <= publisher.published


def test_readers_who_hold_everything_cannot_use_up_the_ring(bus: CameraBus) -> None:
    with ExitStack() as stack:
        publisher = stack.enter_context(bus.publisher())
        readers = [stack.enter_context(bus.subscriber()) for _ in range(3)]
        eventually(lambda: publisher.subscribers == len(readers))
        held = []
        for value in range(60):
            publisher.send(FRAME, filled(value))
            for reader in readers:
                message = reader.receive(LONG_S)
                assert message is not None
                if value % len(readers) == readers.index(reader):
                    held.append((value, message.payload))
        assert {shared(payload) for _, payload in held} == {True, False}
        for value, payload in held:
            assert bytes(payload) == bytes(filled(value))
        assert all(reader.health()["camera/a"].consumed == 60 for reader in readers)


# --- where references are not counted ---


def test_whether_references_are_counted_is_tried_out() -> None:
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    assert lane.references_are_counted() is not free_threaded
    assert not lane.references_are_counted(gil=False)
    assert not lane.references_are_counted(lambda one: sys.getrefcount(one) - 2)  # of a borrowed reference
    assert not lane.references_are_counted(lambda one: 2)  # no difference between used and unused
    assert not lane.references_are_counted(lambda one: 1 << 30)  # immortal


def test_where_references_are_not_counted_payloads_are_copied_and_their_slots_free_at_once() -> None:
    ring = lane.Ring(SIZE, counted=False)
    reader = lane.Reader(ring.file, counted=False)
    read = []
    for value in range(100):
        loan = ring.lend(SIZE)
        assert loan is not None
        loan.data[:] = filled(value).data
        payload = reader.payload(loan.slot, SIZE, ring.commit(loan.slot))
        assert payload is not None
        assert not shared(payload)
        read.append(payload)
    assert all(bytes(payload) == bytes(filled(value)) for value, payload in enumerate(read))


def test_where_references_are_not_counted_a_loan_that_may_be_in_use_is_never_lent_again() -> None:
    ring = lane.Ring(SIZE, counted=False)
    loan = ring.lend(SIZE)
    assert loan is not None
    in_use, data = loan.slot, loan.data
    del loan
    for _ in range(200):
        other = ring.lend(SIZE)
        assert other is not None
        assert other.slot != in_use
        ring.commit(other.slot)
    assert len(data) == SIZE


# --- invalid data ---


def test_a_ring_that_cannot_be_opened_sends_the_reader_back_to_zeromq(bus: CameraBus, tmp_path: Path) -> None:
    header = codec.encode("camera/a", FRAME, filled(0))[1]
    with (
        bus.runtime.claim("camera/a"),
        zmq.Context() as context,
        context.socket(zmq.XPUB) as foreign,
        bus.subscriber() as subscriber,
        (tmp_path / "file").open("wb") as file,
    ):
        foreign.set(zmq.LINGER, 0)
        foreign.bind(bus.runtime.ipc_endpoint("camera/a"))
        plain, lane_request = foreign.recv(), foreign.recv()
        assert plain == b"\1camera/a"
        assert lane_request.startswith(b"\1~")
        assert lane_request.endswith(b"/camera/a")
        socket_file = packet.path(bus.runtime.base, lane_request[2:].partition(b"/")[0])
        lane_readers = packet.Sender(socket_file, b"camera/a")
        ring = lane.Ring(SIZE)
        placed = packet.pack_placed(bytes(header), 0, SIZE, ring.commit(0))
        lane_readers.send(placed, replaced(ring, file.fileno()))
        assert foreign.recv() == b"\0" + lane_request[1:]
        foreign.send_multipart([b"camera/a", header, bytes(filled(3))])
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert bytes(message.payload) == bytes(filled(3))
        assert subscriber.health()["camera/a"].dropped == {"overwritten": 1}
        lane_readers.close()


def replaced(ring: lane.Ring, file: int) -> lane.Ring:
    other = copy.copy(ring)
    other.file = file
    return other


def test_another_file_is_not_taken_for_a_ring(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb+") as file:
        for size in (0, 10, 4096, 4096 * 34):
            file.truncate(size)
            with pytest.raises(ValueError, match="not the file of a ring"):
                lane.Reader(file.fileno())
        file.truncate(4096 * 33)
        with pytest.raises(OSError, match="Invalid argument"):  # cannot be sealed
            lane.Reader(file.fileno())
