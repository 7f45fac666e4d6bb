"""Import a video file with its sound tracks and subtitles as a session."""

import heapq
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

from av.container import InputContainer

from perception.devices import media
from perception.devices.wire import Numbering
from perception.errors import DeviceError, SessionError
from perception.io.progress import progress
from perception.io.text_file import read_text
from perception.session.convert import cut_off
from perception.session.convert.media_parts import Arrival, Part, Pictures, Sounds, Words
from perception.session.convert.selection import EVERYTHING, Selection
from perception.session.file.writer import SessionWriter, atomic_session
from perception.session.file.zero import Zero
from perception.units import SECOND_NS

_SOURCE: Final = "video#import"
_SUFFIXES: Final = (".srt", ".vtt", ".ass", ".ssa")
_KINDS: Final = {"video": "picture", "audio": "sound", "subtitle": "subtitles"}
_CUT_OFF_S: Final = 0.5
"""Tolerance between the stated length of a file and the length of its tracks."""
# These state their length in their header, Ogg in its last page; FFmpeg estimates the length of others.
_WITH_LENGTH: Final = (
    *("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "avi", "flv", "w64", "asf"),
    *("aiff", "au", "flac", "mxf", "ogg", "tta", "wv"),
)
_MP3_LENGTH: Final = re.compile(rb"(?:Xing|Info)\0\0\0")
"""Mark of the frame in which an MP3 file may state its length."""
_MP3_HEAD: Final = 1 << 20
"""Bytes searched for it: tags and a cover picture precede it."""


def read(
    source: Path | str,
    target: Path | str,
    subtitles: Path | str | None = None,
    selection: Selection = EVERYTHING,
) -> Iterator[str]:
    """Write a video to the session `target`; yield lines about the result and about what was left out.

    Frames go to `camera/video` as JPEG, sound to `microphone/video` at its own rate, subtitles to
    `text/subtitles`; further tracks to `camera/video-2` and so on. Stamps begin at the creation time
    in the file, else at its date.

    Args:
        source: a file that FFmpeg opens.
        target: file to write.
        subtitles: SRT, WebVTT or ASS; without it the file beside the video with its name, else the subtitles
            in the video.
        selection: streams and time to import, and their topics.

    Raises:
        DeviceError: `source` or `subtitles` cannot be opened or holds nothing.
        SessionError: `target` exists, or nothing is selected.
    """
    source = Path(source)
    media.check_file(source)
    beside = (
        Path(subtitles) if subtitles else next(filter(Path.is_file, map(source.with_suffix, _SUFFIXES)), None)
    )
    origin_ns, parts, notes = _opened(source, beside)
    wanted = _select(parts, selection)
    length_ns = round(media.length_s(str(source)) * SECOND_NS)
    span_ns = selection.span_ns(origin_ns, origin_ns + length_ns)
    with atomic_session(target) as writer, progress("importing") as advance:
        zero_ns = max(span_ns[0], origin_ns)  # labels made on the film are valid for the session
        writer.set_zero(Zero(zero_ns, zero_ns))
        counts = _write(writer, wanted, span_ns, advance)
        notes += [f"{part.topic}: {note}" for part in wanted for note in part.notes()]
        if not counts:
            raise SessionError(f"{source}: nothing to import: {'; '.join(notes) or 'no such time in it'}")
        if span_ns[1] >= origin_ns + length_ns and len(wanted) == len(parts):
            notes += _cut_off(source, wanted)
        about = {"from": str(source), "kind": "video", "subtitles": beside and str(beside), "notes": notes}
        writer.add_metadata("imported", about)
    yield from (f"{topic}: {number} messages" for topic, number in sorted(counts.items()))
    yield from notes


def _opened(source: Path, subtitles: Path | None) -> tuple[int, list[Part], list[str]]:
    """Return the creation time of a film, its parts, and lines on others; DeviceError without a part."""
    with media.open_container(str(source)) as container:
        origin_ns = _origin_ns(source, container.metadata)
        parts, notes = _parts(source, container, origin_ns, inside=subtitles is None)
    if subtitles is not None:
        words, encoding_notes = _subtitles(subtitles)
        parts.append(Words(str(subtitles), origin_ns, 0, words))
        notes += encoding_notes
    if not parts:
        raise DeviceError(f"{source}: nothing in it can be decoded: {'; '.join(notes) or 'it is empty'}")
    return origin_ns, parts, notes


def _write(
    writer: SessionWriter, parts: Sequence[Part], span_ns: tuple[int, int], advance: Callable[[], object]
) -> Counter[str]:
    """Write the messages of parts within a span in order of time; return their number by topic."""
    numbering = Numbering(_SOURCE)
    streams = [_guarded(part, span_ns) for part in parts]
    for due_ns, topic, header, payload in heapq.merge(*streams, key=lambda arrival: arrival[0]):
        writer.write(numbering.message(topic, header, payload, due_ns))
        advance()
    return numbering.counts


def _origin_ns(source: Path, metadata: dict[str, str]) -> int:
    """Return the creation time of a film, else the date of the file; some writers store the epoch."""
    try:
        created_ns = round(datetime.fromisoformat(metadata["creation_time"]).timestamp() * SECOND_NS)
    except (KeyError, ValueError, OverflowError):
        created_ns = 0
    return created_ns if created_ns > 0 else source.stat().st_mtime_ns


def _parts(
    source: Path, container: InputContainer, origin_ns: int, *, inside: bool
) -> tuple[list[Part], list[str]]:
    """Return the tracks of a film that can be decoded, and a line on each other one."""
    parts: list[tuple[int, Part]] = []
    notes = []
    for stream in container.streams:
        usable = media.streams_of(container, stream.type)
        number = usable.index(stream) if stream in usable else -1
        try:
            if stream.type not in _KINDS:
                raise DeviceError("data, not pictures, sound or text")
            if number < 0:
                known = stream.codec_context is not None
                raise DeviceError("a cover picture" if known else "no decoder for it")
            if stream.type == "video":
                parts.append((number, Pictures(str(source), origin_ns, number)))
            elif stream.type == "audio":
                parts.append((number, Sounds(str(source), origin_ns, number)))
            elif inside:
                parts.append((number, Words(str(source), origin_ns, number)))
            else:
                raise DeviceError("the subtitles beside the file are used instead")
        except DeviceError as error:
            notes.append(f"left out: {stream.type} track (stream {stream.index}): {error}")
    return [part for _, part in sorted(parts, key=lambda one: one[0])], notes


def _select(parts: Sequence[Part], selection: Selection) -> list[Part]:
    """Return the selected parts, with their topics set."""
    topics = selection.choose([(part.own, part.topic) for part in parts])
    wanted = []
    for part, topic in zip(parts, topics, strict=True):
        if topic is not None:
            part.topic = topic
            wanted.append(part)
    return wanted


def _guarded(part: Part, span_ns: tuple[int, int]) -> Iterator[Arrival]:
    """Yield the messages of a part within `span_ns`; a DeviceError ends this part only, and is noted."""
    try:
        for arrival in part.arrivals(span_ns[0]):
            if arrival[2].stamp_ns >= span_ns[1]:
                return
            if arrival[2].stamp_ns >= span_ns[0]:
                yield arrival
    except DeviceError as error:
        part.failure = str(error)


def _subtitles(path: Path) -> tuple[BinaryIO, list[str]]:
    """Return a subtitle file in UTF-8, and a line if its encoding was guessed."""
    try:
        return io.BytesIO(read_text(path).encode()), []
    except UnicodeDecodeError:
        text = path.read_text(encoding="cp1252", errors="replace")
        return io.BytesIO(text.encode()), [f"{path}: not UTF-8, read as Windows-1252"]
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read: {error.strerror}") from error


def _cut_off(source: Path, parts: Sequence[Part]) -> list[str]:
    """Return a line if the file is truncated."""
    with media.open_container(str(source)) as container, source.open("rb") as file:
        name = container.format.name
        if missing := cut_off.missing(source, name):
            return [f"{source}: {missing}: is it cut off?"]
        known = name in _WITH_LENGTH or (name == "mp3" and _MP3_LENGTH.search(file.read(_MP3_HEAD)))
        # Some formats count from time 0, others from the first stamp of the file.
        stated_s = ((container.duration or 0) - max(container.start_time or 0, 0)) / 1e6 if known else 0.0
    held_s = max(part.end_s for part in parts)
    if stated_s - held_s <= _CUT_OFF_S:
        return []
    return [f"{source}: ends at {held_s:.2f} s of {stated_s:.2f} s: is it cut off?"]
