"""Labels over time: from label messages, Audacity tracks, tables of spans, and names of files.

Times in files are seconds from the beginning of a recording, as annotation programs write them; spans of a
session are event time in nanoseconds. `Span.at` converts between them.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.errors import SessionError
from perception.io.text_file import read_text
from perception.messages import Label, TextCommand
from perception.session.file.reader import Session
from perception.units import SECOND_NS

Times = npt.NDArray[np.int64]
_BESIDE: Final = (".labels.txt", ".labels.csv", ".labels.tsv")
"""Suffixes of the label file of a media file."""
_BESIDE_SESSION: Final = (*_BESIDE, ".txt", ".csv", ".tsv")
DEFAULT_TRACK: Final = "truth"
COMMAND_TRACK: Final = "commands"
"""Track of text commands as labels: the text is the class until the next command."""
_START: Final = ("begin time - ss.msec", "begin time", "start_s", "start", "begin")
_END: Final = ("end time - ss.msec", "end time", "end_s", "end", "stop")
_NAME: Final = ("annotation", "name", "label", "class", "text", "value")
_TRACK: Final = ("tier", "track")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One class over `[start_ns, end_ns)`."""

    start_ns: int
    end_ns: int
    name: str
    track: str = DEFAULT_TRACK

    def at(self, origin_ns: int) -> "Span":
        """Return the span moved to a recording that begins at `origin_ns`."""
        return replace(self, start_ns=self.start_ns + origin_ns, end_ns=self.end_ns + origin_ns)


def of_session(path: Path) -> list[Span]:
    """Return the labels of a session: of the file beside it, else those recorded in it.

    Times in the file count from the zero of the session. Text commands are added on the track `commands`.
    """
    with Session(path) as session:
        zero_ns, times_ns = session.zero.stamp_ns, session.times_ns
        headers = [message.header for message in session.messages(["label/*", "text/*"])]
    end_ns = 0 if times_ns is None else times_ns[1]
    commands = from_commands((header for header in headers if isinstance(header, TextCommand)), end_ns)
    if (file := file_beside(path, _BESIDE_SESSION)) is None:
        return from_messages(header for header in headers if isinstance(header, Label)) + commands
    return [span.at(zero_ns) for span in read(file)] + commands


def file_beside(path: Path, suffixes: Sequence[str] = _BESIDE) -> Path | None:
    """Return the label file beside a media file or session, None if there is none."""
    return next((file for suffix in suffixes if (file := path.with_suffix(suffix)).exists()), None)


def from_messages(labels: Iterable[Label]) -> list[Span]:
    """Return the spans of label messages; of two with equal start and track the later one counts."""
    latest = {
        (label.start_ns, label.track): Span(label.start_ns, label.end_ns, label.name, label.track)
        for label in labels
    }
    return sorted(span for span in latest.values() if span.end_ns > span.start_ns)


def from_marks(marks: Sequence[tuple[int, str]], end_ns: int, track: str = DEFAULT_TRACK) -> list[Span]:
    """Return a span per mark, from the mark to the next one, the last to `end_ns`.

    Args:
        marks: (time in ns, class), in any order; an empty class ends the previous one.
        end_ns: end of the recording.
        track: of all spans.
    """
    ordered = [*sorted(marks), (end_ns, "")]
    return [
        Span(start_ns, stop_ns, name, track)
        for (start_ns, name), (stop_ns, _) in pairwise(ordered)
        if name and stop_ns > start_ns
    ]


def from_commands(commands: Iterable[TextCommand], end_ns: int) -> list[Span]:
    """Return each finished command as a span that lasts until the next one, on the track `commands`."""
    marks = [(command.stamp_ns, command.text.strip()) for command in commands if command.final]
    return from_marks(marks, end_ns, COMMAND_TRACK)


def read(file: Path) -> list[Span]:
    """Read a label file: an Audacity label track (.txt), or spans as .csv or .tsv, ELAN's export included.

    Lines of Audacity are `start<TAB>end<TAB>name`. The header of a table names start, end and class, and
    optionally a tier or track; a tab-delimited export of ELAN without a header has its default columns.

    Raises:
        SessionError: the file cannot be read, or a line is not a span; it names file and line.
    """
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError(f"{file}: cannot be read: {error}") from error
    numbered = enumerate(text.splitlines(), 1)
    kept = {number: line for number, line in numbered if line.strip() and not line.startswith("\\")}
    if not kept:
        return []
    numbers, lines = list(kept), list(kept.values())
    delimiter = "\t" if "\t" in lines[0] else ";" if ";" in lines[0] else ","
    rows = list(csv.reader(lines, delimiter=delimiter))
    columns = _columns(rows[0])
    if columns is not None:
        numbers, rows = numbers[1:], rows[1:]
    else:
        columns = _guess(file, rows[0])
    # with a quoted line break there are fewer rows than lines
    return sorted(_span(file, number, row, columns) for number, row in zip(numbers, rows, strict=False))


_Columns = tuple[int, int, int, int | None]


def _columns(header: Sequence[str]) -> _Columns | None:
    names = [name.strip().lower() for name in header]

    def find(wanted: Sequence[str]) -> int | None:
        return next((names.index(name) for name in wanted if name in names), None)

    start, end, name = find(_START), find(_END), find(_NAME)
    if start is None or end is None or name is None:
        return None
    return start, end, name, find(_TRACK)


def _guess(file: Path, row: Sequence[str]) -> _Columns:
    numeric = [_is_time(cell) for cell in row]
    if len(row) >= 2 and numeric[:2] == [True, True]:
        return 0, 1, 2, None
    # ELAN: tier, (participant,) begin, end, (duration,) value
    times = [index for index, is_time in enumerate(numeric) if is_time]
    if len(times) >= 2 and times[0] > 0 and len(row) > times[-1] + 1:
        # exported in several time formats, all forms of the start precede those of the end
        begin = seconds(row[times[0]])
        end = next((index for index in times if seconds(row[index]) != begin), times[1])
        return times[0], end, len(row) - 1, 0
    raise SessionError(
        f"{file}, line 1: expected 'start<TAB>end<TAB>class', or a header naming start, end and class"
    )


def _is_time(text: str) -> bool:
    try:
        seconds(text)
    except ValueError:
        return False
    return True


def seconds(text: str) -> float:
    """Return the seconds of `12.5`, `12,5` or `00:00:12.5`; ValueError for other text."""
    parts = text.strip().replace(",", ".").split(":")
    if len(parts) > 3:
        raise ValueError(text)
    total = 0.0
    for part in parts:
        total = total * 60 + float(part)
    if not 0 <= total < 1e10:
        raise ValueError(text)
    return total


def _span(file: Path, number: int, row: Sequence[str], columns: _Columns) -> Span:
    start, end, name, track = columns
    try:
        start_s, end_s = seconds(row[start]), seconds(row[end])
        label = row[name].strip() if name < len(row) else ""
    except (ValueError, IndexError) as error:
        raise SessionError(
            f"{file}, line {number}: not a span: {' | '.join(row)[:60]!r}; expected start, end and class"
        ) from error
    if end_s < start_s or not label:
        problem = "has no class" if not label else "ends before it starts"
        raise SessionError(f"{file}, line {number}: a span {problem}: {' | '.join(row)[:60]!r}")
    tier = row[track].strip() if track is not None and track < len(row) else ""
    return Span(round(start_s * SECOND_NS), round(end_s * SECOND_NS), label, tier or DEFAULT_TRACK)


def class_of_path(path: Path, root: Path) -> str:
    """Return the class of a media file: its folder under `root`, else the first part of its name.

    `root/Dog_bark/1.ogg` is `Dog_bark`; `root/7_theo_3.wav` is `7`.
    """
    inside = path.relative_to(root)
    return inside.parts[0] if len(inside.parts) > 1 else path.stem.replace("-", "_").split("_")[0]


@dataclass(frozen=True, slots=True)
class Findings:
    """Durations, counts and problems of a set of spans."""

    seconds: dict[str, dict[str, float]]
    """By track and class."""
    counts: dict[str, dict[str, int]]
    problems: list[str]


def check(spans: Iterable[Span], imbalance: float = 10.0) -> Findings:
    """Sum up spans by track and class; report overlaps, empty spans and rare classes."""
    seconds_of: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_track: defaultdict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans):
        seconds_of[span.track][span.name] += (span.end_ns - span.start_ns) / SECOND_NS
        counts[span.track][span.name] += 1
        by_track[span.track].append(span)
    problems = [text for track in by_track.values() for text in _overlaps(track)]
    for track, by_class in seconds_of.items():
        longest = max(by_class, key=lambda name: by_class[name])
        problems += [
            f"{track}: '{name}' has {total:.1f} s, '{longest}' {by_class[longest]:.1f} s: "
            "train with a remedy for imbalance"
            for name, total in by_class.items()
            if total * imbalance < by_class[longest]
        ]
    return Findings(
        {track: dict(by_class) for track, by_class in seconds_of.items()},
        {track: dict(by_class) for track, by_class in counts.items()},
        problems,
    )


def _overlaps(track: Sequence[Span]) -> list[str]:
    """Return the problems of the sorted spans of one track; each is compared with the longest before it."""
    problems = []
    longest: Span | None = None
    for span in track:
        if longest is not None and span.start_ns < longest.end_ns:
            problems.append(f"{_where(longest)} overlaps '{span.name}' at {span.start_ns / SECOND_NS:.2f} s")
        if span.end_ns <= span.start_ns:
            problems.append(f"{_where(span)} is empty")
        if longest is None or span.end_ns > longest.end_ns:
            longest = span
    return problems


def _where(span: Span) -> str:
    return f"{span.track}: '{span.name}' at {span.start_ns / SECOND_NS:.2f} s"


def indices_at(
    spans: Iterable[Span], times_ns: Times, classes: Sequence[str], track: str = DEFAULT_TRACK
) -> Times:
    """Return the index in `classes` of the span at each time (n,), -1 where there is none.

    Of overlapping spans the one with the latest start counts.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    found = np.full(len(times_ns), -1, np.int64)
    for span in sorted(spans):
        if span.track == track:
            found[(times_ns >= span.start_ns) & (times_ns < span.end_ns)] = numbers.get(span.name, -1)
    return found
