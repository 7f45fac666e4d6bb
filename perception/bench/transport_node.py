"""One end of a transport measurement: `python -P -m perception.bench.transport_node CASE END ...`.

Writes one JSON object: the receiver its latencies in microseconds, both ends their CPU time per message, user
and system, all threads. The first messages, while rings fill and connections settle, are not counted.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from perception.bench.transport_peers import (
    SILENT_S,
    STAMP,
    Dora,
    DoraLoan,
    Emit,
    Frames,
    Iceoryx,
    Pyzmq,
    Zenoh,
    read,
    stamp,
)

if TYPE_CHECKING:
    from perception.bus.publisher import Publisher

WARM_UP: Final = 30


def main() -> None:
    """Run one end until it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("end", choices=["send", "receive"])
    parser.add_argument("--size", type=int, required=True, help="payload bytes")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="messages per second")
    parser.add_argument("--where", type=Path, required=True, help="folder for sockets and results")
    arguments = parser.parse_args()
    case = CASES[arguments.case](arguments)
    if arguments.end == "send":
        with case.sending() as emit:
            result = _send(emit, arguments.count, arguments.rate)
    else:
        with case.receiving() as frames:
            result = _receive(frames, arguments.count)
    # not to stdout: dora captures it
    (arguments.where / f"{arguments.end}.json").write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some of the peers' threads do not end


def _send(emit: Emit, count: int, rate_hz: float) -> dict[str, Any]:
    due_s, begun_s = time.monotonic(), 0.0
    for number in range(WARM_UP + count):
        if number == WARM_UP:
            begun_s = _cpu_s()
        emit()
        due_s += 1 / rate_hz
        time.sleep(max(0.0, due_s - time.monotonic()))
    spent_s = _cpu_s() - begun_s
    time.sleep(0.5)
    return {"cpu_us": spent_s / count * 1e6}


def _receive(frames: Frames, count: int) -> dict[str, Any]:
    arrived: list[tuple[float, float]] = []
    for sent_ns, _ in frames:
        arrived.append(((time.monotonic_ns() - sent_ns) / 1e3, _cpu_s()))
        if len(arrived) >= WARM_UP + count:
            break
    if not arrived:
        sys.exit(f"nothing received within {SILENT_S:g} s")
    counted = arrived[WARM_UP:] or arrived  # on a busy machine there may be no others
    spent_s = counted[-1][1] - counted[0][1]
    return {"latencies_us": [latency for latency, _ in counted], "cpu_us": spent_s / len(counted) * 1e6}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Perception:
    """The bus of this package; `send` copies the payload."""

    topic = "camera/bench"
    lent = False

    def __init__(self, arguments: argparse.Namespace) -> None:
        from perception.bus.host import HostClock, Runtime

        self.size = arguments.size
        self.runtime = Runtime(base=arguments.where / "runtime")
        self.clock = HostClock(self.runtime.base)

    @contextmanager
    def sending(self) -> Iterator[Emit]:
        """Yield a function that sends one message."""
        from perception.messages import CameraFrame

        # a JPEG may be smaller than its pixels, so one header fits all
        header = CameraFrame(stamp_ns=1, width=1920, height=1080, encoding="jpeg")
        image = np.zeros(self.size, np.uint8)
        with self._publisher() as publisher:
            publisher.wait_for_subscriber(SILENT_S)

            def copy() -> None:
                stamp(image)
                publisher.send(header, image)

            def lend() -> None:
                loan = publisher.loan(self.size)
                stamp(loan.data)
                publisher.send(header, loan)

            yield lend if self.lent else copy

    def _publisher(self) -> "Publisher":
        from perception.bus.publisher import Publisher

        return Publisher(self.topic, source="bench", runtime=self.runtime, clock=self.clock.now_ns)

    @contextmanager
    def receiving(self) -> Iterator[Frames]:
        """Yield the received messages."""
        from perception.bus.subscriber import Subscriber

        with Subscriber(self.topic, runtime=self.runtime, clock=self.clock.now_ns) as subscriber:

            def frames() -> Frames:
                while message := subscriber.receive(SILENT_S):
                    yield read(message.payload)

            yield frames()


class PerceptionLoan(Perception):
    """The bus of this package; the payload is written in place."""

    lent = True


class State(Perception):
    """The bus of this package with a state of about 2 kB; the payload is only the stamp."""

    topic = "state/bench"

    @contextmanager
    def sending(self) -> Iterator[Emit]:
        """Yield a function that sends one message."""
        from perception.bench.samples import fused_state

        state = fused_state()
        with self._publisher() as publisher:
            publisher.wait_for_subscriber(SILENT_S)

            def emit() -> None:
                publisher.send(state, STAMP.pack(time.monotonic_ns()))

            yield emit


CASES: Final[dict[str, Callable[[argparse.Namespace], Any]]] = {
    "perception": Perception,
    "perception-loan": PerceptionLoan,
    "perception-state": State,
    "pyzmq": Pyzmq,
    "dora": Dora,
    "dora-loan": DoraLoan,
    "zenoh": Zenoh,
    "iceoryx2": Iceoryx,
}

if __name__ == "__main__":
    main()
