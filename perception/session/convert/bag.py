"""What every bag has, whoever wrote it: streams, and the bytes of their messages."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

Raw = tuple[int, "BagStream", bytes]
"""When it was received, in ns, and what."""


@dataclass(frozen=True, slots=True)
class BagStream:
    """The messages of one topic and type."""

    topic: str
    type: str
    encoding: str
    """Of the messages: cdr, ros1, protobuf, json."""
    definition: str = ""
    """Of the type, where the bag has one."""
    definition_encoding: str = ""


class Bag(Protocol):
    """An open bag."""

    @property
    def damage(self) -> list[str]:
        """What could not be read so far."""

    @property
    def streams(self) -> list[BagStream]:
        """All there are."""

    @property
    def times_ns(self) -> tuple[int, int]:
        """First and last time of receipt."""

    def messages(self, streams: Collection[BagStream]) -> Iterator[Raw]:
        """Yield the messages of these in the order of receipt."""
