"""Copy sessions: all that is intact, or a part. Only health messages and labels are decoded."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from msgspec import structs

from perception.errors import MalformedMessageError, SessionError
from perception.io.beside import refuse_existing
from perception.io.progress import progress
from perception.messages import Label, Message
from perception.session.file.container import Record
from perception.session.file.mcap_file import matches
from perception.session.file.reader import ORIGIN, Session, available, message
from perception.session.file.writer import SessionWriter, atomic_session


@dataclass(frozen=True, slots=True)
class Copied:
    """Result of a copy."""

    messages: int
    bytes_written: int
    damage: list[str]
    """What could not be read of the source, one line each."""
    left_out: list[str]
    """Records of the source that no session holds, such as attachments, with their number."""
    begins_s: float
    """Second of the source at which the copy has its zero."""


def repair(source: Path | str, target: Path | str) -> Copied:
    """Write all that is intact in `source` to `target`, with an index.

    Raises:
        SessionError: `source` is not a session, or `target` exists or cannot be written.
    """
    return _copy(source, target, ("*",), None, None)


def trim(
    source: Path | str,
    target: Path | str,
    topics: Sequence[str] = ("*",),
    start_s: float | None = None,
    end_s: float | None = None,
) -> Copied:
    """Write a part of `source` to `target`.

    A label whose span overlaps the part is copied even if it was published outside the part; its start is
    moved to the beginning of the part if it is earlier.

    Args:
        source: a session.
        target: file to write.
        topics: names or patterns such as `camera/*`.
        start_s: seconds from the zero of the session; negative: from its end. It is the zero of the part.
        end_s: likewise; messages that arrived at or after it are not copied.

    Raises:
        SessionError: `source` is no session, or `target` exists or cannot be written.
    """
    return _copy(source, target, topics, start_s, end_s)


def _copy(
    source: Path | str, target: Path | str, topics: Sequence[str], start_s: float | None, end_s: float | None
) -> Copied:
    refuse_existing(target)
    with Session(source) as session:
        with atomic_session(target) as writer, progress("copying", session.listed) as session.watch:
            for name, value in session.metadata.items():
                writer.add_metadata(name, value)
            writer.add_metadata(ORIGIN, session.origin)
            start_ns, end_ns = session.at_ns(start_s), session.at_ns(end_s)
            skipped_ns = max((start_ns or 0) - session.zero.log_ns, 0)
            writer.set_zero(session.zero.later(skipped_ns))
            labels = _Labels.of(session, topics, start_ns, end_ns)
            labels.write_before(writer, next(session.records(topics, start_ns, end_ns), None))
            for record in session.records(topics, start_ns, end_ns):
                if not labels.moved(record):
                    _copy_record(record, writer)
            labels.write_after(writer)
            if not writer.counts:
                raise SessionError(f"{source}: nothing to write{available(session, topics)}")
        return Copied(
            writer.counts.total(), writer.bytes_written, session.damage, session.passed_over, skipped_ns / 1e9
        )


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labels whose span overlaps a part, but that were published outside it or begin before it.

    Each was published once, so that a part cut by arrival alone would lack them.
    """

    before: list[Message[Label]]
    """Spans at the beginning of the part, whose start is moved there; or published before the part."""
    after: list[Message[Label]]
    """Published after the part: a mark is published at its end."""
    taken: frozenset[int]
    """Log times of the labels in the part that are in `before`."""

    @classmethod
    def of(
        cls, session: Session, topics: Sequence[str], start_ns: int | None, end_ns: int | None
    ) -> "_Labels":
        """Return the labels of a part; times are log times, None for no limit."""
        if start_ns is None and end_ns is None:
            return cls([], [], frozenset())
        first_ns, last_ns = start_ns or 0, 1 << 64 if end_ns is None else end_ns
        begin_ns, stop_ns = (session.zero.stamp_at(at_ns) for at_ns in (first_ns, last_ns))
        given = list(_labels(session, topics))
        latest = {
            (one.header.track, one.header.start_ns): one for one in given
        }  # of two, the later one counts
        overlapping = [
            one for one in latest.values() if one.header.start_ns < stop_ns and one.header.end_ns > begin_ns
        ]
        begun = sorted(
            (one for one in overlapping if one.header.start_ns < begin_ns),
            key=lambda one: one.header.start_ns,
        )
        # one nanosecond apart: of overlapping labels the one with the latest start counts
        before = [_from(label, begin_ns - back) for back, label in enumerate(reversed(begun))][::-1]
        later = [one for one in overlapping if one.header.start_ns >= begin_ns]
        return cls(
            before + [one for one in later if one.received_ns < first_ns],
            [one for one in later if one.received_ns >= last_ns],
            frozenset(one.received_ns for one in given if one.header.start_ns < begin_ns < one.header.end_ns),
        )

    def moved(self, record: Record) -> bool:
        """Return whether a record of the part is a label that is written before it."""
        return record.log_time_ns in self.taken and record.channel.topic.startswith("label/")

    def write_before(self, writer: SessionWriter, first: Record | None) -> None:
        """Write the labels before the part, whose first record is `first`."""
        for back, label in zip(range(len(self.before), 0, -1), self.before, strict=True):
            at_ns = label.received_ns if first is None else max(first.log_time_ns - back, 1)
            writer.write(structs.replace(label, received_ns=at_ns))

    def write_after(self, writer: SessionWriter) -> None:
        """Write the labels after the part."""
        for label in self.after:
            writer.write(structs.replace(label, received_ns=1))  # moved to after the last record


def _labels(session: Session, topics: Sequence[str]) -> Iterator[Message[Label]]:
    for record in session.records(["label/*"]):
        if matches(record.channel.topic, topics):
            with suppress(ValueError, KeyError, MalformedMessageError):
                given = message(record)
                if isinstance(given.header, Label):
                    yield cast(Message[Label], given)


def _from(label: Message[Label], start_ns: int) -> Message[Label]:
    """Return a label with a later start."""
    return structs.replace(label, header=structs.replace(label.header, stamp_ns=start_ns, start_ns=start_ns))


def _copy_record(record: Record, writer: SessionWriter) -> None:
    """Copy a record; a health message with credentials, as in early recordings, without them."""
    with suppress(ValueError, KeyError, MalformedMessageError):
        if record.channel.topic.startswith("health/") and not (clean := message(record)).wire:
            writer.write(clean)
            return
    writer.copy(record)
