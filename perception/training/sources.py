"""Sources of examples: recorded sessions and folders of ordinary media.

A source is picklable, because sources are encoded in several processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from perception.messages import Header, Message
from perception.models.feature_cache import file_hash
from perception.profile import FusionConfig
from perception.session import labels as label_files
from perception.session.file.reader import Session, read, sessions_in
from perception.session.labels import Span
from perception.training.media import media_sources


class DataSource(Protocol):
    """A source of examples. Picklable, since sources are encoded in several processes."""

    @property
    def name(self) -> str:
        """Name in reports and messages."""

    def fingerprint(self) -> str:
        """Return a hash of everything that decides its messages."""

    def origin(self) -> str:
        """Return a value that is equal for sources which must be on one side of a split."""

    def messages(self) -> Iterable[Message[Header]]:
        """Yield its messages in order of arrival."""

    def recording(self) -> Path | Iterable[Message[Header]]:
        """Return the data to cut windows from: a session file, or messages; an iterator has no journals."""

    def spans(self) -> list[Span]:
        """Return its labels in event time."""


@dataclass(frozen=True, slots=True)
class SessionSource:
    """A recorded session; labels from a file beside it, else from the labels recorded in it.

    Its text commands are labels too, on the track `commands`.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    def fingerprint(self) -> str:
        """Return the hash of the file."""
        return file_hash(self.path)

    def origin(self) -> str:
        """Return the recording that it is, or is a part of."""
        with Session(self.path) as session:
            return session.origin

    def messages(self) -> Iterator[Message[Header]]:
        """Yield the recorded messages."""
        return read(self.path)

    def recording(self) -> Path:
        """Return the file: its journals hold the messages that a live fusion received, in order."""
        return self.path

    def spans(self) -> list[Span]:
        """Return the labels; times in a label file count from the zero of the session."""
        return label_files.of_session(self.path)


def find_sources(paths: Sequence[Path], fusion: FusionConfig) -> list[DataSource]:
    """Return sessions (.mcap files, or all in a folder that holds some) and folders of ordinary media."""
    sources: list[DataSource] = []
    for path in paths:
        sessions = sessions_in(path) if path.is_dir() else [path]
        if sessions:
            sources += [SessionSource(file) for file in sessions]
        else:
            sources += media_sources(path, fusion)
    return sources
