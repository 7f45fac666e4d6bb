"""What a file or folder holds that is no session but can be imported."""

from dataclasses import dataclass
from pathlib import Path

from perception.errors.credentials import harmless
from perception.session.convert import bags
from perception.session.convert.import_bag import default_topic, kind_of, prefix_of


@dataclass(frozen=True, slots=True)
class BagInfo:
    """A summary for people and programs."""

    path: str
    duration_s: float
    streams: dict[str, str]
    """What each is, by name."""
    topics: dict[str, str]
    """What each would become here; those missing have no counterpart."""
    damage: list[str]

    def lines(self) -> list[str]:
        """Return it as text."""
        lines = [f"{self.path}: no session but a recording of {self.duration_s:.1f} s: session import"]
        for name, kind in self.streams.items():
            becomes = f"-> {self.topics[name]}" if name in self.topics else "has no counterpart here"
            lines.append(f"  {name}  {kind}  {becomes}")
        return [harmless(line) for line in lines + [f"damage: {text}" for text in self.damage]]


def info(path: Path) -> BagInfo:
    """Return what a recording of others holds; SessionError if it is none."""
    with bags.opened(path) as bag:
        first_ns, last_ns = bag.times_ns
        return BagInfo(
            path=str(path),
            duration_s=(last_ns - first_ns) / 1e9,
            streams={one.topic: kind_of(one) for one in bag.streams},
            topics={one.topic: default_topic(one) for one in bag.streams if prefix_of(one)},
            damage=bag.damage,
        )
