"""Common interface of bags: their streams, and the bytes of their messages."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

Raw = tuple[int, "BagStream", bytes]
"""Time of receipt in ns, stream, and bytes of a message."""


@dataclass(frozen=True, slots=True)
class BagStream:
    """The messages of one topic and type."""

    topic: str
    type: str
    encoding: str
    """Encoding of the messages: cdr, ros1, protobuf, json."""
    definition: str = ""
    """Definition of the type, if the bag holds it."""
    definition_encoding: str = ""


class Bag(Protocol):
    """An open bag."""

    @property
    def damage(self) -> list[str]:
        """Damage found so far, one line each."""

    @property
    def streams(self) -> list[BagStream]:
        """All streams."""

    @property
    def times_ns(self) -> tuple[int, int]:
        """First and last time of receipt."""

    def messages(self, streams: Collection[BagStream]) -> Iterator[Raw]:
        """Yield the messages of `streams` in order of receipt."""
