"""What the processes of one user on one host share: the host clock and the runtime directory.

The runtime directory is /tmp/perception-UID, for a service, cron, sudo and a login shell alike.
$XDG_RUNTIME_DIR is not read: only some of them have it, and it is removed at the last logout.
$PERCEPTION_RUNTIME_DIR names another directory; processes with the same one find each other.

Layout: `.clock` holds the anchor of the host clock (`perception.bus.anchor`), `DOMAIN/camera/front` is the
socket of a topic, `DOMAIN/camera/.front.lock` its lock file with the publisher's process id, `.NAME.reader`
the socket of a reader.

Crash safety: a topic belongs to the process that holds the flock of its lock file. The kernel drops it when
the process ends, so a claim never outlives its publisher; `sweep` removes files without a lock. A lock counts
only while the locked file is the one at the path (`same_file`).

Threads: `Runtime` and `HostClock` may be used from any thread. A `Claim` is guarded by its publisher's lock.
"""

import fcntl
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Self

from perception import topics
from perception.bus import anchor
from perception.bus.keeper import Keeper
from perception.errors import BusError
from perception.io.same_file import same_file

RUNTIME_VARIABLE: Final = "PERCEPTION_RUNTIME_DIR"
DOMAIN_VARIABLE: Final = "PERCEPTION_DOMAIN"
_LOG: Final = logging.getLogger(__name__)
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), less its closing zero
_MAX_BASE_BYTES: Final = 60  # leaves 46 for a domain and a topic
_CLAIM_TIMEOUT_S: Final = 0.25  # longer than another process tests the lock, or a publisher takes to end


def base_directory() -> Path:
    """Return this user's runtime directory, created if missing; BusError if other users can access it."""
    usual, chosen = Path(f"/tmp/perception-{os.getuid()}"), os.environ.get(RUNTIME_VARIABLE)
    if not chosen:
        return private_directory(usual)
    if not os.path.isabs(chosen):
        raise BusError(f"{RUNTIME_VARIABLE}={chosen} is not an absolute path")
    if len(os.fsencode(chosen)) > _MAX_BASE_BYTES:
        _warn_once(
            f"{RUNTIME_VARIABLE}={chosen} is longer than {_MAX_BASE_BYTES} bytes, too long for the paths of "
            f"sockets; using {usual} instead"
        )
        return private_directory(usual)
    return private_directory(Path(chosen))


@cache
def _warn_once(text: str) -> None:
    _LOG.warning("%s", text)


def private_directory(path: Path) -> Path:
    """Return a directory that only this user can access, created if missing; BusError if that fails."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise BusError(
            f"cannot create the runtime directory {path}: {error.strerror}; set {RUNTIME_VARIABLE}"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise BusError(f"{path} is not a directory of this user; remove it or set {RUNTIME_VARIABLE}")
    if status.st_mode & 0o077:
        raise BusError(f"{path} is open to other users; run: chmod 700 {path}")
    return path


class HostClock:
    """UNIX-like nanoseconds that never step and count on while the host is suspended.

    All processes of this user read the same clock, in every domain and runtime directory: see
    `perception.bus.anchor`.
    """

    def __init__(self, directory: Path | None = None, shared: Path = anchor.SHARED) -> None:
        """Read the clock, or set it; BusError if that fails.

        Args:
            directory: the runtime directory; default: this user's.
            shared: file for all runtime directories of this user.
        """
        self._anchor = anchor.Anchor(directory or base_directory(), shared)

    def now_ns(self) -> int:
        """Return the current host time in ns."""
        return anchor.boot_ns() + self._anchor.ns

    def to_host_ns(self, monotonic_ns: int) -> int:
        """Return the host time of a CLOCK_MONOTONIC time after the last suspension, such as a driver's."""
        return self.now_ns() - (time.monotonic_ns() - monotonic_ns)

    @property
    def anchor_ns(self) -> int:
        """Host time when the host was started."""
        return self._anchor.ns

    def restore(self) -> None:
        """Write the anchor again if its file was removed, so that new processes read the same clock."""
        self._anchor.restore()


class Runtime:
    """The topics of one domain on this host; each has a unix socket file named like the topic."""

    def __init__(self, domain: str | None = None, base: Path | None = None) -> None:
        """Open a domain.

        Args:
            domain: name of the graph; default: $PERCEPTION_DOMAIN, else `default`.
            base: directory of all domains; default: the user's runtime directory.
        """
        self.domain = os.environ.get(DOMAIN_VARIABLE) or "default" if domain is None else domain
        if not _DOMAIN.fullmatch(self.domain):
            raise BusError(f"'{self.domain[:80]}' is not a domain; use 1 to 32 letters, digits, '_' and '-'")
        self.base = base_directory() if base is None else private_directory(base)
        self.directory = self.base / self.domain
        self.keeper = Keeper()
        """Restores files of this process that were removed."""

    @cached_property
    def clock(self) -> HostClock:
        """The clock of all processes with this base directory."""
        return HostClock(self.base)

    def ipc_endpoint(self, topic: str) -> str:
        """Return the endpoint of `topic`: publishers bind it, subscribers connect to it."""
        return f"ipc://{self.socket_path(topic)}"

    def socket_path(self, topic: str) -> Path:
        """Return the socket file of `topic`; BusError if its path is too long for the system."""
        topics.lookup(topic)
        path = self.directory / topic
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            raise BusError(
                f"{path} is longer than the {_MAX_SOCKET_PATH_BYTES} bytes of a unix socket path; "
                f"shorten the topic or the domain, or set {RUNTIME_VARIABLE}"
            )
        return path

    def topics(self) -> list[str]:
        """Return the topics that processes of this host publish now, sorted."""
        return sorted(topic for topic in self._found() if self._holder(topic) is not None)

    def claim(self, topic: str) -> "Claim":
        """Return the exclusive right to publish `topic`; BusError if another process or publisher has it."""
        deadline = time.monotonic() + _CLAIM_TIMEOUT_S
        while True:
            claim = self._try_claim(topic)
            if claim is not None:
                return claim
            if time.monotonic() > deadline:
                holder = self._holder(topic) or "another process"
                raise BusError(
                    f"{topic} is already published by {holder}; stop it or choose another name or domain"
                )
            time.sleep(0.01)

    def renew(self, claim: "Claim") -> None:
        """Claim the topic again if its files were removed; BusError if another publisher has claimed it."""
        if not claim.locked():
            topic = str(claim.path.relative_to(self.directory))
            again = self._try_claim(topic)
            if again is None:
                holder = self._holder(topic) or "another process"
                raise BusError(
                    f"{topic}: its files were removed, and {holder} publishes it now: stop one of the two"
                )
            claim.replace_with(again)

    def sweep(self) -> None:
        """Remove the files of ended processes: sockets, lock files, empty directories."""
        for topic in self._found():
            with suppress(BusError):
                claim = self._try_claim(topic)
                if claim is not None:
                    claim.release()
        for folder, _, _ in os.walk(self.directory, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)

    def _found(self) -> Iterator[str]:
        """Yield every topic that has a socket or a lock file, published or not."""
        seen = set()
        for folder, _, files in os.walk(self.directory):
            for file in files:
                name = file.removeprefix(".").removesuffix(".lock") if file.startswith(".") else file
                topic = str((Path(folder) / name).relative_to(self.directory))
                if topic not in seen:
                    seen.add(topic)
                    with suppress(BusError):
                        topics.lookup(topic)
                        yield topic

    def _holder(self, topic: str) -> str | None:
        """Return `process 123` for the publisher of `topic`; None if there is none."""
        try:
            with _lock_path(self.directory / topic).open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return f"process {file.read(20).decode('ascii', 'replace') or 'unknown'}"
        except OSError:
            return None
        return None

    def _try_claim(self, topic: str) -> "Claim | None":
        path = self.socket_path(topic)
        lock = _lock_path(path)
        private_directory(self.base)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # `sweep` of another process removed the folder
        except OSError as error:
            raise BusError(f"cannot claim {topic}: {lock}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not same_file(lock, descriptor):
                raise BlockingIOError
            if path.is_dir() and not path.is_symlink():
                raise BusError(f"cannot publish {topic}: topics are published below {topic}/")
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return Claim(path, descriptor)


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")  # no topic's name starts with a dot


class Claim:
    """The right to publish one topic on this host, until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def locked(self) -> bool:
        """Return whether the lock file at the path is the one that is locked here."""
        assert self._descriptor is not None
        return same_file(_lock_path(self.path), self._descriptor)

    def intact(self) -> bool:
        """Return whether socket and lock file still exist."""
        return self.path.exists() and self.locked()

    def replace_with(self, other: "Claim") -> None:
        """Take the lock of another claim of this topic, in place of the own one."""
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor, other._descriptor = other._descriptor, None

    def release(self) -> None:
        """Remove the socket and lock files and release the topic."""
        if self._descriptor is None:
            return
        self.path.unlink(missing_ok=True)
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
