"""How exactly another host's stamps are corrected: two network namespaces, a faked clock in one of them.

    sudo python -m tests.benchmarks.host_clocks [--seconds 150] [--only idle|loaded|step]

The other host's clock is 30 s ahead and 100 ppm fast (libfaketime, `apt-get install faketime`). `loaded`: the
link has 8 Mbit/s (tbf) and images of 7.2 Mbit/s fill 90 % of it one way; their own stamps are measured. The
truth comes from the kernel by a raw system call, which libfaketime does not see. Needs root and `ip`.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.bus.time_service import TimeServer
from perception.messages import CameraFrame
from perception.profile.hosts import RemoteHost
from perception.units import Clock

_CLOCK_GETTIME: Final = 228  # x86-64
_BOOTTIME: Final = 7
_RATE_HZ: Final = 25.0
_IMAGE: Final = {"idle": 1_000, "step": 1_000, "loaded": 36_000}
"""Bytes of an image: 25 of 36 kB a second are 7.2 Mbit/s."""
_STEP_NS: Final = -3_600_000_000_000
_READ_NS: Final = 20_000
_HERE, _THERE = "10.177.0.1", "10.177.0.2"
_FAKED: Final = ("faketime", "-f", "+30s x1.0001")


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc: Final = ctypes.CDLL(None)


def true_ns() -> int:
    """Return the kernel's CLOCK_BOOTTIME, whatever clock this process is shown."""
    now = _Timespec()
    _libc.syscall(_CLOCK_GETTIME, _BOOTTIME, ctypes.byref(now))
    return int(now.seconds) * 10**9 + int(now.nanoseconds)


def _stamped(clock: Clock) -> tuple[int, int]:
    """Return the clock and the truth at one time; read again if the process lost the processor between."""
    while True:
        before, stamp_ns, after = true_ns(), clock(), true_ns()
        if after - before < _READ_NS:
            return stamp_ns, (before + after) // 2


def serve(mode: str, seconds: float) -> None:
    """Be the other host: answer time requests, publish images that carry the true time of their stamp."""
    with tempfile.TemporaryDirectory(prefix="there") as folder:
        host, step_ns, begun = HostClock(Path(folder)), 0, true_ns()

        def clock() -> int:
            return host.now_ns() + step_ns

        image = bytearray(_IMAGE[mode])
        ended = threading.Event()
        with (
            TimeServer(f"tcp://{_THERE}:5600", clock=clock, insecure=True) as server,
            Publisher(
                "camera/front",
                source="there",
                runtime=Runtime(base=Path(folder)),
                clock=clock,
                endpoint=f"tcp://{_THERE}:5601",
                insecure=True,
            ) as images,
        ):

            def answer() -> None:
                while not ended.is_set():
                    server.serve(0.05)

            thread = threading.Thread(target=answer)
            thread.start()
            while (past_s := (true_ns() - begun) / 1e9) < seconds:
                if mode == "step" and past_s > seconds / 2 and not step_ns:
                    step_ns = _STEP_NS
                    print(json.dumps({"stepped": true_ns()}), flush=True)
                stamp_ns, true = _stamped(clock)
                image[:8] = true.to_bytes(8, "big")
                header = CameraFrame(stamp_ns=stamp_ns, width=640, height=480, encoding="jpeg")
                images.send(header, bytes(image))
                time.sleep(1 / _RATE_HZ)
            ended.set()
            thread.join()


def read(mode: str, seconds: float) -> dict[str, Any]:
    """Be this host: return how far corrected stamps are from the truth, in ms."""
    with tempfile.TemporaryDirectory(prefix="here") as folder:
        host = HostClock(Path(folder))
        there = RemoteHost(f"tcp://{_THERE}:5600", {"camera/front": f"tcp://{_THERE}:5601"})
        errors: list[tuple[float, float]] = []
        ages, found_ns, drift_at_60, begun = [], 0, None, 0
        with Subscriber(
            "camera/front",
            runtime=Runtime(base=Path(folder)),
            clock=host.now_ns,
            hosts={"there": there},
            insecure=True,
        ) as images:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                message = images.receive(0.5)
                known = images.host_times()["there"]
                if known.steps and not found_ns:
                    found_ns = true_ns()
                if message is None:
                    continue
                true = int.from_bytes(bytes(message.payload[:8]), "big")
                begun = begun or true
                past_s = (true - begun) / 1e9
                if drift_at_60 is None and past_s >= 60:
                    drift_at_60 = known.drift_ppm
                errors.append((past_s, (message.header.stamp_ns - host.anchor_ns - true) / 1e6))
                ages.append((message.received_ns - message.header.stamp_ns) / 1e6)
        settled = sorted(abs(error) for past_s, error in errors if past_s >= (0 if mode == "step" else 60))
        first = sorted(abs(error) for past_s, error in errors if past_s < 60)
        return {
            "mode": mode,
            "load": os.getloadavg(),
            "messages": len(errors),
            "error_ms": _spread(settled),
            "first_minute_error_ms": _spread(first),
            "drift_ppm_at_60_s": drift_at_60,
            "reported": {name: getattr(known, name) for name in known.__struct_fields__},
            "lowest_age_ms": round(min(ages), 3),
            "step_found": found_ns,
        }


def _spread(ordered: list[float]) -> dict[str, float]:
    if not ordered:
        return {}
    return {
        name: round(ordered[min(len(ordered) - 1, round(share * len(ordered)))], 4)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    }


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def namespaces(*, throttled: bool) -> Iterator[tuple[str, str]]:
    """Two namespaces with a link; the way from the second to the first has 8 Mbit/s if `throttled`."""
    one, other = f"here{os.getpid()}", f"there{os.getpid()}"
    with ExitStack() as stack:
        for name in (one, other):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", "v0", "netns", one, "type", "veth", "peer", "name", "v0", "netns", other)
        for name, address in ((one, _HERE), (other, _THERE)):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "v0")
            for device in ("v0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
        if throttled:
            limit = ("rate", "8mbit", "burst", "4kb", "latency", "400ms")
            shape = ("tc", "qdisc", "add", "dev", "v0", "root", "tbf", *limit)
            subprocess.run(["ip", "netns", "exec", other, *shape], check=True)
        yield one, other


def measure(mode: str, seconds: float) -> dict[str, Any]:
    """Run both hosts; return what the reader measured."""
    with namespaces(throttled=mode == "loaded") as (here, there):
        module = (sys.executable, "-m", __spec__.name, "--only", mode, "--seconds", str(seconds))
        serving = subprocess.Popen(
            ["ip", "netns", "exec", there, *_FAKED, *module, "--as", "there"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            reading = subprocess.run(
                ["ip", "netns", "exec", here, *module, "--as", "here"],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            serving.terminate()
        result: dict[str, Any] = json.loads(reading.stdout)
        stepped = [json.loads(line)["stepped"] for line in serving.communicate()[0].splitlines()]
        found_ns = result.pop("step_found")
        if stepped:
            result = {key: result[key] for key in ("mode", "load")}
            result["step_found_after_s"] = round((found_ns - stepped[0]) / 1e9, 2) if found_ns else None
        return result


def main() -> None:
    """Parse the arguments and print one JSON object per measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--only", choices=tuple(_IMAGE))
    parser.add_argument("--as", choices=("here", "there"), dest="role")
    arguments = parser.parse_args()
    if arguments.role == "there":
        serve(arguments.only, arguments.seconds + 5)
    elif arguments.role == "here":
        print(json.dumps(read(arguments.only, arguments.seconds)))
    else:
        for mode in [arguments.only] if arguments.only else _IMAGE:
            print(json.dumps(measure(mode, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
