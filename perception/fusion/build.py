"""Builds the engine of a profile: its device and threads, encoders in their number format, and head."""

import os
from collections.abc import Callable

import cv2
import torch

from perception.errors import ProfileError
from perception.fusion.engine import Engine
from perception.models import precision
from perception.models.checkpoint import build_head, with_own_encoders
from perception.models.device import exists
from perception.models.registry import RegisteredEncoder, build_encoder
from perception.profile import EncoderConfig, FusionConfig
from perception.topics import kind_of


def pick_device(name: str) -> torch.device:
    """Return the device, `auto` resolved; raise ProfileError if a CUDA device is requested and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not exists(name):
        found = torch.cuda.device_count() or "no"
        raise ProfileError(f"fusion.device: '{name}' requested, torch finds {found} CUDA devices; use 'auto'")
    return torch.device(name)


def cores() -> int:
    """Return how many cores this process may run on: in a CPU set, fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def threads_for(threads: int, cores: int) -> int:
    """Return `threads`; for 0, all cores but two, which capture needs, and at least one."""
    return threads or max(1, cores - 2)


def use_threads(threads: int) -> None:
    """Limit torch and OpenCV to `threads`; 0: see `threads_for`."""
    count = threads_for(threads, cores())
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def build_engine(config: FusionConfig, *, clock: Callable[[], int]) -> Engine:
    """Build encoders and head of a profile on its device; those trained with the head are preferred.

    Raises:
        ProfileError: an encoder or option does not exist, or the head does not fit the encoders.
        WeightsError: weights are missing.
    """
    device = pick_device(config.device)
    config = with_own_encoders(config)
    encoders: dict[str, RegisteredEncoder] = {}
    fixed: dict[str, EncoderConfig] = {}
    facts: precision.Facts = {}
    built: dict[str, tuple[EncoderConfig, RegisteredEncoder, precision.Facts]] = {}
    for name, item in sorted(config.encoders.items()):

        def build(item: EncoderConfig, name: str = name) -> RegisteredEncoder:
            chosen = item.model_copy(update={"weights": item.weights or config.weights})
            return build_encoder(name, chosen, device=device, seed=config.seed)

        # encoders that differ only in their input share one model
        same = item.model_dump_json(exclude={"input"})
        if same not in built:
            built[same] = _in_format(name, item, config.dtype, build)
        settled, encoders[name], measured = built[same]
        fixed[name] = settled.model_copy(update={"input": item.input})
        facts |= {f"{name} {key}": value for key, value in measured.items()}
        topic, modality = config.inputs[item.input].topic, encoders[name].modality
        if modality != kind_of(topic):
            raise ProfileError(f"fusion.encoders.{name}: '{item.kind}' takes {modality}, not {topic}")
    dims = {name: encoder.dim for name, encoder in encoders.items()}
    head = build_head(config.head, dims, device=device, seed=config.seed)
    known = config.model_copy(update={"encoders": fixed, "dtype": "float32"})
    return Engine(known, encoders, head, device=device, clock=clock, facts=facts)


def _in_format(
    name: str, config: EncoderConfig, dtype: str, build: Callable[[EncoderConfig], RegisteredEncoder]
) -> tuple[EncoderConfig, RegisteredEncoder, precision.Facts]:
    """Build an encoder in the number format of `[fusion] dtype`, unless its own options set one."""
    if dtype == "float32" or not precision.leaves_open(name, config):
        return config, build(config), {}
    if dtype == "auto":
        return precision.choose(config, build)
    chosen = precision.computing_in(config, dtype)
    return chosen, build(chosen), {precision.DTYPE: dtype}
