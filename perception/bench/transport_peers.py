"""Other transports, behind one interface: each sends and receives stamped payloads."""

import argparse
import ctypes
import json
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

STAMP: Final = struct.Struct("<q")
"""At the beginning of every payload: the time it was sent, CLOCK_MONOTONIC in ns."""
SILENT_S: Final = 10.0

Emit = Callable[[], None]
Frames = Iterator[tuple[int, int]]
"""(time sent in ns, size) of each received message; ends when nothing is received for SILENT_S."""


def stamp(payload: Any) -> None:
    """Write the current time to the beginning of a payload."""
    STAMP.pack_into(payload, 0, time.monotonic_ns())


def read(payload: Any) -> tuple[int, int]:
    """Return the time written to a payload, and its size."""
    return STAMP.unpack_from(payload)[0], len(payload)


class Pyzmq:
    """Plain pyzmq over ipc: multipart, payload not copied."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.size = arguments.size
        self.endpoint = f"ipc://{arguments.where}/pyzmq"

    @contextmanager
    def sending(self) -> Iterator[Emit]:
        """Yield a function that sends one message."""
        import zmq

        # a new image each time, as from a camera: ZeroMQ still reads the one before
        with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
            socket.bind(self.endpoint)
            socket.poll(int(SILENT_S * 1e3))
            images: list[Any] = [np.zeros(self.size, np.uint8) for _ in range(8)]

            def emit() -> None:
                images.append(images.pop(0))
                stamp(images[0])
                socket.send_multipart([b"camera", b"header", images[0]], copy=self.size < 65536)

            yield emit

    @contextmanager
    def receiving(self) -> Iterator[Frames]:
        """Yield the received messages."""
        import zmq

        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(self.endpoint)

            def frames() -> Frames:
                while socket.poll(int(SILENT_S * 1e3)):
                    yield read(socket.recv_multipart(copy=False)[2].buffer)

            yield frames()


class Dora:
    """dora-rs; each end is a node that `dora run` starts."""

    lent = False

    def __init__(self, arguments: argparse.Namespace) -> None:
        import dora

        self.size = arguments.size
        self.node: Any = dora.Node()

    @contextmanager
    def sending(self) -> Iterator[Emit]:
        """Yield a function that sends one message."""
        import pyarrow as pa

        image = np.zeros(self.size, np.uint8)

        def copy() -> None:
            stamp(image)
            self.node.send_output("frame", pa.array(image))

        def lend() -> None:
            with self.node.send_output_raw("frame", self.size) as buffer:
                stamp(buffer)

        yield lend if self.lent else copy

    @contextmanager
    def receiving(self) -> Iterator[Frames]:
        """Yield the received messages."""

        def frames() -> Frames:
            while (event := self.node.next(timeout=SILENT_S)) is not None:
                if event["type"] == "INPUT":
                    yield read(event["value"].buffers()[1])
                elif event["type"] in ("STOP", "ERROR"):
                    return

        yield frames()


class DoraLoan(Dora):
    """dora-rs; the payload is written in place."""

    lent = True


class Zenoh:
    """Two zenoh peers, connected directly; the payload is in the shared memory of zenoh."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.size = arguments.size
        self.endpoint = json.dumps([f"unixsock-stream/{arguments.where}/zenoh"])

    @contextmanager
    def sending(self) -> Iterator[Emit]:
        """Yield a function that sends one message."""
        import zenoh
        from zenoh import shm

        with self._session("listen/endpoints") as session:
            provider = shm.ShmProvider.default_backend(8 * max(self.size, 1 << 16))
            publisher = session.declare_publisher("frame")
            while not publisher.matching_status.matching:
                time.sleep(0.01)

            def emit() -> None:
                buffer = provider.alloc(self.size, policy=shm.BlockOn(shm.GarbageCollect()))
                buffer[: STAMP.size] = STAMP.pack(time.monotonic_ns())
                publisher.put(zenoh.ZBytes(buffer))

            yield emit

    @contextmanager
    def receiving(self) -> Iterator[Frames]:
        """Yield the received messages."""
        with self._session("connect/endpoints") as session:
            subscriber = session.declare_subscriber("frame")

            def frames() -> Frames:
                for sample in subscriber:
                    yield read(sample.payload.to_bytes())  # in Python there is only a copy

            yield frames()

    def _session(self, side: str) -> Any:
        import zenoh

        config = zenoh.Config()
        config.insert_json5(side, self.endpoint)
        config.insert_json5("connect/timeout_ms", "10000")
        config.insert_json5("scouting/multicast/enabled", "false")
        return zenoh.open(config)


class Iceoryx:
    """iceoryx2; the payload is written in place, an event wakes the reader."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import iceoryx2 as iox

        iox.set_log_level(iox.LogLevel.Fatal)
        self.size = arguments.size
        self.node: Any = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        name = iox.ServiceName.new(str(arguments.where))
        self.event: Any = self.node.service_builder(name).event().open_or_create()
        builder: Any = self.node.service_builder(name)
        self.frames: Any = builder.publish_subscribe(iox.Slice[ctypes.c_uint8]).open_or_create()

    @contextmanager
    def sending(self) -> Iterator[Emit]:
        """Yield a function that sends one message."""
        notifier = self.event.notifier_builder().create()
        publisher = self.frames.publisher_builder().initial_max_slice_len(self.size).create()
        while not self.event.dynamic_config.number_of_listeners:
            time.sleep(0.01)

        def emit() -> None:
            sample = publisher.loan_slice_uninit(self.size)
            stamp(sample.payload().as_memory_view())
            sample.assume_init().send()
            notifier.notify()

        yield emit

    @contextmanager
    def receiving(self) -> Iterator[Frames]:
        """Yield the received messages."""
        import iceoryx2 as iox

        subscriber = self.frames.subscriber_builder().create()
        listener = self.event.listener_builder().create()
        patience = iox.Duration.from_secs(int(SILENT_S))

        def frames() -> Frames:
            while listener.timed_wait(patience):
                while (sample := subscriber.receive()) is not None:
                    yield read(sample.payload().as_memory_view())

        yield frames()
