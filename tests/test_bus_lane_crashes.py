"""The lane when processes are killed: sent messages arrive, no files are left."""

import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

import pytest
import zmq

from perception.bus import lane, packet
from perception.bus.audience import Audience
from perception.messages import Payload
from perception.session.recorder import EVERY_MESSAGE
from tests.bus import Bus
from tests.lane import CAMERA, FRAME, SIZE, CameraBus, exchange, filled, rings, shared
from tests.waiting import LONG_S, eventually

pytestmark = pytest.mark.skipif(not lane.SUPPORTED, reason="needs Linux")


@pytest.fixture
def bus(bus: Bus) -> CameraBus:
    return CameraBus(bus.runtime.base)


def test_a_killed_publisher_leaves_what_was_received_and_nothing_else(bus: CameraBus) -> None:
    camera = """
with Publisher("camera/a", source="victim", **place) as publisher:
    publisher.wait_for_subscriber(5)
    header = CameraFrame(stamp_ns=1, width=320, height=240, encoding="bgr8")
    while True:
        publisher.send(header, np.full(320 * 240 * 3, publisher.published % 251, np.uint8))
        time.sleep(0.002)
"""
    before = rings()
    with bus.subscriber() as subscriber:
        with bus.process(camera) as victim:
            payload: Payload = b""
            while not shared(payload):
                message = subscriber.receive(LONG_S)
                assert message is not None
                payload = message.payload
            victim.kill()
            victim.wait()
        assert message is not None
        assert bytes(payload) == bytes(filled(message.header.seq))
        with bus.publisher() as publisher:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(FRAME, filled(7))
            arrived = subscriber.receive(LONG_S)
            while arrived is not None and arrived.header.source != publisher.source:
                arrived = subscriber.receive(LONG_S)
            assert arrived is not None
            assert bytes(arrived.payload) == bytes(filled(7))
    del publisher, subscriber, arrived
    del payload, message
    eventually(lambda: rings() == before)


def test_a_killed_reader_gives_back_what_it_held(bus: CameraBus) -> None:
    hoarder = """
with Subscriber("camera/a", **place) as subscriber:
    held = []
    for message in subscriber:
        held.append(message)
        print("up" if not isinstance(message.payload.obj, bytes) else "", flush=True)
"""
    with bus.publisher() as publisher:
        for _ in range(4):
            with bus.process(hoarder) as reader:
                assert reader.stdout is not None
                assert publisher.wait_for_subscriber(LONG_S)
                held = 0
                while held < 16:
                    publisher.send(FRAME, filled(publisher.published))
                    held += reader.stdout.readline() == "up\n"
                reader.kill()
                reader.wait()
            eventually(lambda: publisher.subscribers == 0)
        with bus.subscriber() as subscriber:
            assert publisher.wait_for_subscriber(LONG_S)
            exchange(publisher, subscriber, 0)
            loans = [publisher.loan(SIZE) for _ in range(31)]  # that one is free after the next message
            assert all(loan.ring is not None for loan in loans)


def test_a_killed_readers_socket_is_removed_by_the_next_reader(bus: CameraBus) -> None:
    with bus.process(
        'with Subscriber("camera/a", **place): print("up", flush=True); time.sleep(60)'
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "up\n"
        reader.kill()
    assert len(list(bus.runtime.base.glob(".*.reader"))) == 1
    with bus.subscriber() as first, bus.subscriber():
        assert len(list(bus.runtime.base.glob(".*.reader"))) == 2
        first.close()
        eventually(lambda: len(list(bus.runtime.base.glob(".*.reader"))) == 1)
    eventually(lambda: not list(bus.runtime.base.glob(".*.reader")))


def test_the_only_frame_of_a_process_that_ends_at_once_arrives(bus: CameraBus) -> None:
    with bus.subscriber() as subscriber:
        with bus.publisher() as publisher:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(FRAME, filled(1))
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert bytes(message.payload) == bytes(filled(1))


def test_what_a_publisher_sent_before_it_was_killed_arrives(bus: CameraBus) -> None:
    code = (
        CAMERA
        + """
import os, signal
publisher = Publisher("camera/a", source="test", **place)
assert publisher.wait_for_subscriber(15)
for _ in range(50):
    publisher.send(CameraFrame(stamp_ns=1, width=9, height=9, encoding="jpeg"), b"jpeg")
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    with bus.subscriber(policies=EVERY_MESSAGE) as recorder:
        killed = subprocess.run(
            [sys.executable, "-c", code, str(bus.runtime.base)], timeout=LONG_S, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        messages = [recorder.receive(LONG_S) for _ in range(50)]
        assert [message.header.seq for message in messages if message] == list(range(50))


def test_who_is_to_miss_nothing_is_served_first(bus: CameraBus) -> None:
    with (
        bus.runtime.claim("camera/a"),
        zmq.Context() as context,
        context.socket(zmq.XPUB) as socket,
        ExitStack() as stack,
    ):
        socket.bind(bus.runtime.ipc_endpoint("camera/a"))
        audience = Audience(socket, "camera/a", bus.runtime.base)
        for count, policies in enumerate((None, EVERY_MESSAGE, None), start=1):
            stack.enter_context(bus.subscriber(policies=policies))
            eventually(partial(joined, audience, count))
        wants = [packet.is_lossless(name) for name in audience.lane_readers]
        assert wants == [True, False, False]
        audience.close()


def joined(audience: Audience, count: int) -> bool:
    audience.update()
    audience.socket_used = True
    return len(audience.lane_readers) == count
