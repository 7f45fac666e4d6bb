"""Select streams and time of a source for an import, and their topics. No files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from perception.errors import BusError, SessionError
from perception.session.file.reader import matches
from perception.topics import kind_of, lookup
from perception.units import SECOND_NS


@dataclass(frozen=True, slots=True)
class Selection:
    """Selection by the options of `perception session import`; by default everything."""

    topics: tuple[str, ...] = ("*",)
    """Patterns on the name in the source, the default topic or the requested topic."""
    start_s: float | None = None
    """Seconds from the beginning of the source; negative: from its end."""
    end_s: float | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By prefix: `NAME` for the next stream of that prefix, or `STREAM=NAME` for the given stream."""

    def choose(self, found: Sequence[tuple[str, str]]) -> list[str | None]:
        """Return the topic of each stream, None for one that is not selected.

        Args:
            found: (name in the source, default topic) of every stream, in the order of the source.

        Raises:
            SessionError: a name matches no stream or is not valid, two streams would have one topic, or no
                stream is selected.
        """
        renamed = self._renamed(found)
        chosen = [
            topic if self._wants(own, default, topic) else None
            for (own, default), topic in zip(found, renamed, strict=True)
        ]
        counts = Counter(topic for topic in chosen if topic is not None)
        if not counts:
            there = ", ".join(f"{own} ({topic})" if own != topic else own for own, topic in found)
            raise SessionError(f"--topics {' '.join(self.topics)}: matches none of: {there}")
        topic, number = counts.most_common(1)[0]
        if number > 1:
            raise SessionError(f"{number} streams would become {topic}; give them different names")
        return chosen

    def span_ns(self, first_ns: int, last_ns: int) -> tuple[int, int]:
        """Return begin and end, excluded, of the selected time of a source from `first_ns` to `last_ns`."""

        def at_ns(seconds: float | None, default_ns: int) -> int:
            if seconds is None:
                return default_ns
            return (last_ns if seconds < 0 else first_ns) + round(seconds * SECOND_NS)

        begin_ns, end_ns = at_ns(self.start_s, -(1 << 63)), at_ns(self.end_s, 1 << 63)
        if begin_ns >= end_ns:
            raise SessionError(f"--from {self.start_s} --to {self.end_s}: the first is not before the second")
        return begin_ns, end_ns

    def _wants(self, *names: str) -> bool:
        return any(matches(name, self.topics) for name in names)

    def _renamed(self, found: Sequence[tuple[str, str]]) -> list[str]:
        """Return the topic of every stream under the requested names, selected or not."""
        renamed = [default for _, default in found]
        for prefix, names in self.names.items():
            free = [number for number, (_, default) in enumerate(found) if kind_of(default) == prefix]
            # A name without a stream is given to the first stream that matches the patterns.
            free.sort(key=lambda number: not self._wants(*found[number]))
            given = [name.rpartition("=") for name in names]
            for stream, _, name in sorted(given, key=lambda one: not one[0]):
                fits = [number for number in free if stream in ("", *found[number])]
                if not fits:
                    there = ", ".join(found[number][0] for number in free) or f"no other {prefix}"
                    raise SessionError(f"--{prefix} {stream or name}: no such stream; there is {there}")
                renamed[fits[0]] = _topic(prefix, name)
                free.remove(fits[0])
        return renamed


def _topic(prefix: str, name: str) -> str:
    try:
        lookup(f"{prefix}/{name}")
    except BusError as error:
        raise SessionError(f"--{prefix} {name}: {error}") from error
    return f"{prefix}/{name}"


EVERYTHING: Final = Selection()
