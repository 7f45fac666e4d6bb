"""Make sessions of sessions: what is intact, or what is wanted. Only health and labels are decoded."""

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
from perception.session.file.writer import SessionWriter, whole


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


def repair(source: Path | str, target: Path | str) -> Copied:
    """Write what is intact in `source` to `target`, with an index.

    Raises:
        SessionError: `source` is no session, or `target` exists or cannot be written.
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

    A label is taken that is in force in the part, whenever it was given; it begins no earlier than the part.

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
    source: Path | str, target: Path | str, topics: Sequence[str], start_s: float | None, end_s: float | None
) -> Copied:
    refuse_existing(target)
    with Session(source) as session:
        with whole(target) as writer, progress("copying", session.listed) as session.watch:
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
                    _take_over(record, writer)
            labels.write_after(writer)
            if not writer.counts:
                raise SessionError(f"{source}: nothing to write{available(session, topics)}")
        return Copied(
            writer.counts.total(), writer.bytes_written, session.damage, session.passed_over, skipped_ns / 1e9
        )


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labels that are in force in a part but were given before or after it, or begin before it.

    They were given once, so a part that is cut by arrival alone would be without them.
    """

    before: list[Message[Label]]
    """In force at its beginning, where they begin now; or given before it."""
    after: list[Message[Label]]
    """Given after its end, as marks are told when they end."""
    taken: frozenset[int]
    """Log times of those in the part that stand in `before`."""

    @classmethod
    def of(
        cls, session: Session, topics: Sequence[str], start_ns: int | None, end_ns: int | None
    ) -> "_Labels":
        """Find them; times are log times, None for no limit."""
        if start_ns is None and end_ns is None:
            return cls([], [], frozenset())
        first_ns, last_ns = start_ns or 0, 1 << 64 if end_ns is None else end_ns
        begin_ns, stop_ns = (session.zero.stamp_at(at_ns) for at_ns in (first_ns, last_ns))
        given = list(_labels(session, topics))
        latest = {(one.header.track, one.header.start_ns): one for one in given}  # of two the later counts
        force = [
            one for one in latest.values() if one.header.start_ns < stop_ns and one.header.end_ns > begin_ns
        ]
        begun = sorted(
            (one for one in force if one.header.start_ns < begin_ns), key=lambda one: one.header.start_ns
        )
        # a nanosecond apart: of overlapping labels the one that began last counts
        before = [_from(label, begin_ns - back) for back, label in enumerate(reversed(begun))][::-1]
        later = [one for one in force if one.header.start_ns >= begin_ns]
        return cls(
            before + [one for one in later if one.received_ns < first_ns],
            [one for one in later if one.received_ns >= last_ns],
            frozenset(one.received_ns for one in given if one.header.start_ns < begin_ns < one.header.end_ns),
        )

    def moved(self, record: Record) -> bool:
        """Whether a record of the part is a label that was written before it."""
        return record.log_time_ns in self.taken and record.channel.topic.startswith("label/")

    def write_before(self, writer: SessionWriter, first: Record | None) -> None:
        """Write those that come before the part, whose first record this is."""
        for back, label in zip(range(len(self.before), 0, -1), self.before, strict=True):
            at_ns = label.received_ns if first is None else max(first.log_time_ns - back, 1)
            writer.write(structs.replace(label, received_ns=at_ns))

    def write_after(self, writer: SessionWriter) -> None:
        """Write those that come after it."""
        for label in self.after:
            writer.write(structs.replace(label, received_ns=1))  # as early as what is there lets it be


def _labels(session: Session, topics: Sequence[str]) -> Iterator[Message[Label]]:
    for record in session.records(["label/*"]):
        if matches(record.channel.topic, topics):
            with suppress(ValueError, KeyError, MalformedMessageError):
                given = message(record)
                if isinstance(given.header, Label):
                    yield cast(Message[Label], given)


def _from(label: Message[Label], start_ns: int) -> Message[Label]:
    """Return a label that begins later."""
    return structs.replace(label, header=structs.replace(label.header, stamp_ns=start_ns, start_ns=start_ns))


def _take_over(record: Record, writer: SessionWriter) -> None:
    """Copy a record as it is; a health message that holds credentials, as early ones do, without them."""
    with suppress(ValueError, KeyError, MalformedMessageError):
        if record.channel.topic.startswith("health/") and not (clean := message(record)).wire:
            writer.write(clean)
            return
    writer.copy(record)
