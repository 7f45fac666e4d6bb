"""A process of a scale measurement: `python -P -m perception.bench.scale_node capture|publish|read`.

`capture` publishes frames and sound as cameras and microphones do, until stopped. `publish` sends states to
so many readers; `read` runs these readers. The last two print one JSON object each.
"""

import argparse
import json
import resource
import signal
import statistics
import sys
import time
from typing import Any, Final

import cv2
import msgpack
import numpy as np
import zmq

from perception.bench.samples import fused_state
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.graph.processes import StopEvent
from perception.messages import AudioBlock, CameraFrame

CAMERA_HZ: Final = 30.0
SOUND_HZ: Final = 16_000
BLOCK: Final = 512
"""Samples of a block."""
STATE_HZ: Final = 25.0
STATE_TOPIC: Final = "state/scale"
_SIZE: Final = (640, 480)
_WARM_UP: Final = 20
_SILENT_MS: Final = 10_000


def main() -> None:
    """Run one process to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["capture", "publish", "read"])
    parser.add_argument("--domain", required=True)
    parser.add_argument("--cameras", type=int, default=0)
    parser.add_argument("--microphones", type=int, default=0)
    parser.add_argument("--readers", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="states to send")
    arguments = parser.parse_args()
    runtime = Runtime(arguments.domain)
    if arguments.role == "capture":
        _capture(runtime, arguments.cameras, arguments.microphones)
    else:
        role = _publish if arguments.role == "publish" else _read
        json.dump(role(runtime, arguments.readers, arguments.count), sys.stdout)


def _capture(runtime: Runtime, cameras: int, microphones: int) -> None:
    """Publish all streams from one thread, in order of their due times, until SIGTERM."""
    stopped = StopEvent()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    clock = HostClock().now_ns
    begun_ns = clock()
    frames = [_jpeg(number) for number in range(8)]
    block = (np.random.default_rng(1).standard_normal(BLOCK) * 3000).astype(np.int16).tobytes()
    rates_hz = {f"camera/scale-{number}": CAMERA_HZ for number in range(cameras)}
    rates_hz |= {f"microphone/scale-{number}": SOUND_HZ / BLOCK for number in range(microphones)}
    outputs = [Publisher(topic, source="scale", runtime=runtime, clock=clock) for topic in rates_hz]

    def due_ns(out: Publisher) -> int:
        # with different phases, as independent devices have
        phase = outputs.index(out) / len(outputs)
        return begun_ns + round((out.published + phase) * 1e9 / rates_hz[out.topic])

    while True:
        out = min(outputs, key=due_ns)
        stamp_ns = due_ns(out)
        if stopped.wait(max(0, stamp_ns - clock()) / 1e9):
            break
        if out.topic.startswith("camera"):
            frame = CameraFrame(stamp_ns=stamp_ns, width=_SIZE[0], height=_SIZE[1], encoding="jpeg")
            out.send(frame, frames[out.published % len(frames)])
        else:
            index = out.published * BLOCK
            first_ns = stamp_ns - round(BLOCK * 1e9 / SOUND_HZ)
            header = AudioBlock(stamp_ns=first_ns, sample_index=index, samples=BLOCK, rate_hz=SOUND_HZ)
            out.send(header, block)
    for out in outputs:
        out.close()


def _jpeg(number: int) -> bytes:
    """Return a picture of about 40 kB; a disc in it moves with the number."""
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (_SIZE[1] // 8, _SIZE[0] // 8, 3), dtype=np.uint8)
    image = cv2.resize(small, _SIZE, interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (80 + 60 * number, 240), 40, (0, 0, 255), -1)
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()


def _publish(runtime: Runtime, readers: int, count: int) -> dict[str, Any]:
    """Send states once all readers are connected; return the CPU time per state."""
    state = fused_state()
    with Publisher(STATE_TOPIC, source="scale", runtime=runtime, clock=HostClock().now_ns) as out:
        while out.subscribers < readers:
            time.sleep(0.01)
        due_s, begun_s = time.monotonic(), 0.0
        for number in range(_WARM_UP + count):
            if number == _WARM_UP:
                begun_s = cpu_s()
            out.send(state)
            due_s += 1 / STATE_HZ
            time.sleep(max(0.0, due_s - time.monotonic()))
        return {"cpu_us": (cpu_s() - begun_s) / count * 1e6}


def _read(runtime: Runtime, readers: int, count: int) -> dict[str, Any]:
    """Run so many subscribers, each with a socket of its own; return latency and share received."""
    clock = HostClock().now_ns
    context, poller = zmq.Context(), zmq.Poller()
    for _ in range(readers):
        socket = context.socket(zmq.SUB)
        socket.set(zmq.LINGER, 0)
        socket.subscribe(STATE_TOPIC)
        socket.connect(runtime.ipc_endpoint(STATE_TOPIC))
        poller.register(socket, zmq.POLLIN)
    latencies_us: list[float] = []
    expected = readers * (_WARM_UP + count)
    received = 0
    while received < expected and (ready := poller.poll(_SILENT_MS)):
        for socket, _ in ready:
            _, header = socket.recv_multipart()
            received += 1
            if received > readers * _WARM_UP:
                latencies_us.append((clock() - msgpack.unpackb(header)["sent_ns"]) / 1e3)
    context.destroy(linger=0)
    return {"p50_us": statistics.median(latencies_us), "received": received / expected}


def cpu_s() -> float:
    """Return the CPU time of this process, user and system, all threads."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    main()
