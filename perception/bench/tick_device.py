"""The three models of `robot` on a device: against a plain loop, with many cameras, against the CPU."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import cv2
import numpy as np
import torch
from msgspec import structs

from perception.bench.rounds import Values
from perception.bench.tick import anywhere, scripted
from perception.features.image import decode_frame
from perception.features.logmel import log_mel
from perception.fusion.build import build_engine, use_threads
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.fusion.window import AudioSlice, CameraSlice, Window
from perception.models.encoder import TextInput
from perception.profile import EncoderConfig, FusionConfig, InputConfig, load
from perception.topics import kind_of

CAMERAS: Final = 8
MICROPHONES: Final = 4
RATE_HZ: Final = 30.0
TOLERANCE: Final = 0.01
"""Allowed relative difference of features from the CPU: TF32 convolutions, frames resized as floats."""
_SIDE: Final = 224


def cases(device: str, seconds: float) -> dict[str, Callable[[], Values]]:
    """Return the measurements on a device by name."""
    profile = load("robot", (*anywhere("robot"), "fusion.dtype=float32", f"fusion.device={device}"))
    assert profile.fusion is not None
    use_threads(profile.fusion.threads)
    config = profile.fusion
    core = FusionCore(config)
    windows = [window for message in scripted(profile, seconds) for window in core.push(message)]
    whole = [window for window in windows if all(item.data for item in window.inputs.values())]
    engine, many = _warm(config), _warm(many_of(config))
    crowded = [_multiplied(window, many.config) for window in whole]
    return {
        "trio": partial(_ticks, engine, whole),
        "trio, plain eager loop": partial(_eager_loop, engine, whole),
        f"{CAMERAS} cameras, {MICROPHONES} microphones": partial(_paced, many, crowded),
        "trio against the cpu": partial(_difference, engine, whole),
    }


def many_of(config: FusionConfig) -> FusionConfig:
    """Return a fusion of many cameras and microphones, each with the encoder that the profile has for it."""
    cameras = [f"camera{number}" for number in range(CAMERAS)]
    microphones = [f"microphone{number}" for number in range(MICROPHONES)]
    models = {config.encoders[name].input: config.encoders[name] for name in config.encoders}
    inputs: dict[str, InputConfig] = {}
    encoders: dict[str, EncoderConfig] = {}
    for kind, names in (("camera", cameras), ("microphone", microphones)):
        for name in names:
            inputs[name] = config.inputs[kind].model_copy(update={"topic": f"{kind}/{name}"})
            encoders[name] = models[kind].model_copy(update={"input": name})
    return config.model_copy(update={"inputs": inputs, "encoders": encoders})


def _warm(config: FusionConfig) -> Engine:
    engine = build_engine(config, clock=time.perf_counter_ns)
    engine.warm_up()
    return engine


def _timed(call: Callable[[], object]) -> float:
    begun_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun_ns) / 1e3


def _ticks(engine: Engine, windows: list[Window]) -> Values:
    """Run windows one after the other, without pause."""
    return _row([_timed(partial(engine.run, window)) for window in windows])


def _row(spent_us: list[float]) -> Values:
    quantiles = statistics.quantiles([*spent_us, spent_us[-1]], n=100, method="inclusive")
    return {
        "p50_us": quantiles[49],
        "p95_us": quantiles[94],
        "p99_us": quantiles[98],
        "per_second": len(spent_us) / sum(spent_us) * 1e6,
    }


@torch.inference_mode()
def _eager_loop(engine: Engine, windows: list[Window]) -> Values:
    """Run every model on every window in turn; prepare each on the host, wait for each."""
    return _row([_timed(partial(_eager, engine, window)) for window in windows])


def _eager(engine: Engine, window: Window) -> None:
    encoders: dict[str, Any] = dict(engine.encoders)
    for item in window.inputs.values():
        if isinstance(item.data, CameraSlice):
            image = decode_frame(item.data.frame.header, item.data.frame.payload)
            small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (_SIDE, _SIDE)).astype(np.float32)
            pixels = torch.from_numpy(small / 127.5 - 1).permute(2, 0, 1)[None]
            encoders["resnet18"].forward.function(pixels.to(engine.device))[0].cpu()
        elif isinstance(item.data, AudioSlice):
            frames = torch.from_numpy(log_mel(item.data.samples)[-96:])[None]
            encoders["vggish"].forward.function(frames.to(engine.device))[0].cpu()
        elif item.data is not None:
            encoders["bert"](TextInput(item.data.command.header.text)).features.cpu()


def _paced(engine: Engine, windows: list[Window]) -> Values:
    """Run windows at 30 Hz."""
    return _row(list(_paced_us(engine, windows)))


def _paced_us(engine: Engine, windows: list[Window]) -> Iterator[float]:
    begun_s = time.perf_counter()
    for number, window in enumerate(windows):
        time.sleep(max(0.0, begun_s + number / RATE_HZ - time.perf_counter()))
        yield _timed(partial(engine.run, window))


def _multiplied(window: Window, config: FusionConfig) -> Window:
    inputs = {
        name: structs.replace(window.inputs[kind_of(item.topic)], topic=item.topic)
        for name, item in config.inputs.items()
    }
    return structs.replace(window, inputs=inputs)


def _difference(engine: Engine, windows: list[Window]) -> Values:
    """Return the largest relative difference of features from the CPU, |a - b| / |b|, over some windows."""
    host = build_engine(engine.config.model_copy(update={"device": "cpu"}), clock=time.perf_counter_ns)
    errors = []
    for window in windows[:5]:
        here, there = engine.encode(window).encodings, host.encode(window).encodings
        for name, encoding in there.items():
            difference = here[name].features.cpu() - encoding.features
            errors.append(float(difference.norm() / encoding.features.norm().clamp_min(1e-12)))
    return {"error": max(errors)}
