"""Summary of a session, from its index."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from perception.errors import SessionError
from perception.session.convert import bag_info
from perception.session.convert.bag_info import BagInfo
from perception.session.convert.bags import SUFFIXES
from perception.session.file.reader import Session
from perception.session.file.zero import Zero

_LONG_VALUE: Final = 80
_HASH: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b")
"""A long hash; its first 12 digits are shown."""


@dataclass(frozen=True, slots=True)
class Info:
    """Summary of a session, for people and programs."""

    path: str
    size_bytes: int
    start_ns: int | None
    zero: Zero
    """Time from which its seconds count."""
    zero_is_stored: bool
    """False if the zero is computed, since the recorder stored none."""
    duration_s: float
    counts: dict[str, int]
    """Messages by topic."""
    metadata: dict[str, Any]
    closed_properly: bool
    being_recorded: bool
    """Whether a recorder of this host is writing the file."""
    damage: list[str]
    passed_over: list[str]
    """Other content than messages and metadata."""
    checked: bool
    """Whether all messages were read, so that all damage is known; else only the index was read."""

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        start = "empty" if self.start_ns is None else _date(self.start_ns)
        lines = [f"{self.path}: {self.size_bytes / 1e6:.1f} MB, {self.duration_s:.1f} s from {start}"]
        if self.being_recorded:
            lines.append("still being recorded: this is what has been written so far")
        elif not self.closed_properly:
            lines.append("not closed properly (the recorder was killed?): perception session repair")
        if self.start_ns is not None:
            zero_ns = self.zero.stamp_ns
            source = "" if self.zero_is_stored else ", not stored: that of the first message"
            lines.append(f"seconds count from {_date(zero_ns)} (stamp {zero_ns}{source})")
        width = max(map(len, self.counts), default=0)
        for topic, count in self.counts.items():
            rate_hz = count / self.duration_s if self.duration_s else 0.0
            lines.append(f"  {topic:{width}}  {count:9d}  {rate_hz:8.1f} Hz")
        if self.passed_over:
            lines.append(f"beside messages: {', '.join(self.passed_over)}")
        lines += [f"{name}: {_short(value)}" for name, value in self.metadata.items()]
        if not self.checked:
            lines.append(
                "from its index only; cat, repair and verify read the messages and report their damage"
            )
        return lines + [f"damage: {text}" for text in self.damage]


def look(path: Path | str) -> tuple[list[Info | BagInfo], list[str]]:
    """Return summaries of a session, of another recording, or of each session of a folder.

    The second value names the files of a folder that cannot be read, one line each.

    Raises:
        SessionError: there is no recording, or none can be read.
    """
    path = Path(path)
    if not path.is_dir():
        return [_look_at(path)], []
    found: list[Info | BagInfo] = []
    problems = []
    for file in sorted(one for one in path.iterdir() if one.suffix.lower() == ".mcap"):
        try:
            found.append(_look_at(file))
        except SessionError as error:
            problems.append(str(error))
    if any(isinstance(one, Info) for one in found):
        return found, problems
    return [bag_info.info(path)], []


def _look_at(file: Path) -> Info | BagInfo:
    try:
        return info(file)
    except SessionError:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            raise
        return bag_info.info(file)


def info(path: Path | str) -> Info:
    """Return the summary of a session; SessionError if the file is not a session.

    A file that was not closed properly has no index; it is read as a whole.
    """
    with Session(path) as session:
        checked = session.topics is None  # then the counts need a read of all messages
        counts = session.counts
        start_ns, end_ns = session.times_ns or (None, 0)
        return Info(
            path=str(path),
            size_bytes=session.path.stat().st_size,
            start_ns=start_ns,
            zero=session.zero,
            zero_is_stored=session.zero_is_stored,
            duration_s=0.0 if start_ns is None else (end_ns - start_ns) / 1e9,
            counts=counts,
            metadata=session.metadata,
            closed_properly=session.closed_properly,
            being_recorded=session.being_written,
            damage=session.damage,
            passed_over=session.passed_over,
            checked=checked,
        )


def _date(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {item}" for k, item in value.items()) if isinstance(value, dict) else str(value)
    text = _HASH.sub(r"\1", text)
    return text if len(text) <= _LONG_VALUE else f"{text[:_LONG_VALUE]}..."
