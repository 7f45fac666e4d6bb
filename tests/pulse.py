"""A private PulseAudio server with a loopback: a microphone records what is played to `virtspk`."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import LONG_S, eventually

_CONFIGURATION = """\
load-module module-native-protocol-unix
load-module module-null-sink sink_name=virtspk rate=48000 channels=1
set-default-sink virtspk
set-default-source virtspk.monitor
"""


def installed() -> bool:
    """Return whether this machine has the programs."""
    return all(shutil.which(program) for program in ("pulseaudio", "pacat", "pactl"))


@contextmanager
def pulse_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server under `folder`; yield the environment that connects programs to it."""
    runtime = folder / "xdg"
    runtime.mkdir(mode=0o700, exist_ok=True)
    configuration = folder / "pulse.pa"
    configuration.write_text(_CONFIGURATION)
    leads = {
        "XDG_RUNTIME_DIR": str(runtime),
        "PULSE_SERVER": f"unix:{runtime}/pulse/native",
        "HOME": str(folder),
    }
    environment = os.environ | leads
    server = _start(
        ("pulseaudio", "-n", "-F", str(configuration), "--daemonize=no", "--exit-idle-time=-1"), environment
    )
    silence = None
    try:
        _await_sink(environment)
        # Without a client the sink is suspended, and the first callback is more than a second late.
        player = (
            "pacat",
            "--device=virtspk",
            "--rate=48000",
            "--channels=1",
            "--latency-msec=20",
            "/dev/zero",
        )
        silence = _start(player, environment)
        # The sink needs this time to reach the player's latency; its delay changes meanwhile.
        time.sleep(2)
        yield leads
    finally:
        for process in (silence, server):
            if process is not None:
                process.terminate()
                process.wait(LONG_S)


def _start(command: tuple[str, ...], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _await_sink(environment: dict[str, str]) -> None:
    def listed() -> bool:
        command = ("pactl", "list", "short", "sinks")
        return "virtspk" in subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    eventually(listed)
