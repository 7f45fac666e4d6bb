"""Which readers a player waits for: the nodes of a profile, the live nodes, or a number."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import Health
from perception.profile import Profile
from perception.topics import kind_of, matches

FUSION: Final = "fusion"
RECORDER: Final = "recorder"
"""Names of the nodes, as the launcher starts them."""


def expected_readers(profile: Profile) -> dict[str, tuple[str, ...]]:
    """Return the nodes of a profile that read a player's topics, with the patterns of these topics."""
    nodes: dict[str, tuple[str, ...]] = {}
    if profile.fusion is not None:
        nodes[FUSION] = tuple(item.topic for item in profile.fusion.inputs.values())
    if profile.recording is not None:
        nodes[RECORDER] = profile.recording.topics
    return nodes


class Readers:
    """Determines which readers are missing.

    Whether a node reads a topic is known from its health message: a topic may have other readers too.
    """

    def __init__(
        self,
        health: Subscriber,
        *,
        nodes: Mapping[str, Sequence[str]] | None = None,
        alive: Callable[[], Iterable[str]] = tuple,
        at_least: int = 0,
    ) -> None:
        """Set the readers to wait for.

        Args:
            health: follows `health/*`.
            nodes: by name, the patterns of the published topics that each must read.
            alive: returns the names of nodes whose health message must have arrived.
            at_least: number of readers, not counting those of labels, which every display reads.
        """
        self._health = health
        self._nodes = nodes or {}
        self._alive = alive
        self._at_least = at_least
        self._read: dict[str, frozenset[str]] = {}

    def awaited(self, publishers: Mapping[str, Publisher]) -> str:
        """Return in words which readers are missing, empty if none are."""
        while (message := self._health.receive(0.0)) is not None:
            if isinstance(message.header, Health):
                self._read[message.header.node] = frozenset(message.header.inputs)
        wanted = {name: set(_matching(publishers, patterns)) for name, patterns in self._nodes.items()}
        for name in self._alive():
            wanted[name] = set(self._read.get(name, ())) & publishers.keys()
        expected = Counter(topic for topics in wanted.values() for topic in topics)
        short = {topic for topic, count in expected.items() if len(publishers[topic].readers) < count}
        missing = [
            f"{name} to read {', '.join(sorted(topics)) or 'anything'}"
            for name, topics in wanted.items()
            if name not in self._read or not topics <= self._read[name] or topics & short
        ]
        if (lacking := self._at_least - _count(publishers)) > 0:
            missing.append(f"{lacking} {'reader' if lacking == 1 else 'readers'} of {', '.join(publishers)}")
        return " and ".join(missing)


def _matching(topics: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [topic for topic in topics if any(matches(pattern, topic) for pattern in patterns)]


def _count(publishers: Mapping[str, Publisher]) -> int:
    inputs = [one for topic, one in publishers.items() if kind_of(topic) != "label"]
    return len(frozenset().union(*(one.readers for one in inputs or publishers.values())))
