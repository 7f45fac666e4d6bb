"""Make sessions of sessions: what is intact, or what is wanted. Only health is decoded on the way."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from perception.errors import MalformedMessageError, SessionError
from perception.progress import progress
from perception.session.beside import refuse_existing
from perception.session.container import Record
from perception.session.reader import Session, message
from perception.session.writer import SessionWriter, whole


@dataclass(frozen=True, slots=True)
class Copied:
    """What came of it."""

    messages: int
    bytes_written: int
    damage: list[str]
    """What of the source could not be read, one line each."""
    left_out: list[str]
    """What of the source has no place in a session, with its number."""
    begins_s: float
    """Second of the source that is the zero of the copy."""


def repair(source: Path, target: Path) -> Copied:
    """Write what is intact in `source` to `target`, with an index.

    Raises:
        SessionError: `source` is no session, or `target` exists or cannot be written.
    """
    return _copy(source, target, ("*",), None, None)


def trim(
    source: Path,
    target: Path,
    topics: Sequence[str] = ("*",),
    start_s: float | None = None,
    end_s: float | None = None,
) -> Copied:
    """Write a part of `source` to `target`.

    Args:
        source: a session.
        target: file to write.
        topics: names or patterns such as `camera/*`.
        start_s: seconds from the zero of the session; negative: from its end. The part's own zero is then.
        end_s: likewise; what arrived then is not taken.

    Raises:
        SessionError: `source` is no session, or `target` exists or cannot be written.
    """
    return _copy(source, target, topics, start_s, end_s)


def _copy(
    source: Path, target: Path, topics: Sequence[str], start_s: float | None, end_s: float | None
) -> Copied:
    refuse_existing(target)
    with Session(source) as session:
        with whole(target) as writer, progress("copying", session.listed) as session.watch:
            for name, value in session.metadata.items():
                writer.add_metadata(name, value)
            start_ns = session.at_ns(start_s)
            skipped_ns = max((start_ns or 0) - session.zero.log_ns, 0)
            writer.set_zero(session.zero.later(skipped_ns))
            for record in session.records(topics, start_ns, session.at_ns(end_s)):
                _take_over(record, writer)
            if not writer.counts:
                reason = "; ".join(session.damage) or "no such messages"
                raise SessionError(f"{source}: nothing to write: {reason}")
        return Copied(
            writer.counts.total(), writer.bytes_written, session.damage, session.passed_over, skipped_ns / 1e9
        )


def _take_over(record: Record, writer: SessionWriter) -> None:
    """Copy a record as it is; a health message that holds credentials, as early ones do, without them."""
    with suppress(ValueError, KeyError, MalformedMessageError):
        if record.channel.topic.startswith("health/") and not (clean := message(record)).wire:
            writer.write(clean)
            return
    writer.copy(record)
