"""One host's shared ground: the clock all processes agree on, and the directory where topics meet.

One user has one runtime directory, /tmp/perception-UID, whoever starts a process: a service, cron, sudo or a
login shell. $XDG_RUNTIME_DIR is not asked, because only some of them have it and it goes with the last login.
$PERCEPTION_RUNTIME_DIR names another place, for all processes that are to meet there.
"""

import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Self

from perception import topics
from perception.bus.keeper import Keeper
from perception.errors import BusError

RUNTIME_VARIABLE: Final = "PERCEPTION_RUNTIME_DIR"
DOMAIN_VARIABLE: Final = "PERCEPTION_DOMAIN"
_LOG: Final = logging.getLogger(__name__)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), less its closing zero
_MAX_BASE_BYTES: Final = 60  # leaves 46 for a domain and a topic
_CLAIM_PATIENCE_S: Final = 0.25  # outlasts another process's look at the lock, and an exiting publisher


def base_directory() -> Path:
    """Return this user's runtime directory, made if needed; BusError if others could reach into it."""
    usual, chosen = Path(f"/tmp/perception-{os.getuid()}"), os.environ.get(RUNTIME_VARIABLE)
    if not chosen:
        return private_directory(usual)
    if not os.path.isabs(chosen):
        raise BusError(f"{RUNTIME_VARIABLE}={chosen} is no absolute path, so processes would not meet there")
    if len(os.fsencode(chosen)) > _MAX_BASE_BYTES:
        _say_once(
            f"{RUNTIME_VARIABLE}={chosen} is longer than {_MAX_BASE_BYTES} bytes, too long for the paths of "
            f"sockets; using {usual} instead"
        )
        return private_directory(usual)
    return private_directory(Path(chosen))


@cache
def _say_once(text: str) -> None:
    _LOG.warning("%s", text)


def private_directory(path: Path) -> Path:
    """Return a directory that only this user can enter, made if needed; BusError if it cannot be had."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise BusError(
            f"cannot make the runtime directory {path}: {error.strerror}; {RUNTIME_VARIABLE} names another"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise BusError(f"{path} is not a directory of yours; remove it or set {RUNTIME_VARIABLE}")
    if status.st_mode & 0o077:
        raise BusError(f"{path} is open to other users; run: chmod 700 {path}")
    return path


def same_file(path: Path, descriptor: int) -> bool:
    """Return whether the file at a path is the open one; else a lock on the latter guards nothing."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class HostClock:
    """UNIX-like nanoseconds that never step: CLOCK_MONOTONIC plus an anchor taken once per boot.

    Every process of this user reads the same anchor, whatever its domain.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._path = (directory or base_directory()) / ".clock"
        self._anchor_ns = _shared_anchor_ns(self._path)

    def now_ns(self) -> int:
        """Return the time now."""
        return time.monotonic_ns() + self._anchor_ns

    def to_host_ns(self, monotonic_ns: int) -> int:
        """Return the host time of a CLOCK_MONOTONIC reading, such as a driver's buffer stamp."""
        return monotonic_ns + self._anchor_ns

    def restore(self) -> None:
        """Put the anchor back if its file is gone, so that whoever starts next reads the same clock."""
        if self._path.exists():
            return
        whole = self._path.with_name(f".clock{secrets.token_hex(4)}")
        try:
            whole.write_text(f"{self._anchor_ns} {_boot_id()}\n", encoding="ascii")
            whole.chmod(0o600)
            with suppress(FileExistsError):  # another process was faster
                os.link(whole, self._path)
        except OSError as error:
            raise BusError(f"cannot keep the host clock in {self._path}: {error}") from error
        finally:
            whole.unlink(missing_ok=True)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _shared_anchor_ns(path: Path) -> int:
    try:
        boot_id = _boot_id()
        # The lock makes read-or-take one step, so that two first processes cannot take two anchors.
        path.touch(mode=0o600)
        with path.open("r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            kept = re.fullmatch(rf"(-?\d+) {re.escape(boot_id)}\n", file.read())
            if kept:
                return int(kept[1])
            anchor_ns = time.time_ns() - time.monotonic_ns()
            file.seek(0)
            file.truncate()
            file.write(f"{anchor_ns} {boot_id}\n")
            return anchor_ns
    except OSError as error:
        raise BusError(f"cannot keep the host clock in {path}: {error}") from error


class Runtime:
    """The topics of one domain on this host: each a unix socket file of the topic's name."""

    def __init__(self, domain: str | None = None, base: Path | None = None) -> None:
        """Open a domain.

        Args:
            domain: keeps graphs apart; without it $PERCEPTION_DOMAIN, else `default`.
            base: directory of all domains; without it the user's runtime directory.
        """
        self.domain = os.environ.get(DOMAIN_VARIABLE) or "default" if domain is None else domain
        if not _DOMAIN.fullmatch(self.domain):
            raise BusError(f"'{self.domain[:80]}' is no domain; use 1 to 32 letters, digits, '_' and '-'")
        self.base = base_directory() if base is None else private_directory(base)
        self.directory = self.base / self.domain
        self.keeper = Keeper()
        """Puts back what this process has in the directory, should somebody remove it."""

    @cached_property
    def clock(self) -> HostClock:
        """The clock of all processes that meet here."""
        return HostClock(self.base)

    def ipc_endpoint(self, topic: str) -> str:
        """Return the endpoint publishers of `topic` bind and subscribers connect to."""
        return f"ipc://{self.socket_path(topic)}"

    def socket_path(self, topic: str) -> Path:
        """Return the socket file of `topic`; BusError if its path is longer than the system allows."""
        topics.lookup(topic)
        path = self.directory / topic
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            raise BusError(
                f"{path} is longer than the {_MAX_SOCKET_PATH_BYTES} bytes of a unix socket path; "
                f"shorten the topic or the domain, or set {RUNTIME_VARIABLE}"
            )
        return path

    def topics(self) -> list[str]:
        """Return the topics that a live process of this host publishes now, sorted."""
        return sorted(topic for topic in self._found() if self._holder(topic) is not None)

    def claim(self, topic: str) -> "Claim":
        """Take the right to publish `topic`; BusError if a live publisher has it."""
        deadline = time.monotonic() + _CLAIM_PATIENCE_S
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
        """Take a claim again whose files are gone; BusError if another publisher was faster."""
        if not claim.locked():
            topic = str(claim.path.relative_to(self.directory))
            again = self._try_claim(topic)
            if again is None:
                holder = self._holder(topic) or "another process"
                raise BusError(
                    f"{topic}: its files were removed, and {holder} publishes it now: stop one of the two"
                )
            claim.take_over(again)

    def sweep(self) -> None:
        """Remove what dead processes left: socket files, lock files, empty directories."""
        for topic in self._found():
            with suppress(BusError):
                claim = self._try_claim(topic)
                if claim is not None:
                    claim.release()
        for folder, _, _ in os.walk(self.directory, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)

    def _found(self) -> Iterator[str]:
        """Yield every topic that has a socket or a lock file, dead or alive."""
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
        """Return `process 123` for the live publisher of `topic`, None if there is none."""
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
            return None  # swept away in between
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
    """The right to publish one topic on this host, held until released or until the process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def locked(self) -> bool:
        """Return whether the lock file that others would ask is still the one that is locked."""
        assert self._descriptor is not None
        return same_file(_lock_path(self.path), self._descriptor)

    def whole(self) -> bool:
        """Return whether socket and lock file are still there."""
        return self.path.exists() and self.locked()

    def take_over(self, other: "Claim") -> None:
        """Hold what the other claim of this topic holds, instead of what was held."""
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor, other._descriptor = other._descriptor, None

    def release(self) -> None:
        """Remove the socket and lock files and give the topic back."""
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
