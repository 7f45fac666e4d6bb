"""Read sessions: in recorded order, by topic and time, in bounded memory, also from damaged files.

Rules. One thread uses a `Session`; it reads by offset and holds no lock, so that other processes may read or
write the file meanwhile. The index is read once, when the file is opened. Bytes that fail a checksum are
never returned: they are skipped and reported in `Session.damage`, which is complete after all has been read.
A session is an MCAP file with at least one channel whose records hold wire bytes; other channels are skipped.
Payloads are copied out of the chunk, so that a kept message does not keep its chunk in memory.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcap.records import Channel
from msgspec import structs

from perception.bus import codec
from perception.errors import MalformedMessageError, SessionError
from perception.errors.credentials import cleaned, without_credentials
from perception.messages import MAX_TIME_NS, Header, Health, Message
from perception.session.file import protobuf
from perception.session.file.container import Declarations, Record
from perception.session.file.mcap_file import MAX_OPEN_BYTES, McapFile
from perception.session.file.mcap_file import matches as matches
from perception.session.file.schemas import PAYLOAD_FIELD, wire_fields
from perception.session.file.zero import NAME as ZERO
from perception.session.file.zero import Zero

_LOG: Final = logging.getLogger(__name__)
ORIGIN: Final = "origin"
"""Name of the metadata that identifies the session that a part or a repaired copy was made from."""
_BEGINNING_BYTES: Final = 1 << 20


def read(
    path: Path | str,
    topics: Sequence[str] = ("*",),
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> Iterator[Message[Header]]:
    """Yield the messages of a session in recorded order; log at the end what was damaged.

    Args:
        path: a session file, complete or cut off, also if another program has rewritten it.
        topics: names or patterns such as `camera/*`.
        start_ns: first log time to yield.
        end_ns: first log time not to yield.

    Raises:
        SessionError: the file cannot be opened or is no session.
    """
    with Session(path) as session:
        yield from session.messages(topics, start_ns, end_ns)
        for text in session.damage:
            _LOG.warning("%s: %s", path, text)


class ForeignFileError(SessionError):
    """An MCAP file without messages of this package."""


def sessions_in(folder: Path) -> list[Path]:
    """Return all sessions below a folder, sorted by name; log other MCAP files as left out."""
    found = []
    for file in sorted(folder.rglob("*.mcap")):
        try:
            with Session(file):
                found.append(file)
        except ForeignFileError as error:
            _LOG.warning("left out: %s", error)
    return found


class Session(McapFile):
    """An open session file."""

    def __init__(self, path: Path | str, *, open_bytes: int = MAX_OPEN_BYTES) -> None:
        """Open a file; SessionError if it cannot be opened or is no session. Arguments as of `McapFile`."""
        super().__init__(path, open_bytes=open_bytes)
        declared = self._declared_first()
        if declared.channels and not any(holds_messages(one, declared) for one in declared.channels.values()):
            self.close()
            raise ForeignFileError(
                f"{self.path}: an MCAP file, but no session; try: perception session import"
            )
        self._zero: Zero | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON values by name, such as `profile`, `packages`, `clock`, `recorded`."""
        return {name: value for name, value in super().metadata.items() if name not in (ZERO, ORIGIN)}

    @property
    def origin(self) -> str:
        """Identifier of the recording: parts and repaired copies of one session have the same.

        It is a hash of the first MiB of the file, which `trim` and `repair` copy in the metadata.
        """
        given = super().metadata.get(ORIGIN)
        beginning = os.pread(self._descriptor, _BEGINNING_BYTES, 0)
        return given if isinstance(given, str) else hashlib.sha256(beginning).hexdigest()

    @property
    def zero(self) -> Zero:
        """Time from which its seconds count: as stored, else of its first message, else 0."""
        if self._zero is None:
            self._zero = Zero.stored(super().metadata) or Zero.of(next(self.messages(), None))
        return self._zero

    @property
    def zero_is_stored(self) -> bool:
        """Whether the file stores its zero."""
        return Zero.stored(super().metadata) is not None

    def at_ns(self, seconds: float | None) -> int | None:
        """Return the log time `seconds` after the zero, or before the end if negative; None of None."""
        if seconds is None or self.times_ns is None:
            return None
        if seconds < 0:
            return max(self.times_ns[1] + round(seconds * 1e9), 0)
        return max(self.zero.log_at(seconds), 0)

    @property
    def topics(self) -> list[str] | None:
        """Topics of its messages; None if the index does not list them, then see `counts`."""
        known, given = self._index.known.channels, self._index.counts
        if given is None or not given.keys() <= known.keys():
            return None
        topics = {
            number: one.topic for number, one in known.items() if holds_messages(one, self._index.known)
        }
        return sorted({topic for number, topic in topics.items() if given.get(number, 0)})

    @property
    def counts(self) -> dict[str, int]:
        """Messages by topic; reads the whole file if its index does not list them."""
        counts: Counter[str] = Counter()
        known, given = self._index.known.channels, self._index.counts
        if given is not None and given.keys() <= known.keys():
            for number, channel in known.items():
                if holds_messages(channel, self._index.known):
                    counts[channel.topic] += given.get(number, 0)
        else:
            for record in self.records():
                if _wire_fields_of(record):
                    counts[record.channel.topic] += 1
        return dict(sorted(counts.items()))

    def messages(
        self, topics: Sequence[str] = ("*",), start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[Message[Header]]:
        """Yield messages in recorded order; arguments as of `read`."""
        for record in self.records(topics, start_ns, end_ns):
            if not _wire_fields_of(record):
                continue
            try:
                yield message(record)
            except (ValueError, KeyError, MalformedMessageError) as error:
                self._note(f"{record.channel.topic}: refused a message: {error}")


def message(record: Record) -> Message[Header]:
    """Decode the message in a record.

    Raises:
        ValueError, KeyError, MalformedMessageError: the record holds no message.
    """
    if record.log_time_ns > MAX_TIME_NS:
        raise ValueError(f"received at {record.log_time_ns} ns, after the latest time there is")
    given = _wire_fields_of(record)
    fields = dict(protobuf.fields(record.data))
    parts: list[bytes] = [record.channel.topic.encode(), bytes(fields[int(given["header_field"])])]
    # The payload field comes first: if it is there, the field of the view holds converted data.
    payload = fields.get(PAYLOAD_FIELD, fields.get(int(given["payload_field"])))
    if payload is not None:
        parts.append(bytes(payload))  # a memoryview would keep the whole chunk in memory
    return _without_credentials(codec.decode(parts, received_ns=record.log_time_ns))


def _without_credentials(message: Message[Header]) -> Message[Header]:
    """Return the message; without credentials if it is a health message, as of early recordings."""
    header = message.header
    if not isinstance(header, Health):
        return message
    clean = structs.replace(
        header, reason=without_credentials(header.reason), device=cleaned(dict(header.device))
    )
    return message if clean == header else structs.replace(message, header=clean, came_as=None)


def _wire_fields_of(record: Record) -> Mapping[str, str]:
    """Return which fields of a record hold the wire bytes; empty if none do."""
    return wire_fields(record.channel.metadata, record.schema.name, record.schema.data)


def holds_messages(channel: Channel, known: Declarations) -> bool:
    """Return whether the records of a channel hold wire bytes."""
    schema = known.schemas.get(channel.schema_id)
    name, data = ("", b"") if schema is None else (schema.name, schema.data)
    return bool(wire_fields(channel.metadata, name, data))


def available(session: Session, topics: Sequence[str] = ("*",)) -> str:
    """Return the end of an error message: the topics requested, those in the file, and its damage."""
    requested = "" if tuple(topics) == ("*",) else f" under --topics {' '.join(topics)}"
    there = ", ".join(session.counts) or "no messages at all"
    damage = "".join(f"; damage: {text}" for text in session.damage)
    return f"{requested}; it holds {there}{damage}"


def nothing_to_export(session: Session, topics: Sequence[str]) -> SessionError:
    """Return the error of an export that would be empty."""
    return SessionError(f"{session.path}: nothing to export{available(session, topics)}")
