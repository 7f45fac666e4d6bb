"""Which key may do what: the trust file of a folder of keys, `trust.toml`, read again when it changes.

Each host has its own pair. The trust file names the public keys of other hosts, and what each of them may do
here, by topics or prefixes of topics: `subscribe` to what this host publishes; `publish` to subscribers of
this host; `control`, to publish on topics `control/...`, which change what a fusion computes. The pair of the
folder itself may do everything: who holds its secret key is this user.

Threads: `Trust` may be used from any thread. Its entries are replaced as a whole, never changed.
"""

import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError
from zmq.utils import z85

from perception import topics
from perception.errors import BusError
from perception.io.beside import replace_file
from perception.io.text_file import read_text
from perception.profile.keys import Pattern
from perception.profile.problems import problems
from perception.profile.section import Section

FILE: Final = "trust.toml"
NAME: Final = r"[A-Za-z0-9_-]{1,64}"
_MOST_BYTES: Final = 1 << 20
_LOG: Final = logging.getLogger(__name__)
_HEAD: Final = """\
# Keys of other hosts, and what each may do here: topics, or prefixes of topics such as "camera/*".
# Changes take effect within a second. See: perception guide security
"""


class Entry(Section):
    """The key of one host, and its rights."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    subscribe: tuple[Pattern, ...] = ()
    publish: tuple[Pattern, ...] = ()
    control: tuple[Pattern, ...] = ()

    def may_subscribe(self, topic: str) -> bool:
        """Return whether it may receive a topic that this host publishes."""
        return _covers(self.subscribe, topic)

    def may_publish(self, topic: str) -> bool:
        """Return whether subscribers of this host accept this topic from it."""
        return _covers(self._published(topic), topic)

    def may_publish_any(self, pattern: str) -> bool:
        """Return whether subscribers of this host accept a topic that matches a pattern from it."""
        return any(topics.overlap(allowed, pattern) for allowed in self._published(pattern))

    def _published(self, pattern: str) -> tuple[str, ...]:
        return self.control if topics.kind_of(pattern) == "control" else self.publish


_ENTRIES: Final = TypeAdapter(dict[Annotated[str, Field(pattern=f"^{NAME}$")], Entry])
Entries = Mapping[str, Entry]
"""Entry by name of the host."""


class Trust:
    """The trust file of a folder of keys."""

    def __init__(self, folder: Path, own: bytes) -> None:
        """Read the file, which may be missing; BusError if it is malformed or other users can change it.

        Args:
            folder: of the keys.
            own: public key of this host, z85.
        """
        self._path = folder / FILE
        self._own = own
        self._version = _version(self._path)
        self._entries = read(self._path)

    def refresh(self) -> bool:
        """Read the file again if it has changed; return whether the entries did.

        A file that cannot be read changes nothing; that is logged once.
        """
        if (version := _version(self._path)) == self._version:
            return False
        self._version = version
        try:
            entries = read(self._path)
        except BusError as error:
            _LOG.warning("%s; what it held before still applies", error)
            return False
        changed, self._entries = entries != self._entries, entries
        return changed

    def may_subscribe(self, key: bytes, topic: str) -> bool:
        """Return whether the holder of a public key, z85, may receive a topic of this host."""
        entry = self._entry(key)
        return key == self._own or (entry is not None and entry.may_subscribe(topic))

    def may_publish(self, key: bytes, topic: str) -> bool:
        """Return whether subscribers of this host accept a topic from the holder of a public key, z85."""
        entry = self._entry(key)
        return key == self._own or (entry is not None and entry.may_publish(topic))

    def may_publish_any(self, key: bytes, patterns: Iterable[str]) -> bool:
        """Return whether that holds for a topic that matches one of the patterns."""
        entry = self._entry(key)
        return key == self._own or (entry is not None and any(map(entry.may_publish_any, patterns)))

    def knows(self, key: bytes) -> bool:
        """Return whether the file holds a public key, z85, or it is that of this host."""
        return key == self._own or self._entry(key) is not None

    def holds(self, name: str) -> bool:
        """Return whether the file holds a key of this name."""
        return name in self._entries

    def name_of(self, key: bytes) -> str:
        """Return the name of a public key, z85; empty if the file does not hold it."""
        return next((name for name, one in self._entries.items() if z85_of(one.key) == key), "")

    def publisher_key(self, name: str, pattern: str) -> bytes:
        """Return the public key, z85, that a publisher of `pattern` on another host must have.

        Args:
            name: of the host; empty: the only host that may publish this, else the one with this pair.
            pattern: topics to receive.

        Raises:
            BusError: no key has this name, or several hosts may publish this.
        """
        if name:
            if name not in self._entries:
                raise BusError(f"{self._path} holds no key of '{name}'; add it: perception keys trust {name}")
            return z85_of(self._entries[name].key)
        able = [host for host, one in self._entries.items() if one.may_publish_any(pattern)]
        if len(able) > 1:
            raise BusError(
                f"{pattern}: {', '.join(able)} may publish it; name one before its host, as {able[0]}@HOST"
            )
        return z85_of(self._entries[able[0]].key) if able else self._own

    def _entry(self, key: bytes) -> Entry | None:
        return next((one for one in self._entries.values() if z85_of(one.key) == key), None)


def z85_of(key: str) -> bytes:
    """Return a key as ZeroMQ writes it."""
    return bytes(z85.encode(bytes.fromhex(key)))


def hex_of(key: bytes) -> str:
    """Return a key in z85 as hexadecimal digits, which no shell changes."""
    return bytes(z85.decode(key)).hex()


def read(path: Path) -> Entries:
    """Return the entries of a trust file, none if it is missing.

    Raises:
        BusError: it is malformed, two hosts have one key, or other users can change it.
    """
    try:
        status = path.stat()
        if status.st_mode & 0o022 or status.st_uid not in (os.geteuid(), 0):
            raise BusError(f"{path} can be changed by other users; run: chmod 600 {path}")
        entries = _ENTRIES.validate_python(tomllib.loads(read_text(path, most_bytes=_MOST_BYTES)))
    except FileNotFoundError:
        return MappingProxyType({})
    except ValidationError as error:
        raise BusError(f"{path}: {problems(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BusError(f"{path}: unreadable: {error}") from error
    if len({one.key for one in entries.values()}) < len(entries):
        raise BusError(f"{path}: two names have one key; remove one of them")
    return MappingProxyType(entries)


def add(folder: Path, name: str, entry: Entry) -> None:
    """Write an entry to the trust file of a folder; it replaces one with this name. BusError if it fails."""
    path = folder / FILE
    if not re.fullmatch(NAME, name):
        raise BusError(f"'{name[:80]}' is no name; use 1 to 64 letters, digits, '_' and '-'")
    if other := next((one for one, kept in read(path).items() if kept.key == entry.key and one != name), ""):
        raise BusError(f"{path} holds this key as '{other}'; run first: perception keys revoke {other}")
    rights = (("subscribe", entry.subscribe), ("publish", entry.publish), ("control", entry.control))
    lines = [f"[{name}]", f'key = "{entry.key}"', *(_line(right, given) for right, given in rights)]
    _write(path, "\n".join([_without(path, name).rstrip("\n") or _HEAD.rstrip("\n"), "", *lines, ""]))


def remove(folder: Path, name: str) -> None:
    """Remove an entry from the trust file of a folder; BusError if it is not there or that fails."""
    path = folder / FILE
    if name not in read(path):
        raise BusError(f"{path} holds no key of '{name}'; perception keys list shows all")
    _write(path, _without(path, name))


def _line(right: str, patterns: Iterable[str]) -> str:
    quoted = ", ".join(f'"{one}"' for one in patterns)
    return f"{right} = [{quoted}]"


def _without(path: Path, name: str) -> str:
    """Return the text of a trust file without the table of a name; comments elsewhere are kept."""
    try:
        text = read_text(path, most_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return ""
    text = re.sub(rf"(?m)^\[{re.escape(name)}\][^\n]*\n(?:(?!\[)[^\n]*\n?)*", "", text)
    if name in tomllib.loads(text):
        raise BusError(f"{path}: the table of '{name}' is not written as [{name}]; remove it by hand")
    return text


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise BusError(f"cannot write {path}: {error.strerror}") from error


def _version(path: Path) -> tuple[int, int, int]:
    """Return what changes whenever the file does."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino


def _covers(patterns: Iterable[str], topic: str) -> bool:
    return any(topics.matches(pattern, topic) for pattern in patterns)
