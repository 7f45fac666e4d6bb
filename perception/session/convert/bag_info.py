"""Summary of a file or folder that is not a session but can be imported."""

from dataclasses import dataclass
from pathlib import Path

from perception.errors.credentials import harmless
from perception.session.convert import bags
from perception.session.convert.import_bag import default_topic, kind_of, prefix_of


@dataclass(frozen=True, slots=True)
class BagInfo:
    """Summary of a bag, for people and programs."""

    path: str
    duration_s: float
    streams: dict[str, str]
    """Type and encoding by name."""
    topics: dict[str, str]
    """Topic after an import by name; streams without a counterpart are missing."""
    damage: list[str]

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        lines = [
            f"{self.path}: not a session; a recording of {self.duration_s:.1f} s that session import reads"
        ]
        for name, kind in self.streams.items():
            becomes = f"-> {self.topics[name]}" if name in self.topics else "has no counterpart"
            lines.append(f"  {name}  {kind}  {becomes}")
        return [harmless(line) for line in lines + [f"damage: {text}" for text in self.damage]]


def info(path: Path) -> BagInfo:
    """Return the summary of a bag; SessionError if it is none."""
    with bags.opened(path) as bag:
        first_ns, last_ns = bag.times_ns
        return BagInfo(
            path=str(path),
            duration_s=(last_ns - first_ns) / 1e9,
            streams={one.topic: kind_of(one) for one in bag.streams},
            topics={one.topic: default_topic(one) for one in bag.streams if prefix_of(one)},
            damage=bag.damage,
        )
