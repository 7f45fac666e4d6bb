"""The anchor of the host clock: its UNIX time when the host was started, one for all processes of a user.

The host clock is CLOCK_BOOTTIME plus this anchor. CLOCK_BOOTTIME counts on while the host is suspended, and
neither a step of the wall clock (NTP, no battery at boot) nor a time namespace of a container moves it.

Where it is stored: in `.clock` of the runtime directory, which all processes that share sockets have, a
container with a mounted one included; and in /dev/shm, so that several runtime directories of a user have the
same. No cleaner of /tmp looks there, a service with a private /tmp reads it, a reboot empties it. Where both
exist and differ, the runtime directory is right: its processes exchange stamps without any correction.
Another user cannot provide it: a file of another owner is ignored. Processes of other users, and containers
without the mounted directory, have clocks of their own and are corrected as other hosts are.

When it is taken: from the wall clock by the first process. Each process holds a shared `flock` on both files,
so the next first process finds them unlocked; if the wall clock was set meanwhile, it takes the anchor again.
An anchor of 1970, taken before NTP had set the clock, lasts as long as one process uses it.

Threads: `Anchor.ns` never changes. The keeper's thread calls `restore`.
"""

import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from perception.errors import BusError
from perception.io.same_file import same_file

_LOG: Final = logging.getLogger(__name__)
SHARED: Final = Path(f"/dev/shm/perception-{os.getuid()}.clock")
"""File for all runtime directories of this user."""
STEP_NS: Final = 100_000_000
"""A wall clock that differs by more has been set: reading it and the boot clock takes less."""
_PROC: Final = Path("/proc")
_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_OWN_CLOCK_NS: Final = 1_000_000_000


def boot_ns() -> int:
    """Return the time since the host was started, suspended time included, in every time namespace."""
    return time.clock_gettime_ns(_CLOCK) - _namespace_ns()


@cache
def _namespace_ns() -> int:
    """Return by how much the clock of this process is ahead of the host's: time_namespaces(7)."""
    try:
        own, children = (os.readlink(_PROC / f"self/ns/{name}") for name in ("time", "time_for_children"))
        if own != children:
            return 0  # the file describes the children
        rows = (line.split() for line in (_PROC / "self/timens_offsets").read_text("ascii").splitlines())
        return next((int(s) * 10**9 + int(ns) for name, s, ns in rows if name == "boottime"), 0)
    except (OSError, ValueError):
        return 0


@cache
def _has_clock_of_its_own() -> bool:
    """Return whether this process's clock is not the kernel's, as under libfaketime: it is another host."""
    try:
        uptime_s = float((_PROC / "uptime").read_text("ascii").split()[0])
    except (OSError, ValueError):
        return False
    return abs(time.clock_gettime_ns(_CLOCK) - uptime_s * 1e9) > _OWN_CLOCK_NS


def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def _wall_anchor_ns() -> int:
    return time.time_ns() - boot_ns()


class _File:
    """One file that holds the anchor, locked while it is used."""

    descriptor = -1

    def __init__(self, path: Path) -> None:
        """Open or create it and lock it, alone if no other process uses it; OSError if that fails."""
        self.path = path
        self._boot_id = _boot_id()
        self.descriptor = self._opened()
        self.alone = self._lock()

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise PermissionError(f"{self.path} is not a file of this user")
        return descriptor

    def _lock(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)
            return False
        return True

    def read(self) -> int | None:
        """Return the anchor; None if the file holds none of this boot."""
        text = os.pread(self.descriptor, 256, 0).decode("ascii", "replace")
        kept = re.fullmatch(rf"(-?\d{{1,19}}) {re.escape(self._boot_id)}\n", text)
        return int(kept[1]) if kept else None

    def write(self, anchor_ns: int) -> None:
        """Replace the content."""
        text = f"{anchor_ns} {self._boot_id}\n".encode("ascii")
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text, 0)

    def share(self) -> None:
        """Let other processes use the file too; it counts as used until this process ends."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def restore(self, anchor_ns: int) -> None:
        """Write the file again if it was removed."""
        if same_file(self.path, self.descriptor):
            return
        temporary = self.path.with_name(f"{self.path.name}{secrets.token_hex(4)}")
        try:
            again = _File(temporary)
            again.write(anchor_ns)
            again.share()
            try:
                os.link(temporary, self.path)
            except FileExistsError:  # another process was faster
                again.close()
                again = _File(self.path)
                again.share()
            self.descriptor, again.descriptor = again.descriptor, self.descriptor
            again.close()
        finally:
            temporary.unlink(missing_ok=True)
        if self.read() != anchor_ns:
            _LOG.warning(
                "%s was replaced: processes started now read another host clock; restart the graph", self.path
            )

    def close(self) -> None:
        """Stop using the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()


class Anchor:
    """The anchor that this process uses until it ends; see the module for what it is.

    Args:
        directory: the runtime directory.
        shared: file for all runtime directories of this user.
        wall: returns the anchor that the wall clock gives now.

    Raises:
        BusError: the file in the runtime directory cannot be written.
    """

    def __init__(
        self, directory: Path, shared: Path = SHARED, wall: Callable[[], int] = _wall_anchor_ns
    ) -> None:
        own = directory / ".clock"
        # always in this order, so that two first processes wait for each other
        common = None if _has_clock_of_its_own() else _opened(shared)
        try:
            self._files = [file for file in (common, _File(own)) if file is not None]
            self.ns: Final = _agreed(self._files, wall())
            """UNIX time at the start of the host, in ns."""
        except OSError as error:
            raise BusError(f"cannot write the host clock to {own}: {error}") from error

    def restore(self) -> None:
        """Write the files again that were removed, so that new processes read the same clock."""
        try:
            for file in self._files:
                file.restore(self.ns)
        except OSError as error:
            raise BusError(f"cannot write the host clock: {error}") from error


def _opened(path: Path) -> _File | None:
    """Return the file of all runtime directories; None where there is no /dev/shm, or it is another's."""
    try:
        return _File(path)
    except OSError:
        return None


def _agreed(files: Sequence[_File], wall_ns: int) -> int:
    """Return the anchor in use, of the runtime directory first, else a new one; write it where it differs."""
    kept = [(file, file.read()) for file in reversed(files)]
    anchor_ns = next(_usable(kept, wall_ns), wall_ns)
    for file, value in kept:
        if value != anchor_ns and (file.alone or value is None):
            file.write(anchor_ns)
    for file in files:
        file.share()
    return anchor_ns


def _usable(kept: Sequence[tuple[_File, int | None]], wall_ns: int) -> Iterator[int]:
    """Yield anchors in use, then those that nobody uses and the wall clock confirms."""
    yield from (value for file, value in kept if value is not None and not file.alone)
    yield from (value for _, value in kept if value is not None and abs(value - wall_ns) <= STEP_NS)
