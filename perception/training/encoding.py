"""From sources to features: windows cut by the fusion core, features by the engine's encoders.

The windows are those that a live fusion cuts; the features are the bytes that a live head receives.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import torch

from perception.fusion.build import build_engine, pick_device, use_threads
from perception.fusion.engine import Engine
from perception.fusion.window import Window
from perception.io.progress import Advance
from perception.models.device import model_name
from perception.models.feature_cache import Cache, key
from perception.profile import FusionConfig, HeadConfig
from perception.session.recompute.cutting import Cut, cut_as_arrived
from perception.session.recompute.engines import cuts, survey_of
from perception.session.recompute.source import Recording
from perception.training.finetune import Prepared
from perception.training.sources import DataSource
from perception.training.workers import Step, spread
from perception.units import Counts

_UNDECISIVE: Final = {"head", "device", "threads", "endpoint", "name"}


def encode(
    source: DataSource,
    config: FusionConfig,
    prepared: Sequence[str] = (),
    on_window: Step = lambda: None,
    counts: Counts | None = None,
) -> dict[str, torch.Tensor]:
    """Return tensors of the windows of a source: `feature.NAME` (N, dim), `present`, `ages_s`, `suspect`,
    `ends_ns`.

    For encoders in `prepared`, features are the inputs of their networks, (N, ...). Absent branches are zero.
    Windows that a live fusion shed are left out, because it did not compute them. So are windows with
    messages that the recording does not hold. Messages that did not enter a window are added to `counts`.
    """
    engine = fresh_engine(config, prepared)
    rows = []
    for window in windows(source, config, counts):
        rows.append(_row(engine, window))
        on_window()
    stacked = {
        f"feature.{name}": _stacked([features.get(name) for _, features, *_ in rows], encoder.dim)
        for name, encoder in engine.encoders.items()
    }
    count = len(engine.encoders)
    return stacked | {
        "present": torch.cat([torch.zeros(0, count, dtype=torch.bool), *(row[2].cpu() for row in rows)]),
        "ages_s": torch.cat([torch.zeros(0, count), *(row[3].cpu() for row in rows)]),
        "suspect": torch.cat([torch.zeros(0, count, dtype=torch.bool), *(row[4].cpu() for row in rows)]),
        "ends_ns": torch.tensor([row[0] for row in rows], dtype=torch.int64),
    }


def _stacked(rows: Sequence[torch.Tensor | None], dim: int) -> torch.Tensor:
    """Join rows (1, ...), zeros where there is none."""
    empty = torch.zeros_like(next((row for row in rows if row is not None), torch.zeros(1, dim)))
    return torch.cat([empty[:0], *(empty if row is None else row for row in rows)]).cpu()


def windows(source: DataSource, config: FusionConfig, counts: Counts | None = None) -> Iterator[Window]:
    """Yield the windows of a source: in the order of the journals of a live fusion, else of arrival."""
    messages = source.recording()
    if isinstance(messages, Iterator):  # read once: a film is not held in memory
        for cut in cut_as_arrived(messages, config, counts):
            yield cut.window
        return
    with Recording(messages) as recording:
        for step in cuts(recording, config, survey_of(recording, config), counts):
            if isinstance(step, Cut) and step.whole:
                yield step.window


def _row(
    engine: Engine, window: Window
) -> tuple[int, dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    return window.end_ns, *engine.tensors(window, engine.encode(window))


def headless(config: FusionConfig) -> FusionConfig:
    """Return the fusion with an arbitrary head: encoders do not depend on it.

    `dtype = "auto"`, which a live fusion chooses by measuring, is float32: features must not depend on load.
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
    """Return an engine without state, on encoders that this process builds only once."""
    use_threads(config.threads)  # as in a fusion: the last bits of a feature depend on it
    built = _built(headless(config).model_dump_json())
    encoders: dict[str, Any] = {
        name: Prepared(encoder) if name in prepared else encoder for name, encoder in built.encoders.items()
    }
    return Engine(built.config, encoders, built.head, device=built.device, clock=clock)


def encoders_hash(config: FusionConfig, prepared: Sequence[str] = ()) -> str:
    """Return the hash of the weights of the encoders, except those that are prepared for training."""
    return fresh_engine(config, prepared).encoders_hash


def _decisive(config: FusionConfig) -> dict[str, Any]:
    """Return all that decides features besides weights; on another device the last bits differ."""
    device = model_name(pick_device(config.device))
    return config.model_dump(mode="json", exclude=_UNDECISIVE) | {"device": device}


@dataclass(frozen=True, slots=True)
class _Uncached:
    """A source whose features are not in the cache, and their key."""

    key: str
    source: DataSource

    @property
    def name(self) -> str:
        return self.source.name


def _store(
    due: _Uncached, on_window: Step, *, config: FusionConfig, folder: Path, prepared: Sequence[str]
) -> int:
    """Put the features of a source into the cache; return how many windows it has."""
    counts: Counts = defaultdict(Counter)
    tensors = encode(due.source, config, prepared, on_window, counts)
    Cache(folder).put(due.key, tensors, counts)
    return len(tensors["ends_ns"])


def cache_keys(
    sources: Sequence[DataSource], config: FusionConfig, prepared: Sequence[str] = ()
) -> list[str]:
    """Return the key of the features of each source."""
    encoders = encoders_hash(config, prepared)
    decisive = _decisive(config) | ({"prepared": sorted(prepared)} if prepared else {})
    return [key(source.fingerprint(), encoders, decisive) for source in sources]


def fill(
    cache: Cache,
    sources: Mapping[str, DataSource],
    config: FusionConfig,
    workers: int,
    prepared: Sequence[str],
    advance: Advance,
) -> None:
    """Encode the sources that are not in the cache."""
    due = [_Uncached(key, source) for key, source in sources.items() if key not in cache]
    advance(len(sources) - len(due))
    windows = itertools.count(1)

    def on_window() -> None:
        advance(0, f"{next(windows)} windows")

    spread(
        partial(_store, config=config, folder=cache.folder, prepared=prepared),
        due,
        workers if pick_device(config.device).type == "cpu" else 1,  # only one worker uses the GPU
        on_step=on_window,
        on_done=lambda one: advance(),
        name=lambda one: one.name,
    )
