"""The number format of an encoder: set by the profile, or chosen by one measurement for `auto`.

Another measurement may choose differently, so the choice is no part of a configuration with `auto`: it is
published among a node's device facts, and a recompute reads it from there.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from perception.features.audio import RATE_HZ
from perception.features.logmel import log_mel
from perception.models.encoder import AudioInput, EncoderInput, ImageInput, TextInput
from perception.models.options import options_of
from perception.models.registry import RegisteredEncoder
from perception.profile import EncoderConfig, FusionConfig

Dtype = Literal["float32", "bfloat16"]
Facts = dict[str, str | float]
MAX_ERROR: Final = 0.02
"""Largest relative error of the features, |b - a| / |a|, at which bfloat16 is chosen."""
MIN_GAIN: Final = 1.1
"""Least gain in time at which bfloat16 is chosen; smaller gains are noise."""
_REPEATS: Final = 5
DTYPE: Final = "dtype"


@dataclass(frozen=True, slots=True)
class Trial:
    """Measurement of one encoder in both formats on the same noise."""

    error: float
    """Largest relative error of bfloat16's features over all inputs."""
    float32_ms: float
    bfloat16_ms: float

    @property
    def choice(self) -> Dtype:
        """The faster format whose error is small enough."""
        gains = self.float32_ms >= MIN_GAIN * self.bfloat16_ms
        return "bfloat16" if gains and self.error <= MAX_ERROR else "float32"

    def facts(self) -> Facts:
        """Return the facts to publish for the encoder."""
        return {
            DTYPE: self.choice,
            "bfloat16 error": self.error,
            "float32 ms": self.float32_ms,
            "bfloat16 ms": self.bfloat16_ms,
        }


def fact(name: str) -> str:
    """Return the name under which an encoder's format is published."""
    return f"{name} {DTYPE}"


def leaves_open(name: str, config: EncoderConfig) -> bool:
    """Return whether `[fusion.encoders.NAME]` can compute in several formats and its options set none.

    Raises:
        ProfileError: unknown kind or option; it names the encoder and the key.
    """
    return DTYPE in type(options_of(name, config)).model_fields and DTYPE not in config.options


def computing_in(config: EncoderConfig, dtype: str) -> EncoderConfig:
    """Return the encoder's configuration with a format; float32 is the default of the options."""
    if dtype == "float32":
        return config
    return config.model_copy(update={"options": {**config.options, DTYPE: dtype}})


def as_published(config: FusionConfig, facts: Mapping[str, str | float]) -> FusionConfig:
    """Return the fusion with the formats that its process published; unchanged if they are unknown."""
    left = [name for name, item in config.encoders.items() if leaves_open(name, item)]
    if config.dtype == "float32" or not all(fact(name) in facts for name in left):
        return config
    settled = {name: computing_in(config.encoders[name], str(facts[fact(name)])) for name in left}
    return config.model_copy(update={"encoders": {**config.encoders, **settled}, "dtype": "float32"})


def compare(plain: RegisteredEncoder, short: RegisteredEncoder, repeats: int = _REPEATS) -> Trial:
    """Run an encoder in float32 and in bfloat16, alternately, on noise."""
    inputs = [noise(seed)[plain.modality] for seed in range(repeats)]
    spent_ms: tuple[list[float], list[float]] = ([], [])
    errors = []
    for data in (inputs[0], *inputs):  # the first is a warm-up
        made = []
        for encoder, spent in zip((plain, short), spent_ms, strict=True):
            begun_ns = time.perf_counter_ns()
            made.append(encoder(data).features.cpu())
            spent.append((time.perf_counter_ns() - begun_ns) / 1e6)
        errors.append(float((made[1] - made[0]).norm() / made[0].norm().clamp_min(1e-12)))
    worst = float(np.max(errors))  # NaN in any run is the largest
    return Trial(worst, *(statistics.median(spent[1:]) for spent in spent_ms))


def choose(
    config: EncoderConfig, build: Callable[[EncoderConfig], RegisteredEncoder]
) -> tuple[EncoderConfig, RegisteredEncoder, Facts]:
    """Build an encoder in the better format on this machine; return configuration, encoder and facts."""
    plain, short_config = build(config), computing_in(config, "bfloat16")
    short = build(short_config)
    trial = compare(plain, short)
    chosen = (short_config, short) if trial.choice == "bfloat16" else (config, plain)
    return *chosen, trial.facts()


def noise(seed: int = 0, image_size: tuple[int, int] = (640, 480)) -> dict[str, EncoderInput]:
    """Return noise of each modality; `image_size` is width, height in pixels."""
    rng = np.random.default_rng(seed)
    width, height = image_size
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    sound = rng.standard_normal(round(0.975 * RATE_HZ)).astype(np.float32) * np.float32(0.1)
    return {
        "camera": ImageInput(image, image[:, ::-1].copy()),
        "microphone": AudioInput(sound, log_mel(sound)),
        "text": TextInput(f"warm up {seed}"),
    }
