"""Context managers that close what they hold."""

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager that is itself what `with` binds, and is closed at the end of the block."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
