"""Start-up time: first state of the demo; first frame and memory of its camera process.

Each is started once before it is measured, so files are in memory and modules are compiled.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perception.bench.child import child
from perception.bench.rounds import Values
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.graph.plan import plan
from perception.profile import load

_PROFILE: Final = "demo"
_CAMERA: Final = "camera-front"
_PATIENCE_S: Final = 60.0
_SETTLE_S: Final = 2.0


def cases(domain: str = "bench") -> dict[str, Callable[[], Values]]:
    """Return the measurements by name; all run the shipped demo unchanged, in `domain`."""
    return {
        "limit: python and torch": _warmed(_imports),
        "demo": _warmed(lambda: _demo(domain)),
        "camera": _warmed(lambda: _camera(domain)),
    }


def _warmed(start: Callable[[], Values]) -> Callable[[], Values]:
    """Return a function that calls `start`; its first call runs `start` once before, not measured."""
    warm = False

    def measure() -> Values:
        nonlocal warm
        if not warm:
            start()
            warm = True
        return start()

    return measure


def _imports() -> Values:
    """Return the time to start Python and import torch: the lower limit for a fusion process."""
    begun_s = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True, env=_environment())
    return {"seconds": time.monotonic() - begun_s}


def _demo(domain: str) -> Values:
    command = (sys.executable, "-P", "-m", "perception", "up", _PROFILE, "--domain", domain)
    with _subscribed(domain, "state/fused") as subscriber, _running(command) as (_, begun_s):
        return {"seconds": _first_s(subscriber, begun_s)}


def _camera(domain: str) -> Values:
    """Run the camera of the demo as its launcher does."""
    overrides = (f'domain="{domain}"',)
    now_ns = HostClock().now_ns()
    nodes = {node.name: node for node in plan(load(_PROFILE), _PROFILE, overrides, origin_ns=now_ns)}
    camera = nodes[_CAMERA]
    with (
        _subscribed(domain, "camera/front") as subscriber,
        _running(camera.command, camera.environment) as (process, begun_s),
    ):
        seconds = _first_s(subscriber, begun_s)
        time.sleep(_SETTLE_S)
        return {"seconds": seconds, "mebibytes": _resident_mib(process.pid)}


def _subscribed(domain: str, topic: str) -> Subscriber:
    return Subscriber(topic, runtime=Runtime(domain), clock=HostClock().now_ns)


@contextmanager
def _running(
    command: tuple[str, ...], environment: Mapping[str, str] | None = None
) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
    begun_s = time.monotonic()
    with child(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment() | dict(environment or {}),
    ) as process:
        yield process, begun_s


def _environment() -> dict[str, str]:
    """Return the environment of this process, in which Python may write bytecode."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _first_s(subscriber: Subscriber, begun_s: float) -> float:
    if subscriber.receive(_PATIENCE_S) is None:
        raise PerceptionError(f"nothing was published within {_PATIENCE_S:g} s; try perception doctor demo")
    return time.monotonic() - begun_s


def _resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
