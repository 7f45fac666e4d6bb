"""Processes of this host by id: which still run, which hold a file, and nodes that end with their supervisor.

A process id alone names no process: the system uses it again; the start time of a process (`started`) does.
On Linux /proc is read; the docstrings state what is returned where there is none.

Threads: all functions may be called from any thread. `end_with_supervisor` starts one daemon thread, which
uses nothing but signals.
"""

import ctypes
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from perception.graph.liveness import Progress

SUPERVISOR_VARIABLE: Final = "PERCEPTION_SUPERVISOR"
"""Process id of the supervisor, in the environment of its nodes."""
SHOW_STACKS: Final = signal.SIGUSR1
"""Makes a node write where each of its threads is to stderr."""
_PROC: Final = Path("/proc")
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_CHECK_S: Final = 0.25
_LOOK_S: Final = 0.05
_GRACE_S: Final = 5.0
"""Time for a node to end by itself after its supervisor has: as long as `Supervisor.stop` takes."""


class StopEvent(threading.Event):
    """An event that a signal handler may set.

    That of `threading` takes a lock in `set`: a handler that interrupts `wait` or another handler would wait
    forever for what the interrupted code holds. Here `set` takes none, and `wait` looks every 50 ms.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._stopped

    def set(self) -> None:
        """Set it. Any thread, and signal handlers."""
        self._stopped = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for `timeout` seconds; return whether it is set."""
        end_s = math.inf if timeout is None else time.monotonic() + timeout
        while not self._stopped and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _LOOK_S))
        return self._stopped


def started(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if it has ended, or without /proc."""
    fields = _stat(pid)
    return "" if not fields or fields[0] == "Z" else fields[19]


def runs(pid: int, since: str = "") -> bool:
    """Return whether a process still runs; `since`: what `started` returned for it, if known."""
    if _PROC.joinpath("self").exists():
        now = started(pid)
        return bool(now) and now == (since or now)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def progress(pid: int) -> Progress | None:
    """Return what the main thread of a process does; None if it has ended, or without /proc."""
    try:
        slices = (_PROC / str(pid) / "task" / str(pid) / "schedstat").read_text().split()[2]
        return Progress(_stat(pid)[0], int(slices))
    except (OSError, IndexError, ValueError):
        return None


def holders(path: Path) -> list[int]:
    """Return the processes of this user that have a file open, sorted; empty without /proc."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    return sorted(int(folder.name) for folder in _PROC.glob("[0-9]*") if _has_open(folder, wanted))


def show_stacks_on_signal() -> None:
    """Write the stacks of all threads to stderr at SHOW_STACKS, even while the main thread hangs."""
    faulthandler.register(SHOW_STACKS, all_threads=True, chain=False)


def end_with_supervisor(supervisor: int | None = None, grace_s: float = _GRACE_S) -> None:
    """End this process when the supervisor that started it has ended: SIGTERM at once, SIGKILL later.

    On Linux the kernel sends the SIGTERM. A thread looks every 0.25 s too: for a supervisor that ended before
    this call, for other systems, and for the SIGKILL to a node whose main thread hangs.

    Args:
        supervisor: its process id; default: that in SUPERVISOR_VARIABLE, which is removed from the
            environment. Without one nothing happens.
        grace_s: time between the two signals.
    """
    given = os.environ.pop(SUPERVISOR_VARIABLE, "")
    if supervisor is None and given.isdecimal():
        supervisor = int(given)
    if supervisor is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    threading.Thread(target=_outlive, args=(supervisor, grace_s), name="supervisor", daemon=True).start()


def _outlive(supervisor: int, grace_s: float) -> None:
    """Wait until the supervisor has ended, then end this process."""
    while os.getppid() == supervisor:
        time.sleep(_CHECK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, from the state on; empty if there is none."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(descriptor.stat(), wanted):
                    return True
    return False
