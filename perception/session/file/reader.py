"""Read sessions: in recorded order, by topic and time, in bounded memory, whatever happened to the file.

What fails a checksum is never returned: it is passed over and told in `Session.damage`.
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
from perception.messages import Header, Health, Message
from perception.session.file import protobuf
from perception.session.file.container import Declarations, Record
from perception.session.file.mcap_file import MAX_OPEN_BYTES, McapFile
from perception.session.file.mcap_file import matches as matches
from perception.session.file.schemas import PAYLOAD_FIELD, wire_fields
from perception.session.file.zero import NAME as ZERO
from perception.session.file.zero import Zero

_LOG: Final = logging.getLogger(__name__)
ORIGIN: Final = "origin"
"""Of the metadata that says which session a part or a repaired copy was made of."""
_BEGINNING_BYTES: Final = 1 << 20


def read(
    path: Path | str,
    topics: Sequence[str] = ("*",),
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> Iterator[Message[Header]]:
    """Yield the messages of a session in recorded order; what was damaged is logged at the end.

    Args:
        path: an MCAP file of ours, whole or cut off, whichever program rewrote it.
        topics: names or patterns such as `camera/*`.
        start_ns: first log time wanted.
        end_ns: first log time no longer wanted.

    Raises:
        SessionError: the file cannot be opened or is no session.
    """
    with Session(path) as session:
        yield from session.messages(topics, start_ns, end_ns)
        for text in session.damage:
            _LOG.warning("%s: %s", path, text)


class ForeignFileError(SessionError):
    """An MCAP file that holds none of this project's messages."""


def sessions_in(folder: Path) -> list[Path]:
    """Return all sessions below a folder in the order of their names; MCAP files of others are said."""
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
        if declared.channels and not any(is_ours(one, declared) for one in declared.channels.values()):
            self.close()
            raise ForeignFileError(
                f"{self.path}: an MCAP file, but no session; try: perception session import"
            )
        self._zero: Zero | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON values by name: `profile`, `models`, `packages`, `clock`, `devices`, whatever was given."""
        return {name: value for name, value in super().metadata.items() if name not in (ZERO, ORIGIN)}

    @property
    def origin(self) -> str:
        """Which recording it is or was made of: parts and repaired copies of one session have the same.

        That is a hash of the file's first MiB, which `trim` and `repair` hand on in the metadata.
        """
        given = super().metadata.get(ORIGIN)
        beginning = os.pread(self._descriptor, _BEGINNING_BYTES, 0)
        return given if isinstance(given, str) else hashlib.sha256(beginning).hexdigest()

    @property
    def zero(self) -> Zero:
        """The moment from which its seconds count: as stored, else of its first message, else 0."""
        if self._zero is None:
            self._zero = Zero.stored(super().metadata) or Zero.of(next(self.messages(), None))
        return self._zero

    @property
    def zero_is_stored(self) -> bool:
        """Whether the file says its zero itself."""
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
        """Topics of its messages, None if only reading the whole file tells; `counts` does that."""
        known, given = self._index.known.channels, self._index.counts
        if given is None or not given.keys() <= known.keys():
            return None
        ours = {number: one.topic for number, one in known.items() if is_ours(one, self._index.known)}
        return sorted({topic for number, topic in ours.items() if given.get(number, 0)})

    @property
    def counts(self) -> dict[str, int]:
        """Messages by topic; reads the whole file if its index does not say."""
        counts: Counter[str] = Counter()
        known, given = self._index.known.channels, self._index.counts
        if given is not None and given.keys() <= known.keys():
            for number, channel in known.items():
                if is_ours(channel, self._index.known):
                    counts[channel.topic] += given.get(number, 0)
        else:
            for record in self.records():
                if _where(record):
                    counts[record.channel.topic] += 1
        return dict(sorted(counts.items()))

    def messages(
        self, topics: Sequence[str] = ("*",), start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[Message[Header]]:
        """Yield messages as they were received, in that order; arguments as those of `read`."""
        for record in self.records(topics, start_ns, end_ns):
            if not _where(record):
                continue
            try:
                yield message(record)
            except (ValueError, KeyError, MalformedMessageError) as error:
                self._note(f"{record.channel.topic}: refused a message: {error}")


def message(record: Record) -> Message[Header]:
    """Decode a record of ours.

    Raises:
        ValueError, KeyError, MalformedMessageError: it does not hold a message.
    """
    given = _where(record)
    fields = dict(protobuf.fields(record.data))
    parts: list[bytes] = [record.channel.topic.encode(), bytes(fields[int(given["header_field"])])]
    # A field of its own comes first: where there is one, the view's holds something made of it.
    payload = fields.get(PAYLOAD_FIELD, fields.get(int(given["payload_field"])))
    if payload is not None:
        parts.append(bytes(payload))  # a view would keep the whole chunk in memory
    return _without_credentials(codec.decode(parts, received_ns=record.log_time_ns))


def _without_credentials(message: Message[Header]) -> Message[Header]:
    """Return a message as it is, or a health message of an early recording without its credentials."""
    header = message.header
    if not isinstance(header, Health):
        return message
    clean = structs.replace(
        header, reason=without_credentials(header.reason), device=cleaned(dict(header.device))
    )
    return message if clean == header else structs.replace(message, header=clean, came_as=None)


def _where(record: Record) -> Mapping[str, str]:
    """Return where the wire bytes of a record are; empty if it is none of ours."""
    return wire_fields(record.channel.metadata, record.schema.name, record.schema.data)


def is_ours(channel: Channel, known: Declarations) -> bool:
    """Return whether the records of a channel are messages as they were on the wire."""
    schema = known.schemas.get(channel.schema_id)
    name, data = ("", b"") if schema is None else (schema.name, schema.data)
    return bool(wire_fields(channel.metadata, name, data))


def available(session: Session, topics: Sequence[str] = ("*",)) -> str:
    """Return what an error says behind "nothing to ...": what was asked for, and what there is."""
    asked = "" if tuple(topics) == ("*",) else f" under --topics {' '.join(topics)}"
    there = ", ".join(session.counts) or "no messages at all"
    damage = "".join(f"; damage: {text}" for text in session.damage)
    return f"{asked}; it holds {there}{damage}"


def nothing_to_export(session: Session, topics: Sequence[str]) -> SessionError:
    """Return the error of an export that would hold nothing."""
    return SessionError(f"{session.path}: nothing to export{available(session, topics)}")
