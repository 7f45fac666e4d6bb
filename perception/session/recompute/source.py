"""A recording to replay: a session file, or messages at hand."""

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
"""A session file, or messages in their order: those are gone through several times."""


class Recording(Closing):
    """Either kind of source, opened; all its messages, as often as they are gone through."""

    def __init__(self, source: Source) -> None:
        """Open a file; SessionError if that fails."""
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
        """What the recorder noted."""
        return {} if self._session is None else self._session.metadata

    @property
    def zero(self) -> Zero:
        """The moment from which its seconds count."""
        if self._session is not None:
            return self._session.zero
        return Zero.of(next(iter(self._messages), None))

    @property
    def damage(self) -> list[str]:
        """What could not be read so far, a line each."""
        return [] if self._session is None else self._session.damage

    @property
    def profile(self) -> Profile:
        """The profile it was recorded with; SessionError if that was not noted."""
        noted = self.metadata.get("profile")
        if not isinstance(noted, dict):
            raise SessionError(f"{self.name}: does not say which profile it was recorded with; give one")
        return parse(noted, where=f"{self.name}, metadata 'profile'")

    def close(self) -> None:
        """Close the file."""
        if self._session is not None:
            self._session.close()
