"""Time of the models of a tick: the encoders on windows of the data set, and the head."""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import torch

from perception.fusion.build import use_threads
from perception.profile import FusionConfig
from perception.training import encoding
from perception.training.examples import Examples
from perception.training.model import FusionModel
from perception.training.sources import DataSource

WINDOWS: Final = 50
_REPEATS: Final = 20


def of_tick(
    model: FusionModel, data: Examples, sources: Sequence[DataSource], config: FusionConfig
) -> dict[str, Any]:
    """Return parameters and wall time in ms of the models alone; nothing is received, cut or published.

    Args:
        model: the head, with the encoders that were trained with it.
        data: windows for the head.
        sources: their first windows are encoded; an encoder does not run where its input has not changed.
        config: the fusion; its number of threads is used.
    """
    threads = torch.get_num_threads()
    use_threads(config.threads)
    try:
        took = list(islice(_encoding_ms(sources, config), WINDOWS))
        head = head_ms(model, data)
    finally:
        use_threads(threads)
    ran = {name: [one[name] for one in took if one[name]] for name in sorted(config.encoders)}
    encoders = float(np.mean([math.fsum(one.values()) for one in took]))
    return {
        "head_parameters": sum(weight.numel() for weight in model.head.parameters()),
        "windows": len(took),
        "encoder_ms_when_it_runs": {name: float(np.median(ms)) for name, ms in ran.items() if ms},
        "encoders_ms_per_tick": encoders,
        "head_ms_per_tick": head,
        "models_ms_per_tick": encoders + head,
    }


def head_ms(model: FusionModel, data: Examples) -> float:
    """Return the median time of the head alone on one window."""
    row = data.context(torch.tensor([len(data) - 1]), model.head.ticks)
    took = []
    with torch.inference_mode():
        features = model.eval().encode(row.features, row.present)
        for _ in range(_REPEATS):
            began = time.perf_counter()
            model.head(features, row.present, row.ages_s, row.known, row.suspect)
            took.append((time.perf_counter() - began) * 1000)
    return float(np.median(took))


def _encoding_ms(sources: Sequence[DataSource], config: FusionConfig) -> Iterator[dict[str, float]]:
    for source in sources:
        engine = encoding.fresh_engine(config, clock=time.perf_counter_ns)
        engine.warm_up()
        for window in encoding.windows(source, config):
            yield dict(engine.encode(window).took_ms)
