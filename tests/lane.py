"""A camera and its readers by the lane, for tests of the lane."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import CameraFrame, Header, Message, Payload
from tests.bus import Bus
from tests.waiting import LONG_S

WIDTH, HEIGHT = 320, 240
SIZE = WIDTH * HEIGHT * 3
FRAME = CameraFrame(stamp_ns=1, width=WIDTH, height=HEIGHT, encoding="bgr8")
CAMERA = """
import sys, time
from pathlib import Path
import numpy as np
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import CameraFrame
base = Path(sys.argv[1])
place = {"runtime": Runtime(base=base), "clock": HostClock(base).now_ns}
"""


class CameraBus(Bus):
    """A domain with one camera."""

    def publisher(self, topic: str = "camera/a", **options: Any) -> Publisher:
        return super().publisher(topic, **options)

    def subscriber(self, *patterns: str, **options: Any) -> Subscriber:
        return super().subscriber(*(patterns or ("camera/a",)), **options)

    def process(self, code: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", CAMERA + code, str(self.runtime.base)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def filled(value: int) -> np.ndarray:
    return np.full(SIZE, value % 251, np.uint8)


def exchange(publisher: Publisher, subscriber: Subscriber, value: int) -> Message[Header]:
    publisher.send(FRAME, filled(value))
    message = subscriber.receive(LONG_S)
    assert message is not None
    assert bytes(message.payload) == bytes(filled(value))
    return message


def shared(payload: Payload) -> bool:
    return isinstance(payload, memoryview) and isinstance(payload.obj, msgspec.Raw)


def rings(*, collect: bool = True) -> int:
    """Shared memory that this process has open or mapped."""
    if collect:
        gc.collect()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:perception")
    names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return maps + sum("memfd:perception" in os.readlink(name) for name in names if os.path.islink(name))
