"""From sources to examples: windows cut by the fusion core, features by the engine's encoders.

A source is a recorded session or an ordinary media file. Its windows are those a live fusion cuts, its
features the very bytes a live head is given, its labels come from the source itself or a file beside it.

One rule decides which labelled windows count, in training and in every score: those in which something is
present. A head answers the prior to the others, whatever it has learned: before the first picture, while the
first sound fills its window, in the silence before a film's sound, after the end of a short clip. They are
counted and logged, and a head with a memory still sees them as what came before.
"""

import itertools
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from perception.errors import SessionError
from perception.fusion.build import build_engine, pick_device, use_threads
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.fusion.window import Window
from perception.io.progress import Advance, nothing
from perception.messages import Header, Message
from perception.models.device import model_name
from perception.models.feature_cache import Cache, file_hash, key
from perception.profile import FusionConfig, HeadConfig
from perception.session import labels as label_files
from perception.session.file.reader import Session, read
from perception.session.labels import Span
from perception.session.recompute.cutting import Cut, account, cut_as_arrived
from perception.session.recompute.engines import cuts, survey_of
from perception.session.recompute.source import Recording
from perception.training.examples import Examples
from perception.training.finetune import Prepared
from perception.training.rows import Rows
from perception.training.workers import Step, spread
from perception.units import Counts

_UNDECISIVE: Final = {"head", "device", "threads", "endpoint", "name"}
_NAMED: Final = 5
_LOG: Final = logging.getLogger(__name__)


class DataSource(Protocol):
    """What examples are made of. Picklable, since sources are encoded in several processes."""

    @property
    def name(self) -> str:
        """For people, and for the split."""

    def fingerprint(self) -> str:
        """Return a hash of everything that decides its messages."""

    def origin(self) -> str:
        """Return what sources that must not be split apart have in common."""

    def messages(self) -> Iterable[Message[Header]]:
        """Yield its messages in order of arrival."""

    def recording(self) -> Path | Iterable[Message[Header]]:
        """Return what its windows are cut from: a session file, or messages; an iterator has no journals."""

    def spans(self) -> list[Span]:
        """Return its labels in event time."""


@dataclass(frozen=True, slots=True)
class SessionSource:
    """A recorded session; labels from a file beside it, else from the labels recorded in it.

    What was said in it are labels too, on the track `commands`.
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
        """Return which recording it is or is a part of."""
        with Session(self.path) as session:
            return session.origin

    def messages(self) -> Iterator[Message[Header]]:
        """Yield what was recorded."""
        return read(self.path)

    def recording(self) -> Path:
        """Return the file: what a live fusion took in is known from its journals."""
        return self.path

    def spans(self) -> list[Span]:
        """Return the labels; times in a file count from the session's zero."""
        return label_files.of_session(self.path)


def encode(
    source: DataSource,
    config: FusionConfig,
    prepared: Sequence[str] = (),
    on_window: Step = lambda: None,
    counts: Counts | None = None,
) -> dict[str, torch.Tensor]:
    """Return every window of a source: `feature.NAME` (N, dim), `present`, `ages_s`, `ends_ns`.

    Of the encoders named in `prepared`, it is what their networks take, (N, ...). Absent branches stand as
    zeros. Windows that a live fusion shed are left out, as it never saw them; so are those which the
    recording does not hold everything for. What did not enter them is added to `counts`.
    """
    engine = fresh_engine(config, prepared)
    rows = []
    for window in windows(source, config, counts):
        rows.append(_row(engine, window))
        on_window()
    stacked = {
        f"feature.{name}": _stacked([features.get(name) for _, features, _, _ in rows], encoder.dim)
        for name, encoder in engine.encoders.items()
    }
    count = len(engine.encoders)
    return stacked | {
        "present": torch.cat([torch.zeros(0, count, dtype=torch.bool), *(row[2].cpu() for row in rows)]),
        "ages_s": torch.cat([torch.zeros(0, count), *(row[3].cpu() for row in rows)]),
        "ends_ns": torch.tensor([row[0] for row in rows], dtype=torch.int64),
    }


def _stacked(rows: Sequence[torch.Tensor | None], dim: int) -> torch.Tensor:
    """Join rows (1, ...), zeros where there is none."""
    empty = torch.zeros_like(next((row for row in rows if row is not None), torch.zeros(1, dim)))
    return torch.cat([empty[:0], *(empty if row is None else row for row in rows)]).cpu()


def windows(source: DataSource, config: FusionConfig, counts: Counts | None = None) -> Iterator[Window]:
    """Cut a source: in the order a live fusion took it in where that is known, else as it arrived."""
    messages = source.recording()
    if isinstance(messages, Iterator):  # gone through once: a film is not held in memory
        for cut in cut_as_arrived(messages, config, counts):
            yield cut.window
        return
    with Recording(messages) as recording:
        for step in cuts(recording, config, survey_of(recording, config), counts):
            if isinstance(step, Cut) and step.whole:
                yield step.window


def _row(engine: Engine, window: Window) -> tuple[int, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    return window.end_ns, *engine.tensors(window, engine.encode(window))


def headless(config: FusionConfig) -> FusionConfig:
    """Return the fusion with any head at all: encoders do not depend on it.

    A number format that would be measured is float32 here: features must not depend on how busy a machine is.
    """
    head = HeadConfig(weights="random", classes=("a", "b"))
    dtype = "float32" if config.dtype == "auto" else config.dtype
    return config.model_copy(update={"head": head, "dtype": dtype})


@lru_cache(maxsize=1)
def _built(config_json: str) -> Engine:
    return build_engine(FusionConfig.model_validate_json(config_json), clock=lambda: 0)


def fresh_engine(
    config: FusionConfig, prepared: Sequence[str] = (), clock: Callable[[], int] = lambda: 0
) -> Engine:
    """Return an engine that has seen nothing, on encoders that this process builds only once."""
    use_threads(config.threads)  # as a fusion does: the last bits of a feature depend on it
    built = _built(headless(config).model_dump_json())
    encoders: dict[str, Any] = {
        name: Prepared(encoder) if name in prepared else encoder for name, encoder in built.encoders.items()
    }
    return Engine(built.config, encoders, built.head, device=built.device, clock=clock)


def encoders_hash(config: FusionConfig, prepared: Sequence[str] = ()) -> str:
    """Return the hash of the weights of the encoders, but for those that are only prepared for training."""
    return fresh_engine(config, prepared).encoders_hash


def _decisive(config: FusionConfig) -> dict[str, Any]:
    """All that decides features besides weights; another device has other last bits."""
    device = model_name(pick_device(config.device))
    return config.model_dump(mode="json", exclude=_UNDECISIVE) | {"device": device}


@dataclass(frozen=True, slots=True)
class _Uncached:
    """A source whose features are to be computed, and the key they will lie under."""

    key: str
    source: DataSource

    @property
    def name(self) -> str:
        return self.source.name


def _store(
    due: _Uncached, on_window: Step, *, config: FusionConfig, folder: Path, prepared: Sequence[str]
) -> int:
    """Put a source's features into the cache; return how many windows it has."""
    counts: Counts = defaultdict(Counter)
    tensors = encode(due.source, config, prepared, on_window, counts)
    Cache(folder).put(due.key, tensors, counts)
    return len(tensors["ends_ns"])


def cache_keys(
    sources: Sequence[DataSource], config: FusionConfig, prepared: Sequence[str] = ()
) -> list[str]:
    """Return the key that each source's features lie under."""
    encoders = encoders_hash(config, prepared)
    decisive = _decisive(config) | ({"prepared": sorted(prepared)} if prepared else {})
    return [key(source.fingerprint(), encoders, decisive) for source in sources]


def build(
    sources: Sequence[DataSource],
    config: FusionConfig,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    track: str = label_files.DEFAULT_TRACK,
    workers: int = 1,
    context: bool = False,
    prepared: Sequence[str] = (),
    least: int = 1,
    advance: Advance = nothing,
) -> Examples:
    """Return the labelled windows of all sources, encoding what is not yet in the cache.

    Args:
        sources: each stays together with its parts in every split; a copy of one counts once.
        config: windows and encoders; its head does not matter.
        folder: of the cache.
        classes: names in the order of the labels; without them all that occur, sorted. Windows of other
            classes are left out.
        track: of the labels.
        workers: processes that encode, see `workers.spread`; on a GPU it is always this one.
        context: whether to return the other windows too, for a head that looks at earlier ones.
        prepared: encoders that are to be trained, of which examples hold what their networks take.
        least: how many labelled sources, parts of one session as one, are needed.
        advance: called for each source that is done, and of windows on the way there.

    Raises:
        SessionError: there are no sources, too few are labelled, nothing of them enters a window, or no
            label covers any.
        PerceptionError: a worker was killed.
    """
    if not sources:
        raise SessionError("no sources to learn from; give sessions or folders of media")
    spans = [source.spans() for source in sources]
    chosen = tuple(classes) or tuple(sorted({s.name for each in spans for s in each if s.track == track}))
    if len(chosen) < 2:
        raise SessionError(f"labels of track '{track}' name {len(chosen)} classes; a head needs two or more")
    labelled = (
        source.origin()
        for source, each in zip(sources, spans, strict=True)
        if any(span.track == track and span.name in chosen for span in each)
    )
    if least > 1:
        _need(len(set(labelled)), least)
    keys = cache_keys(sources, config, prepared)
    by_key = dict(zip(keys, sources, strict=True))
    _fill(Cache(folder), by_key, config, workers, prepared, advance)
    _account_for(Cache(folder), by_key, config)
    cache = Cache(folder)
    parts = []
    seen: set[tuple[str, tuple[Span, ...]]] = set()
    for name, source, each in zip(keys, sources, spans, strict=True):
        if (name, tuple(each)) in seen:  # else it could be on both sides of a split
            _LOG.warning("%s: left out, a copy of a source before it", source.name)
            continue
        seen.add((name, tuple(each)))
        parts.append(_examples(cache, name, source, each, chosen, track, config))
    _say_parts(parts)
    parts = _without_empty(parts)
    examples = Examples.concatenate(parts if context else [part.rows(part.labelled) for part in parts])
    if not len(examples.labelled):
        raise SessionError("no window has both data and a label; do the labels belong to these sessions?")
    return examples


def _without_empty(parts: Sequence[Examples]) -> list[Examples]:
    """Take the label from windows with nothing present, and log how many."""
    empty = [~part.present.any(dim=1) & (part.labels >= 0) for part in parts]
    left_out, of = (sum(int(each.sum()) for each in many) for many in (empty, [p.labels >= 0 for p in parts]))
    if left_out:
        _LOG.warning("%d of %d labelled windows left out: nothing is present in them", left_out, of)
    return [
        replace(part, labels=part.labels.masked_fill(nothing, -1))
        for part, nothing in zip(parts, empty, strict=True)
    ]


def _say_parts(parts: Sequence[Examples]) -> None:
    """Log which sources are of one recording."""
    together: defaultdict[str, list[str]] = defaultdict(list)
    for part in parts:
        together[part.origins[0]] += part.names
    for names in together.values():
        if len(names) > 1:
            _LOG.warning("%s: of one recording, kept in one part of every split", _some(names))


def _fill(
    cache: Cache,
    sources: Mapping[str, DataSource],
    config: FusionConfig,
    workers: int,
    prepared: Sequence[str],
    advance: Advance,
) -> None:
    """Encode what is not in the cache yet."""
    due = [_Uncached(key, source) for key, source in sources.items() if key not in cache]
    advance(len(sources) - len(due))
    windows = itertools.count(1)

    def on_window() -> None:
        advance(0, f"{next(windows)} windows")

    spread(
        partial(_store, config=config, folder=cache.folder, prepared=prepared),
        due,
        workers if pick_device(config.device).type == "cpu" else 1,  # one GPU is one worker's
        on_step=on_window,
        on_done=lambda one: advance(),
        name=lambda one: one.name,
    )


def _account_for(cache: Cache, sources: Mapping[str, DataSource], config: FusionConfig) -> None:
    """Log what did not enter the windows; SessionError if nothing at all did."""
    total: Counts = defaultdict(Counter)
    for name in sources:
        for topic, reasons in cache.counts(name).items():
            total[topic] += reasons
    lines = account(total)
    empty = [source.name for name, source in sources.items() if not _holds_anything(cache, name)]
    if len(empty) == len(sources):
        topics = ", ".join(item.topic for item in config.inputs.values())
        why = "; ".join(account(total, unread=True)) or "it is too short, or has other topics"
        raise SessionError(f"{_some(empty)}: nothing of {topics} enters a window: {why}")
    if empty:
        _LOG.warning("%s: nothing enters a window", _some(empty))
    for line in lines:
        _LOG.warning("%d sources: %s", len(sources), line)


def _holds_anything(cache: Cache, name: str) -> bool:
    tensors = cache.get(name)
    return tensors is None or bool(tensors["present"].any())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _examples(
    cache: Cache,
    name: str,
    source: DataSource,
    spans: Sequence[Span],
    classes: Sequence[str],
    track: str,
    config: FusionConfig,
) -> Examples:
    tensors = cache.get(name)
    if tensors is None:
        raise SessionError(
            f"{cache.folder}: features of {source.name} are damaged; remove {name}.safetensors"
        )
    index = torch.from_numpy(label_files.indices_at(spans, tensors["ends_ns"].numpy(), classes, track))
    features: dict[str, Any] = {
        entry.removeprefix("feature."): Rows([values.numpy()])
        for entry, values in tensors.items()
        if entry.startswith("feature.")
    }
    return Examples(
        dict(sorted(features.items())),
        tensors["present"],
        tensors["ages_s"],
        index,
        torch.zeros(len(index), dtype=torch.int64),
        tensors["ends_ns"],
        tuple(classes),
        (source.name,),
        FusionCore(config).hop_ns,
        origins=(source.origin(),),
    )


def holdout(data: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Split off about `share` of the sources; no source is on both sides, nor are parts of one session.

    Raises:
        SessionError: there is only one source, or all are parts of one session.
    """
    from sklearn.model_selection import GroupShuffleSplit  # half of what this module takes to import

    _needs_sources(data, 2)
    count = len(set(data.groups.tolist()))
    taken = min(math.ceil(share * count), count - 1)
    splitter = GroupShuffleSplit(1, test_size=taken, random_state=seed)
    first, second = next(splitter.split(np.zeros(len(data)), groups=data.groups.numpy()))
    return data.rows(torch.from_numpy(first)), data.rows(torch.from_numpy(second))


def folds(data: Examples, count: int, seed: int) -> Iterator[tuple[Examples, Examples]]:
    """Yield `count` pairs of rest and fold; every source is in exactly one fold."""
    from sklearn.model_selection import GroupKFold

    _needs_sources(data, count)
    splitter = GroupKFold(count, shuffle=True, random_state=seed)
    for rest, fold in splitter.split(np.zeros(len(data)), groups=data.groups.numpy()):
        yield data.rows(torch.from_numpy(rest)), data.rows(torch.from_numpy(fold))


def _needs_sources(data: Examples, count: int) -> None:
    _need(len(set(data.groups.tolist())), count)


def _need(found: int, count: int) -> None:
    if found < count:
        raise SessionError(
            f"{found} labelled sessions cannot be split into {count} parts; record more, "
            "windows of one session are too alike to test on"
        )
