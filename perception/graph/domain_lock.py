"""One graph per domain: a file lock of the supervisor that its nodes inherit.

Crash safety: the kernel drops the lock when the supervisor and all its nodes have ended. The file names the
supervisor by its process id and start time; if that process has ended, the error names the nodes it left.

Threads: the supervisor's thread, and the keeper's thread for `restore`.
"""

import fcntl
import os
from pathlib import Path
from typing import Self

from perception.bus.host import private_directory
from perception.errors import PerceptionError
from perception.graph import processes
from perception.io.same_file import same_file


class DomainLock:
    """File lock of a supervisor that its nodes inherit: one graph per domain, including orphaned nodes."""

    def __init__(self, path: Path, domain: str) -> None:
        """Lock the file at `path`; PerceptionError names the process that holds it."""
        self._path = path
        self._domain = domain
        self._file = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not same_file(path, self.fileno()):
                raise BlockingIOError
        except BlockingIOError:
            self._file.seek(0)
            holder = _holder(path, self._file.read())
            self._file.close()
            raise PerceptionError(
                f"domain '{domain}' is already up ({holder}): stop it, or use --domain NAME"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} {processes.started(os.getpid())}".strip())
        self._file.flush()

    def fileno(self) -> int:
        """Return the descriptor that nodes inherit."""
        return self._file.fileno()

    def restore(self) -> None:
        """Lock again if the file was removed; PerceptionError if another graph has locked it."""
        if not same_file(self._path, self.fileno()):
            private_directory(self._path.parent)
            again = DomainLock(self._path, self._domain)
            os.dup2(again.fileno(), self.fileno(), inheritable=False)
            again._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


def _holder(path: Path, written: str) -> str:
    """Return in words which living processes hold a domain; `written`: what its supervisor wrote."""
    pid, _, since = written.strip().partition(" ")
    if pid.isdecimal() and processes.runs(int(pid), since):
        return f"process {pid}"
    left = [str(one) for one in processes.holders(path) if one != os.getpid()]
    return f"nodes of an ended one: process {', '.join(left)}" if left else "a process of another user"
