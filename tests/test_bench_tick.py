"""The tick bench: every stage is timed, and the stages add up to the overhead."""

from collections import Counter

import numpy as np
import pytest
import torch

from perception.bench import tick, tick_device
from perception.bench.rounds import interleave
from perception.models.encoder import ImageInput
from perception.profile import FusionConfig, load
from perception.topics import kind_of


def test_every_stage_of_a_tick_is_timed_beside_the_models_alone() -> None:
    figures = interleave(tick.cases(seconds=0.5, profiles=("demo",)), 1)
    assert set(figures) == {"demo limit: models alone", "demo"}
    row = figures["demo"]
    assert {f"{name}_us" for name in (*tick.STAGES, "models", "decode")} < set(row)
    assert all(figure.median > 0 for figure in row.values())
    assert row["overhead_p50_us"].median <= row["p50_us"].median


def test_models_alone_do_all_their_work_again() -> None:
    """Otherwise the time of what encoders share per frame would be missing from the limit."""
    frame, sound = ImageInput(np.zeros((4, 4, 3), np.uint8)), object()
    frame.shared("grey", lambda: "made in the tick")
    (_, (first,), _), (_, (second,), _), (_, (third,), _) = tick.unshared(
        [("faces", (frame,), 1), ("motion", (frame,), 2), ("level", (sound,), 3)]
    )
    assert first.shared("grey", lambda: "made again") == "made again"
    assert second is first
    assert third is sound
    assert frame.shared("grey", lambda: "") == "made in the tick"


def test_many_cameras_and_microphones_have_the_trios_encoders() -> None:
    config = load("robot").fusion
    assert config is not None
    many = tick_device.many_of(config)
    kinds = Counter(kind_of(item.topic) for item in many.inputs.values())
    assert kinds == {"camera": tick_device.CAMERAS, "microphone": tick_device.MICROPHONES}
    assert {item.kind for item in many.encoders.values()} == {"torchvision", "vggish"}
    assert FusionConfig.model_validate(many.model_dump()) == many


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_the_trio_is_measured_beside_a_plain_loop_and_the_cpu() -> None:
    figures = interleave(tick_device.cases("cuda", seconds=2.0), 1)
    trio, plain = figures["trio"], figures["trio, plain eager loop"]
    assert trio["per_second"].median > plain["per_second"].median
    assert figures["trio against the cpu"]["error"].median < tick_device.TOLERANCE
