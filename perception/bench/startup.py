"""How soon a graph says something: first state of the demo, first frame and memory of a camera process."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perception.bench.rounds import Values
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError

_PATIENCE_S: Final = 60.0
_SETTLE_S: Final = 2.0
_HEAD: Final = ("--set", "fusion.head.weights=random", "--set", 'fusion.head.classes=["idle", "attend"]')
"""So that it can be measured before a head has been trained; what a head costs is not seen here."""
_STOP_S: Final = 10.0


def cases(domain: str = "bench") -> dict[str, Callable[[], Values]]:
    """Return what to measure, by name; both run in `domain`, from `launch/demo.toml`."""
    override = ("--set", f'domain="{domain}"')
    return {
        "limit: python and torch": _imports,
        "demo": lambda: _demo(domain),
        "camera": lambda: _camera(domain, override),
    }


def _imports() -> Values:
    """Return what starting Python and importing torch takes: no fusion process can be sooner."""
    begun_s = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True)
    return {"seconds": time.monotonic() - begun_s}


def _demo(domain: str) -> Values:
    with (
        _listening(domain, "state/fused") as subscriber,
        _running("perception", "up", "demo", *_HEAD, "--domain", domain) as (_, begun_s),
    ):
        return {"seconds": _first_s(subscriber, begun_s)}


def _camera(domain: str, override: tuple[str, ...]) -> Values:
    with (
        _listening(domain, "camera/front") as subscriber,
        _running("perception.nodes.camera", "demo", "--name", "front", *override) as (process, begun_s),
    ):
        seconds = _first_s(subscriber, begun_s)
        time.sleep(_SETTLE_S)
        return {"seconds": seconds, "mebibytes": _resident_mib(process.pid)}


def _listening(domain: str, topic: str) -> Subscriber:
    return Subscriber(topic, runtime=Runtime(domain), clock=HostClock().now_ns)


@contextmanager
def _running(module: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
    begun_s = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process, begun_s
        finally:
            process.terminate()
            process.wait(_STOP_S)


def _first_s(subscriber: Subscriber, begun_s: float) -> float:
    if subscriber.receive(_PATIENCE_S) is None:
        raise PerceptionError(f"nothing was published within {_PATIENCE_S:g} s; try perception doctor demo")
    return time.monotonic() - begun_s


def _resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
