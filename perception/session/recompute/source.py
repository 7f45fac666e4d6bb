"""A recording to recompute: a session file, or messages in memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from perception.errors import SessionError
from perception.messages import Header, Message
from perception.profile import Profile, parse
from perception.session.file.reader import Session, matches
from perception.session.file.zero import Zero
from perception.units.closing import Closing

Source = Path | str | Iterable[Message[Header]]
"""A session file, or messages in their order, which are iterated several times."""


class Recording(Closing):
    """Either kind of source, opened; yields all messages at each iteration."""

    def __init__(self, source: Source, *, trust: bool = True) -> None:
        """Open the source; raise SessionError if a file cannot be read.

        Args:
            source: a session file, or messages in their order.
            trust: whether to open files and models that it names: see `perception.session.recompute.foreign`.
        """
        self.trust = trust
        self.name = "messages"
        self._session: Session | None = None
        self._messages: Iterable[Message[Header]] = ()
        if isinstance(source, str | Path):
            self.name, self._session = str(source), Session(source)
        else:
            # an iterator would be empty the second time
            self._messages = list(source) if isinstance(source, Iterator) else source

    def __iter__(self) -> Iterator[Message[Header]]:
        return self.messages("*")

    def messages(self, *topics: str) -> Iterator[Message[Header]]:
        """Yield what matches one of the patterns, in recorded order."""
        if self._session is not None:
            return self._session.messages(topics)
        return (one for one in self._messages if matches(one.topic, topics))

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the file by name, empty for messages."""
        return {} if self._session is None else self._session.metadata

    @property
    def zero(self) -> Zero:
        """The time from which its seconds count."""
        if self._session is not None:
            return self._session.zero
        return Zero.of(next(iter(self._messages), None))

    @property
    def damage(self) -> list[str]:
        """Damage found so far, one line each."""
        return [] if self._session is None else self._session.damage

    @property
    def profile(self) -> Profile:
        """The profile it was recorded with.

        Raises:
            SessionError: the file does not contain it, or it names files and the source is not trusted.
        """
        noted = self.metadata.get("profile")
        if not isinstance(noted, dict):
            raise SessionError(f"{self.name}: contains no profile; give the one it was recorded with")
        where = f"{self.name}, metadata 'profile'"
        profile = parse(noted, where=where)
        if self.trust:
            return profile
        from perception.session.recompute.foreign import checked  # it needs torch

        return checked(profile, where)

    def close(self) -> None:
        """Close the file."""
        if self._session is not None:
            self._session.close()
