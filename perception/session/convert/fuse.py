"""Compute the states of a film, a bag or a session by the fusion of a profile, into a new session."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from perception.errors import SessionError
from perception.io.beside import refuse_existing
from perception.io.progress import progress
from perception.messages import Message
from perception.profile import FusionConfig, Profile
from perception.session.convert.bags import SUFFIXES
from perception.session.file import container
from perception.session.file.reader import Session
from perception.session.file.writer import SessionWriter, atomic_session
from perception.session.recompute.arrivals import STREAM_KINDS
from perception.session.recompute.cutting import account
from perception.session.recompute.engines import states, survey_of
from perception.session.recompute.source import Recording
from perception.session.recorder import describe, model_note
from perception.topics import kind_of
from perception.units import Counts

_SOURCE: Final = "fuse#0"


def fuse(
    source: Path | str, target: Path | str, profile: Profile | None = None, *, trust: bool = True
) -> Iterator[str]:
    """Write the states that the fusion infers from `source` to the session `target`; yield lines about them.

    The states are those of `replay`; a source that is not a session is imported first, as by `session
    import`. An input whose topic the source lacks reads the next stream of its modality instead.

    Args:
        source: a session, a media file, or what ROS or Foxglove recorded.
        target: file to write; at the end it is complete or does not exist.
        profile: of the fusion; without it the profile that the session was recorded with.
        trust: whether to open files and models that the session names; False: only what ships.

    Raises:
        SessionError: `source` cannot be read, stores no profile, or no state is inferred; `target` exists or
            cannot be written.
        DeviceError: a media file cannot be decoded.
        ProfileError, WeightsError: see `replay`.
    """
    source, target = Path(source), Path(target)
    refuse_existing(target)
    with _as_session(source, target) as (path, notes):
        yield from notes
        with Recording(path, trust=trust) as recording, Session(path) as session:
            known = profile or recording.profile
            config = known.required_fusion()
            if not survey_of(recording, config).runs:
                topics = [name for name, count in session.counts.items() if count]
                config, lines = mapped(config, topics)
                if not _is_read(config, topics):
                    raise SessionError(f"{source}: no input reads any of its streams: {'; '.join(lines)}")
                yield from lines
            known = known.model_copy(update={"fusion": config})
            with atomic_session(target) as writer:
                lines = _write(writer, source, recording, session, known, swapped=profile is None)
            yield from lines


def mapped(config: FusionConfig, topics: Sequence[str]) -> tuple[FusionConfig, list[str]]:
    """Assign to each input whose topic is missing the next free stream of its modality.

    Args:
        config: of a profile with other topic names.
        topics: of the source.

    Returns:
        The new configuration, and a line on every input that reads another topic or none, and on every stream
        that no input reads.
    """
    lines = []
    inputs = dict(config.inputs)
    streams = [topic for topic in topics if kind_of(topic) in STREAM_KINDS]
    free = [topic for topic in streams if not _is_read(config, [topic])]
    for name, one in inputs.items():
        kind = kind_of(one.topic)
        if any(fnmatchcase(topic, one.topic) for topic in streams):
            continue
        instead = next((topic for topic in free if kind_of(topic) == kind), None)
        if instead is None:
            lines.append(f"{name}: absent, the source has no further {kind}")
        else:
            free.remove(instead)
            inputs[name] = one.model_copy(update={"topic": instead})
            lines.append(f"{name}: reads {instead}")
    lines += [f"{topic}: read by no input" for topic in free]
    return config.model_copy(update={"inputs": inputs}), lines


def _is_read(config: FusionConfig, topics: Iterable[str]) -> bool:
    """Return whether an input reads one of the topics."""
    return any(fnmatchcase(topic, one.topic) for one in config.inputs.values() for topic in topics)


@contextmanager
def _as_session(source: Path, target: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield `source` as a session, imported if needed, and the lines of the import; remove it at the end."""
    if _is_session(source):
        yield source, []
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix=".perception-", dir=target.parent)
    except OSError as error:
        raise SessionError(f"cannot write {target}: {error.strerror}") from error
    with folder as name:
        path = Path(name) / "imported.mcap"
        try:
            notes = list(_import(source, path))
        except SessionError as error:
            raise SessionError(str(error).replace(str(path), str(target))) from error
        yield path, notes


def _import(source: Path, path: Path) -> Iterator[str]:
    if source.is_dir() or source.suffix.lower() in SUFFIXES:
        from perception.session.convert import import_bag

        return import_bag.read(source, path)
    from perception.session.convert import import_media

    return import_media.read(source, path)


def _is_session(source: Path) -> bool:
    try:
        with source.open("rb") as file:
            if file.read(len(container.MAGIC)) != container.MAGIC:
                return False
        with Session(source):
            return True
    except (OSError, SessionError):
        return False


def _write(
    writer: SessionWriter,
    source: Path,
    recording: Recording,
    session: Session,
    profile: Profile,
    *,
    swapped: bool,
) -> list[str]:
    """Write the states and their metadata; return lines about them."""
    config = profile.required_fusion()
    counts: Counts = defaultdict(Counter)
    notes: dict[str, Any] = {name: value for name, value in describe(profile, 0).items() if name != "clock"}
    presences: dict[str, Counter[str]] = {name: Counter() for name in config.inputs}
    labels: Counter[str] = Counter()
    topic = f"state/{config.name}"
    writer.set_zero(session.zero)
    start_ns, end_ns = session.times_ns or (0, 0)
    with progress("fusing", round((end_ns - start_ns) / (config.hop_ms * 1e6)) or None) as advance:
        for state in states(recording, config, counts, swapped=swapped):
            header = structs.replace(state, source=_SOURCE, sent_ns=state.stamp_ns)
            writer.write(Message(topic, header, b"", state.stamp_ns))
            notes |= dict([model_note(state, notes)])
            labels[state.fused.label] += 1
            for name, item in state.modalities.items():
                presences[name][item.presence] += 1
            advance()
    lost = account(counts)
    fused = {"from": str(source), "inputs": {name: one.topic for name, one in config.inputs.items()}}
    for name, value in (notes | {"fused": fused | {"notes": lost + recording.damage}}).items():
        writer.add_metadata(name, value)
    return [
        f"{topic}: {labels.total()} states: {_listed(labels)}",
        *(f"{name} ({config.inputs[name].topic}): {_listed(found)}" for name, found in presences.items()),
        *lost,
        *(f"damage: {text}" for text in recording.damage),
    ]


def _listed(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'no class'} {count}" for name, count in Counter(counted).most_common())
