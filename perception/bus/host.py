"""One host's shared ground: the clock all processes agree on, and the directory where topics meet."""

import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from perception import topics
from perception.errors import BusError

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), less its closing zero
_CLAIM_PATIENCE_S: Final = 0.25  # outlasts another process's look at the lock, and an exiting publisher


def base_directory() -> Path:
    """Return this user's runtime directory, made if needed; BusError if others could reach into it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return _private(Path(runtime) / "perception")
    return _private(Path(tempfile.gettempdir()) / f"perception-{os.getuid()}")


def _private(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise BusError(f"cannot make the runtime directory {path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise BusError(f"{path} is not a directory of yours; remove it or set XDG_RUNTIME_DIR")
    if status.st_mode & 0o077:
        raise BusError(f"{path} is open to other users; run: chmod 700 {path}")
    return path


class HostClock:
    """UNIX-like nanoseconds that never step: CLOCK_MONOTONIC plus an anchor taken once per boot.

    Every process of this user reads the same anchor, whatever its domain.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._anchor_ns = _shared_anchor_ns(directory or base_directory())

    def now_ns(self) -> int:
        """Return the time now."""
        return time.monotonic_ns() + self._anchor_ns

    def to_host_ns(self, monotonic_ns: int) -> int:
        """Return the host time of a CLOCK_MONOTONIC reading, such as a driver's buffer stamp."""
        return monotonic_ns + self._anchor_ns


def _shared_anchor_ns(directory: Path) -> int:
    path = directory / ".clock"
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
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
        self.domain = os.environ.get("PERCEPTION_DOMAIN") or "default" if domain is None else domain
        if not _DOMAIN.fullmatch(self.domain):
            raise BusError(f"'{self.domain[:80]}' is no domain; use 1 to 32 letters, digits, '_' and '-'")
        self.base = base_directory() if base is None else _private(base)
        self.directory = self.base / self.domain

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
                "shorten the topic or the domain, or set XDG_RUNTIME_DIR"
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
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # swept away in between
        except OSError as error:
            raise BusError(f"cannot claim {topic}: {lock}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have unlinked the file we locked: then the lock guards nothing.
            if os.fstat(descriptor).st_ino != lock.stat().st_ino:
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
