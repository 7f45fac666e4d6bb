"""From sources to examples: features from the cache or the encoders, labels from the sources.

One rule decides which labelled windows count, in training and in every score: those in which something is
present. In the others a head can only return the prior: before the first picture, while the first sound fills
its window, in the silence before a film's sound, after the end of a short clip. They are counted, logged and
reported. A head with a memory still receives them as earlier windows.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from perception.errors import SessionError
from perception.fusion.core import FusionCore
from perception.io.progress import Advance, nothing
from perception.models.feature_cache import Cache
from perception.profile import FusionConfig
from perception.session import labels as label_files
from perception.session.labels import Span
from perception.session.recompute.cutting import account
from perception.training.encoding import cache_keys, fill
from perception.training.examples import Examples
from perception.training.rows import Rows
from perception.training.sources import DataSource
from perception.training.splits import need
from perception.units import Counts

_NAMED: Final = 5
_LOG: Final = logging.getLogger(__name__)


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
    """Return the labelled windows of all sources; encode those that are not in the cache.

    Args:
        sources: a source and its parts are on one side of every split; copies of a file count once.
        config: windows and encoders; its head is not used.
        folder: of the cache.
        classes: names in the order of the labels; by default all that occur, sorted. Windows of other
            classes are left out.
        track: of the labels.
        workers: processes that encode, see `workers.spread`; a GPU is used by this process only.
        context: return unlabelled windows too, for a head with a memory.
        prepared: encoders that will be trained: examples hold the inputs of their networks.
        least: how many labelled sources are needed; parts of one session count as one.
        advance: called for each source that is done, and for windows before that.

    Raises:
        SessionError: there are no sources, too few are labelled, nothing of them enters a window, or no
            label covers a window.
        PerceptionError: a worker was killed.
    """
    if not sources:
        raise SessionError("no sources to train on; give sessions or folders of media")
    spans = [source.spans() for source in sources]
    chosen = _classes(spans, classes, track)
    labelled = (
        source.origin()
        for source, each in zip(sources, spans, strict=True)
        if any(span.track == track and span.name in chosen for span in each)
    )
    if least > 1:
        need(len(set(labelled)), least)
    keys = cache_keys(sources, config, prepared)
    by_key = dict(zip(keys, sources, strict=True))
    fill(Cache(folder), by_key, config, workers, prepared, advance)
    _account_for(Cache(folder), by_key, config)
    parts = [
        _examples(Cache(folder), name, source, each, chosen, track, config)
        for name, source, each in _without_copies(keys, sources, spans)
    ]
    _log_parts(parts)
    parts = _without_empty(parts)
    examples = Examples.concatenate(parts if context else [part.rows(part.labelled) for part in parts])
    if not len(examples.labelled):
        raise SessionError("no window has both data and a label; do the labels belong to these sessions?")
    return examples


def _classes(spans: Sequence[Sequence[Span]], given: Sequence[str], track: str) -> tuple[str, ...]:
    """Return the classes to learn: those given, else all of a track; SessionError if there are too few."""
    found = tuple(given) or tuple(sorted({s.name for each in spans for s in each if s.track == track}))
    if len(found) < 2:
        raise SessionError(f"labels of track '{track}' name {len(found)} classes; a head needs two or more")
    return found


def _without_copies(
    keys: Sequence[str], sources: Sequence[DataSource], spans: Sequence[list[Span]]
) -> Iterator[tuple[str, DataSource, list[Span]]]:
    """Yield sources with key and labels; one that equals another could be on both sides of a split."""
    loaded: set[tuple[str, tuple[Span, ...]]] = set()
    for key, source, each in zip(keys, sources, spans, strict=True):
        if (key, tuple(each)) in loaded:
            _LOG.warning("%s: left out, a copy of a source before it", source.name)
            continue
        loaded.add((key, tuple(each)))
        yield key, source, each


def _without_empty(parts: Sequence[Examples]) -> list[Examples]:
    """Remove the label from windows in which nothing is present; count and log them."""
    kept = [part.without_empty() for part in parts]
    empty = [len(part.labelled) - len(left.labelled) for part, left in zip(parts, kept, strict=True)]
    if any(empty):
        total = sum(len(part.labelled) for part in parts)
        _LOG.warning("%d of %d labelled windows left out: nothing is present in them", sum(empty), total)
    return [replace(left, empty=(count,)) for left, count in zip(kept, empty, strict=True)]


def _log_parts(parts: Sequence[Examples]) -> None:
    """Log which sources are parts of one recording."""
    together: defaultdict[str, list[str]] = defaultdict(list)
    for part in parts:
        together[part.origins[0]] += part.names
    for names in together.values():
        if len(names) > 1:
            _LOG.warning("%s: of one recording, kept in one part of every split", _some(names))


def _account_for(cache: Cache, sources: Mapping[str, DataSource], config: FusionConfig) -> None:
    """Log what did not enter the windows; SessionError if nothing did."""
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
        suspect=tensors["suspect"],
    )
