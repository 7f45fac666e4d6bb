"""Cost of more cameras, microphones and subscribers: CPU time of the fusion process and of a publisher."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from perception.bench.child import child
from perception.bench.rounds import Values
from perception.bench.samples import CLASSES
from perception.bench.scale_node import STATE_HZ
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.messages import FusedState

CAMERAS: Final = (1, 2, 4, 8)
MICROPHONES: Final = (1, 2, 3, 4)
SUBSCRIBERS: Final = (1, 8, 64)
_PATIENCE_S: Final = 60.0
_SETTLE_S: Final = 1.0
_HOP_MS: Final = 100
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_NODE: Final = (sys.executable, "-P", "-m", "perception.bench.scale_node")


def cases(*, seconds: float) -> dict[str, Callable[[], Values]]:
    """Return the measurements `cameras N`, `microphones N` and `subscribers N`."""
    found: dict[str, Callable[[], Values]] = {}
    for count in CAMERAS:
        found[f"cameras {count}"] = partial(_fusion, count, 0, seconds)
    for count in MICROPHONES:
        found[f"microphones {count}"] = partial(_fusion, 0, count, seconds)
    for count in SUBSCRIBERS:
        found[f"subscribers {count}"] = partial(_publisher, count, seconds)
    return found


def _fusion(cameras: int, microphones: int, seconds: float) -> Values:
    """Return CPU share and delays of a fusion process with so many streams, each with a cheap encoder."""
    streams = {f"camera/scale-{number}": "motion" for number in range(cameras)}
    streams |= {f"microphone/scale-{number}": "level" for number in range(microphones)}
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        domain = f"scale-{os.getpid()}"
        profile = Path(folder) / "scale.toml"
        profile.write_text(_profile(domain, streams), encoding="utf-8")
        node = (sys.executable, "-P", "-m", "perception.nodes.fusion", str(profile))
        counts = ("--cameras", str(cameras), "--microphones", str(microphones))
        with (
            Subscriber("state/scale", runtime=Runtime(domain), clock=HostClock().now_ns) as states,
            child((*_NODE, "capture", "--domain", domain, *counts), stdout=subprocess.DEVNULL),
            child(node, stdout=subprocess.DEVNULL) as fusion,
        ):
            _first(states)
            _delays_ms(states, _SETTLE_S)
            begun_s = _cpu_s(fusion.pid)
            delays_ms = sorted(_delays_ms(states, seconds))
            spent_s = _cpu_s(fusion.pid) - begun_s
    return {
        "cpu_pct": spent_s / seconds * 100,
        "p50_ms": delays_ms[len(delays_ms) // 2],
        "p95_ms": delays_ms[int(len(delays_ms) * 0.95)],
        "states_hz": len(delays_ms) / seconds,
    }


def _profile(domain: str, streams: dict[str, str]) -> str:
    """Return a profile that fuses these topics, each with an encoder of its kind."""
    names = {topic.replace("/", "-"): (topic, kind) for topic, kind in streams.items()}
    return "\n".join(
        [
            f'domain = "{domain}"',
            "[fusion]",
            'name = "scale"',
            f"hop_ms = {_HOP_MS}",
            "lateness_ms = 120",
            f'head = {{ weights = "random", classes = {json.dumps(CLASSES)} }}',
            "[fusion.inputs]",
            *(f'{name} = {{ topic = "{topic}" }}' for name, (topic, _) in names.items()),
            "[fusion.encoders]",
            *(f'{name} = {{ input = "{name}", kind = "{kind}" }}' for name, (_, kind) in names.items()),
        ]
    )


def _first(states: Subscriber) -> None:
    if states.receive(_PATIENCE_S) is None:
        raise PerceptionError(f"no state within {_PATIENCE_S:g} s; try perception doctor demo")


def _delays_ms(states: Subscriber, seconds: float) -> list[float]:
    """Return the time from the end of its window to sending, for each state of so many seconds."""
    found, end_s = [], time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        message = states.receive(left_s)
        if message is not None and isinstance(message.header, FusedState):
            found.append((message.header.sent_ns - message.header.stamp_ns) / 1e6)
    return found


def _publisher(readers: int, seconds: float) -> Values:
    """Return the CPU time of a publisher per state, and the latency for so many readers."""
    domain = f"scale-{os.getpid()}"
    arguments = ("--domain", domain, "--readers", str(readers), "--count", str(round(seconds * STATE_HZ)))
    with (
        child((*_NODE, "read", *arguments), stdout=subprocess.PIPE) as read,
        child((*_NODE, "publish", *arguments), stdout=subprocess.PIPE) as publish,
    ):
        sent, received = _result(publish), _result(read)
    return {"cpu_us": sent["cpu_us"], "p50_us": received["p50_us"], "received": received["received"]}


def _result(process: "subprocess.Popen[bytes]") -> dict[str, float]:
    out, _ = process.communicate(timeout=_PATIENCE_S)
    if process.returncode:
        raise PerceptionError("a process of the bench failed: see above")
    found: dict[str, float] = json.loads(out)
    return found


def _cpu_s(process: int) -> float:
    """Return the CPU time of a process so far, user and system, all threads."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
