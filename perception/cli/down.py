"""`perception down`: stop a graph from elsewhere, also one whose launcher hangs or was killed."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from perception.bus.domains import NONE_UP
from perception.bus.host import Runtime, base_directory
from perception.cli.up import lock_file, sweep
from perception.errors import PerceptionError
from perception.graph import processes

_LAUNCHER_S: Final = 6.0
"""A launcher stops its nodes within 5 s."""
_NODES_S: Final = 4.0


def graphs() -> Runtime:
    """Return the domain of the only graph; PerceptionError if there is none, or if there are several.

    A graph whose nodes publish nothing counts: its lock file is held, or was left by a killed one.
    """
    base = base_directory()
    names = [file.name.removeprefix(".").removesuffix(".up.lock") for file in base.glob(".*.up.lock")]
    found = [name for name in sorted(names) if processes.holders(lock_file(Runtime(name, base)))] or names
    if len(found) > 1:
        raise PerceptionError(f"several graphs are up: {', '.join(found)}; name one, by --domain")
    if not found:
        raise PerceptionError(NONE_UP)
    return Runtime(found[0], base)


def stop(runtime: Runtime) -> int:
    """Stop the launcher of a domain, then nodes that are left, and remove their files.

    Return the number of processes that have ended. SIGCONT wakes those that were stopped.

    Raises:
        PerceptionError: no graph is up in the domain.
    """
    lock, launcher = lock_file(runtime), _launcher(runtime)

    def left() -> list[int]:
        known = [launcher] if launcher and processes.runs(launcher) else []  # without /proc
        return [pid for pid in processes.holders(lock) if pid != os.getpid()] or known

    if not (found := left()):
        lock.unlink(missing_ok=True)
        sweep(runtime)
        raise PerceptionError(f"no graph is up in domain '{runtime.domain}'")
    for pids, number, wait_s in (
        ((launcher,) if launcher in found else (), signal.SIGTERM, _LAUNCHER_S),
        (None, signal.SIGTERM, _NODES_S),
        (None, signal.SIGKILL, _NODES_S),
    ):
        _signal(left() if pids is None else pids, number)
        if (pids is None or pids) and _ended(left, wait_s):
            break
    lock.unlink(missing_ok=True)
    sweep(runtime)
    if stuck := left():
        raise PerceptionError(f"process {', '.join(map(str, stuck))} did not end: blocked in the kernel")
    return len(found)


def _launcher(runtime: Runtime) -> int:
    """Return the process id of the launcher, 0 if it has ended."""
    with suppress(OSError, ValueError):
        pid, _, since = lock_file(runtime).read_text(encoding="ascii").strip().partition(" ")
        return int(pid) if processes.runs(int(pid), since) else 0
    return 0


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)


def _ended(left: Callable[[], list[int]], wait_s: float) -> bool:
    end_s = time.monotonic() + wait_s
    while left():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True
