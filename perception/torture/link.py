"""Two hosts in network namespaces of this machine: the camera on one, all else on the other.

Needs the right to create namespaces. The link between them is cut, and made too slow for the camera.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

from perception.torture.faults import CAMERA, Fault, Undo
from perception.torture.graph import END_S, Graph

_PORT: Final = 5601
_CAMERA_HOST: Final = """\
domain = "camera"
insecure = true
[script]
seed = {seed}
[camera.front]
source = "scripted"
rate_hz = 20
endpoint = "tcp://{address}:{port}"
"""
_FUSION_HOST: Final = """\
domain = "{domain}"
insecure = true
[script]
seed = {seed}
[microphone.main]
source = "scripted"
[text.script]
source = "scripted"
[recorder]
out = "{out}/session-%H%M%S-{domain}.mcap"
min_free_mb = 0
[connect]
"camera/front" = "tcp://{address}:{port}"
[fusion]
base = "demo"
"""


class Hosts:
    """Two namespaces with a link, removed on exit."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.names = f"torture-a{number}", f"torture-b{number}"
        self._ends = f"tva{number}", f"tvb{number}"
        self.addresses = f"10.213.{number}.1", f"10.213.{number}.2"

    def open(self) -> bool:
        """Create both and their link; return whether that was possible."""
        one, other = self._ends
        commands = [f"netns add {name}" for name in self.names]
        peer = f"peer name {other} netns {self.names[1]}"
        commands.append(f"link add {one} netns {self.names[0]} type veth {peer}")
        for name, end, address in zip(self.names, self._ends, self.addresses, strict=True):
            commands += [
                f"-n {name} addr add {address}/24 dev {end}",
                f"-n {name} link set {end} up",
                f"-n {name} link set lo up",
            ]
        return all(map(_ip, commands))

    def close(self) -> None:
        """Remove both."""
        for name in self.names:
            _ip(f"netns del {name}")

    def cut(self, graph: Graph, chance: random.Random) -> Undo:
        """Take the link down."""
        _ip(f"-n {self.names[0]} link set {self._ends[0]} down")
        return partial(_ip_quietly, f"-n {self.names[0]} link set {self._ends[0]} up")

    def throttle(self, graph: Graph, chance: random.Random) -> Undo:
        """Let pass a tenth of what the camera sends."""
        device = ("dev", self._ends[0], "root")
        shape = ("tbf", "rate", "400kbit", "burst", "16kbit", "latency", "200ms")
        inside = ("ip", "netns", "exec", self.names[0], "tc", "qdisc")
        _runs((*inside, "add", *device, *shape))
        return partial(_quietly, (*inside, "del", *device))

    def faults(self) -> tuple[Fault, ...]:
        """Return the faults of the link."""
        return (
            Fault("link cut", CAMERA, self.cut, (4.0, 6.0), silences=True),
            Fault("link throttled", CAMERA, self.throttle, (4.0, 6.0)),
        )


class LinkedGraph(Graph):
    """The graph of both hosts; `process` is the supervisor of the fusion's host."""

    def __init__(self, folder: Path, domain: str, hosts: Hosts, *, seed: int) -> None:
        self._hosts, self._seed = hosts, seed
        self._camera: subprocess.Popen[bytes] | None = None
        super().__init__(folder, domain, seed=seed, port=_PORT, stranger=0)

    def _start(self) -> "subprocess.Popen[bytes]":
        keys = {"address": self._hosts.addresses[0], "port": _PORT, "seed": self._seed}
        texts = _CAMERA_HOST.format(**keys), _FUSION_HOST.format(domain=self.domain, out=self.folder, **keys)
        folder = self.folder / "camera-host"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._camera = self._up(0, texts[0], {"PERCEPTION_RUNTIME_DIR": str(folder)})
        return self._up(1, texts[1], {})

    def _up(self, host: int, profile: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        file = self.folder / f"host{host}.toml"
        file.write_text(profile, encoding="utf-8")
        inside = ("ip", "netns", "exec", self._hosts.names[host])
        return subprocess.Popen(
            (*inside, sys.executable, "-m", "perception", "up", str(file)),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | environment,
        )

    def stop(self) -> None:
        """Stop both hosts."""
        if self._camera is not None and self._camera.poll() is None:
            self._camera.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._camera.wait(END_S)
            self._camera.kill()
            self._camera.wait()
        super().stop()


def _ip(arguments: str) -> bool:
    return _runs(("ip", *arguments.split()))


def _ip_quietly(arguments: str) -> None:
    _ip(arguments)


def _quietly(command: tuple[str, ...]) -> None:
    _runs(command)


def _runs(command: tuple[str, ...]) -> bool:
    """Run a command; return whether it succeeded."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
