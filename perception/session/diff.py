"""Compare two sessions: topic, seq, field path and both values of each difference."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from msgspec import to_builtins

from perception.messages import Header, Message
from perception.session.file.reader import Session, matches
from perception.session.recompute.compare import Difference, first_difference, unmeasured_fields

_PAYLOAD_BYTES: Final = 8


class Divergence(NamedTuple):
    """A message that differs, with its first difference; None if one session lacks the message."""

    topic: str
    seq: int
    stamp_ns: int
    difference: Difference | None
    only_in: str = ""

    def __str__(self) -> str:
        return f"{self.topic} seq {self.seq}: {self.difference or f'only in {self.only_in}'}"


def diff(
    expected: Session, actual: Session, topics: Sequence[str] = ("*",), *, measured: bool = False
) -> Iterator[Divergence]:
    """Yield the messages that differ between two sessions, by topic and seq, in bounded memory.

    Args:
        expected: one session.
        actual: the other session.
        topics: names or patterns of the topics to compare.
        measured: also compare fields with measured times, which differ from run to run.
    """
    for topic in sorted({*expected.counts, *actual.counts}):
        if not matches(topic, topics):
            continue
        left, right = expected.messages([topic]), actual.messages([topic])
        before, after = next(left, None), next(right, None)
        while before is not None or after is not None:
            if after is None or (before is not None and before.header.seq < after.header.seq):
                assert before is not None
                yield Divergence(topic, before.header.seq, before.header.stamp_ns, None, str(expected.path))
                before = next(left, None)
            elif before is None or after.header.seq < before.header.seq:
                yield Divergence(topic, after.header.seq, after.header.stamp_ns, None, str(actual.path))
                after = next(right, None)
            else:
                found = _first(before, after, measured)
                if found is not None:
                    yield Divergence(topic, before.header.seq, before.header.stamp_ns, found)
                before, after = next(left, None), next(right, None)


def _first(expected: Message[Header], actual: Message[Header], measured: bool) -> Difference | None:
    left, right = (
        to_builtins(message.header) if measured else unmeasured_fields(message.header)
        for message in (expected, actual)
    )
    return first_difference(left, right) or _in_payload(bytes(expected.payload), bytes(actual.payload))


def _in_payload(expected: bytes, actual: bytes) -> Difference | None:
    if expected == actual:
        return None
    pairs = zip(expected, actual, strict=False)
    start = next(
        (place for place, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(actual))
    )
    part = slice(start, start + _PAYLOAD_BYTES)
    return Difference(f"payload.{start}", expected[part], actual[part])
