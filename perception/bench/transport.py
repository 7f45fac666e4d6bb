"""Cost of a message from process to process: latency and CPU time, compared with peers and a plain copy."""

import importlib.util
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from perception.bench.child import child
from perception.bench.rounds import Values
from perception.errors import PerceptionError

SIZES: Final = {"1080p": 1920 * 1080 * 3, "480p": 640 * 480 * 3, "jpeg": 60_000, "state": 2048}
"""Payload bytes by name; `jpeg` is the default of a camera of 640x480."""
RATE_HZ: Final = 60.0
_DORA: Final = {"DORA_NODE_SHM_POOL_SIZE": str(256 << 20)}  # its default pool holds one 1080p frame
_LIMIT_S: Final = 60.0
_PERCEPTION: Final = ("perception", "perception-loan")
_PEERS: Final = {"dora": "dora", "dora-loan": "dora", "zenoh": "zenoh", "iceoryx2": "iceoryx2"}
_NODE: Final = ("-P", "-m", "perception.bench.transport_node")


def cases(
    *, peers: bool, seconds: float, sizes: tuple[str, ...] = tuple(SIZES)
) -> dict[str, Callable[[], Values]]:
    """Return the measurements by `size case`; peers only where they are installed."""
    found: dict[str, Callable[[], Values]] = {}
    count = round(seconds * RATE_HZ)
    installed = [case for case, module in _PEERS.items() if importlib.util.find_spec(module)]
    for name in sizes:
        own = ("perception-state",) if name == "state" else _PERCEPTION
        found[f"{name} limit: memcpy"] = partial(_memcpy, SIZES[name])
        for case in (*own, "pyzmq", *(installed if peers else ())):
            found[f"{name} {case}"] = partial(_measure, case, SIZES[name], count)
    return found


def _memcpy(size: int, repeats: int = 50) -> Values:
    """Return the time of one copy into shared memory, a ring with the slots of a publisher."""
    slots = 8
    ring = np.frombuffer(mmap.mmap(-1, slots * size), np.uint8).reshape(slots, size)
    image = np.zeros(size, np.uint8)
    ring[:] = 1
    spent_us = []
    for number in range(repeats):
        begun_s = time.perf_counter()
        ring[number % slots] = image
        spent_us.append((time.perf_counter() - begun_s) * 1e6)
    middle = statistics.median(spent_us)
    return {"p50_us": middle, "cpu_us": middle}


def _measure(case: str, size: int, count: int) -> Values:
    options = ("--size", str(size), "--count", str(count), "--rate", str(RATE_HZ))
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        where = Path(folder)
        arguments = (*_NODE, case, "{end}", *options, "--where", folder)
        if case.startswith("dora"):
            _run_dora(where, arguments)
        else:
            _run_pair(arguments)
        sent, received = (_result(where / f"{end}.json", case) for end in ("send", "receive"))
    latencies_us = sorted(received["latencies_us"])
    return {
        "p10_us": latencies_us[int(len(latencies_us) * 0.1)],
        "p50_us": statistics.median(latencies_us),
        "p99_us": latencies_us[int(len(latencies_us) * 0.99)],
        "cpu_us": sent["cpu_us"] + received["cpu_us"],
        "received": len(latencies_us) / count,
    }


def _result(file: Path, case: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise PerceptionError(f"{case}: the process of end '{file.stem}' exited without a result") from None
    return found


def _run_pair(arguments: tuple[str, ...]) -> None:
    def command(end: str) -> list[str]:
        return [sys.executable, *(part.format(end=end) for part in arguments)]

    with child(command("receive")) as receiver, child(command("send")) as sender:
        for process in (sender, receiver):
            process.wait(_LIMIT_S)


def _run_dora(where: Path, arguments: tuple[str, ...]) -> None:
    def node(end: str, **more: Any) -> dict[str, Any]:
        return {"id": end, "path": sys.executable, "args": " ".join(arguments).format(end=end), **more}

    # JSON is YAML
    flow = {
        "nodes": [
            node("send", outputs=["frame"]),
            node("receive", inputs={"frame": {"source": "send/frame", "queue_size": 1}}),
        ]
    }
    file = where / "dataflow.yml"
    file.write_text(json.dumps(flow), encoding="utf-8")
    dora = Path(sys.executable).with_name("dora")
    subprocess.run(
        [dora, "run", str(file)],
        check=True,
        timeout=_LIMIT_S,
        cwd=where,
        env=os.environ | _DORA,
        capture_output=True,
    )
