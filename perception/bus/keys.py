"""CURVE keys: a pair per host, and the keys of other hosts that it trusts (`perception.bus.trust`).

Without a trust file only peers with the same pair are served: one folder, copied to all hosts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from perception.bus.gate import Gate
from perception.bus.trust import Trust
from perception.errors import BusError

_NAME: Final = "bus"


@dataclass(frozen=True, slots=True)
class Keys:
    """The key pair of a host, which identifies its readers and publishers alike, and whom it trusts."""

    public: bytes
    secret: bytes
    trust: Trust

    @contextmanager
    def serving(self, socket: zmq.Socket[bytes]) -> Iterator[None]:
        """Encrypt endpoints that `socket` binds while the context is open."""
        socket.set(zmq.CURVE_SECRETKEY, self.secret)
        socket.set(zmq.CURVE_PUBLICKEY, self.public)
        socket.set(zmq.CURVE_SERVER, 1)
        try:
            yield
        finally:
            socket.set(zmq.CURVE_SERVER, 0)  # ZeroMQ binds later endpoints without encryption

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the holder of `key` (z85) is trusted with anything, for `authenticator`."""
        self.trust.refresh()
        return self.trust.knows(key)

    def connect(self, socket: zmq.Socket[bytes], server: bytes) -> None:
        """Encrypt all connections of `socket`, to peers with the public key `server` (z85) only."""
        socket.set(zmq.CURVE_SECRETKEY, self.secret)
        socket.set(zmq.CURVE_PUBLICKEY, self.public)
        socket.set(zmq.CURVE_SERVERKEY, server)


def new_keys(directory: Path | str) -> Path:
    """Create a pair in `directory`, readable by its owner only; BusError if it already has one."""
    directory = Path(directory)
    if (directory / f"{_NAME}.key_secret").exists():
        raise BusError(f"{directory} already holds keys; choose another folder, or remove them first")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in zmq.auth.create_certificates(directory, _NAME):
            Path(file).chmod(0o600)
    except OSError as error:
        raise BusError(f"cannot write keys to {directory}: {error.strerror}") from error
    return directory


def load(directory: Path | str) -> Keys:
    """Return the pair in `directory`; BusError if it is missing or other users can read it."""
    path = Path(directory) / f"{_NAME}.key_secret"
    try:
        if path.stat().st_mode & 0o077:
            raise BusError(f"{path} is open to other users; run: chmod 600 {path}")
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        reason = f"{path.name}: {error.strerror}" if isinstance(error, OSError) and error.strerror else error
        raise BusError(f"no keys in {directory}: {reason}; create them with: perception keys new") from error
    if secret is None:
        raise BusError(f"{path} holds no secret key; create new ones with: perception keys new")
    return Keys(public, secret, Trust(Path(directory), public))


def authenticator(context: zmq.Context[zmq.Socket[bytes]], gate: "Gate | Keys") -> ThreadAuthenticator:
    """Start a thread that refuses whom `gate` refuses, on all sockets of `context`; stop it when done."""
    guard = ThreadAuthenticator(context)
    guard.start()
    guard.configure_curve_callback(credentials_provider=gate)
    return guard
