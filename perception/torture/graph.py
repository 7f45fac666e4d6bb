"""One graph under test: `perception up` as a process of its own, in a domain and a folder of its own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from perception.bus.host import base_directory
from perception.errors import PerceptionError
from perception.graph.processes import runs
from perception.torture.witness import Witness

START_S: Final = 400.0
END_S: Final = 15.0
_PROFILE: Final = """\
domain = "{domain}"
[script]
seed = {seed}
[camera.front]
source = "scripted"
rate_hz = 20
endpoint = "tcp://127.0.0.1:{port}"
[microphone.main]
source = "scripted"
[text.script]
source = "scripted"
[recorder]
out = "{out}/session-%H%M%S-{domain}.mcap"
min_free_mb = 0
[connect]
"text/stranger" = "tcp://127.0.0.1:{stranger}"
[fusion]
base = "demo"
"""


class Graph:
    """Starts the processes; stops them and looks for what is left on exit."""

    def __init__(self, folder: Path, domain: str, *, seed: int, port: int, stranger: int) -> None:
        self.folder, self.domain = folder, domain
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.stranger = stranger
        """Port at which the graph looks for the publisher of `text/stranger`."""
        self.witness = Witness(domain)
        self._log = (folder / "up.log").open("ab")
        self._profile = folder / "torture.toml"
        self._profile.write_text(
            _PROFILE.format(domain=domain, seed=seed, port=port, stranger=stranger, out=folder),
            encoding="utf-8",
        )
        self.start_s = 0.0
        """The longest time to be ready: a node that loads its models again takes as long."""
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            (sys.executable, "-m", "perception", "up", str(self._profile)),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def restart(self) -> None:
        """Start the graph again after its supervisor ended."""
        self.process.wait()
        self.process = self._start()

    def wait_until_ready(self) -> float:
        """Wait for whole states; return the seconds it took. PerceptionError names the log."""
        took_s = self.witness.wait(self.healthy, START_S)
        self.start_s = max(self.start_s, took_s or 0.0)
        if took_s is None:
            raise PerceptionError(
                f"the graph gave no whole states within {START_S:.0f} s: see {self._log.name}"
            )
        return took_s

    def healthy(self) -> bool:
        """Return whether the newest state is new and has all that the script always sends."""
        recent = self.witness.since(time.monotonic() - 1.0)
        parts = recent[-1].state.modalities if recent else {}
        here = all(parts[name].presence != "absent" for name in ("camera", "microphone")) if parts else False
        running = all(one.startswith("running") for one in self.witness.processes().values())
        return here and running and self.process.poll() is None

    def memory_mib(self, node: str) -> float:
        """Return the resident memory of a node, 0 if it does not run."""
        with suppress(OSError, IndexError, ValueError):
            pages = Path(f"/proc/{self.witness.pid(node)}/statm").read_text().split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        return 0.0

    def leftovers(self, pids: set[int]) -> list[str]:
        """Return which processes and files of the graph are left; wait a while for none."""
        deadline_s = time.monotonic() + END_S
        while (left := self._left(pids)) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return left

    def _left(self, pids: set[int]) -> list[str]:
        files = (base_directory() / self.domain).rglob("*")
        return [f"process {pid}" for pid in sorted(pids) if runs(pid)] + [str(one) for one in files]

    def stop(self) -> None:
        """Stop the graph as Ctrl-C does, then the witness."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        self.witness.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
