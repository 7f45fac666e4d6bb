"""A role that one process of a host has at a time: the active one of several that could take over.

Crash safety: the role belongs to the process that holds the flock of a file. The kernel drops it when the
process ends, and wakes one that waits for it at once. A lock counts only while the locked file is the one at
the path: another program may have removed it.

Threads: one thread calls `take`; `wait` may run in a thread of its own, and nothing else is called until it
has returned.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from perception.io.same_file import same_file

PATTERN: Final = ".*.active"
"""Names of the files in the directory of a domain; no topic's name starts with a dot."""


class Role:
    """The right to be the active process of a name."""

    def __init__(self, directory: Path, name: str) -> None:
        """Name the role `name` in the directory of a domain; nobody has it yet."""
        self._path = directory / f".{name}.active"
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the role if it is free; return whether it is taken."""
        try:
            return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False

    def wait(self) -> None:
        """Wait until the process that has the role ends, then take it."""
        while not self._lock(fcntl.LOCK_EX):
            pass

    def release(self) -> None:
        """Give the role up, if it was taken."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, how: int) -> bool:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if same_file(self._path, descriptor):
                self._descriptor, descriptor = descriptor, -1
                return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return False


def sweep(directory: Path) -> None:
    """Remove the files of roles that no process has."""
    for path in directory.glob(PATTERN):
        with suppress(OSError):
            role = Role(directory, path.name.removeprefix(".").removesuffix(".active"))
            if role.take():
                role.release()
