"""Number formats: what auto chooses, what is published, and that a verification computes in the same one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from perception.devices.scripted import messages
from perception.errors import ProfileError
from perception.fusion.build import build_engine, use_threads
from perception.messages import FusedState, Header, Health, Message
from perception.models.encoder import Encoding
from perception.models.precision import MAX_ERROR, Trial, as_published, compare, fact
from perception.models.registry import build_encoder
from perception.profile import (
    CameraConfig,
    EncoderConfig,
    FusionConfig,
    HeadConfig,
    InputConfig,
    MicrophoneConfig,
    Profile,
    ScriptConfig,
)
from perception.session.recompute.verify import verify
from tests.live import LiveRun

RESNET = EncoderConfig(input="camera", kind="torchvision", weights="random", options={"size": 64})
LEVEL = EncoderConfig(input="microphone", kind="level")


def fusion(**changes: Any) -> FusionConfig:
    base: dict[str, Any] = {
        "inputs": {
            "camera": InputConfig(topic="camera/front"),
            "microphone": InputConfig(topic="microphone/main"),
        },
        "encoders": {"resnet": RESNET, "level": LEVEL},
        "head": HeadConfig(classes=("a", "b")),
        "threads": 1,
    }
    return FusionConfig.model_validate(base | changes)


@pytest.mark.parametrize(
    ("trial", "choice"),
    [
        (Trial(error=0.004, float32_ms=20.0, bfloat16_ms=8.0), "bfloat16"),
        (Trial(error=0.004, float32_ms=17.0, bfloat16_ms=28.0), "float32"),
        (Trial(error=0.004, float32_ms=20.0, bfloat16_ms=19.5), "float32"),
        (Trial(error=2 * MAX_ERROR, float32_ms=20.0, bfloat16_ms=8.0), "float32"),
    ],
)
def test_auto_takes_the_faster_format_that_keeps_the_answer(trial: Trial, choice: str) -> None:
    assert trial.choice == choice
    assert trial.facts()["dtype"] == choice


@pytest.mark.parametrize(("kind", "options"), [("torchvision", {"size": 64}), ("vggish", {})])
def test_bfloat16_is_near_float32_and_is_not_it(kind: str, options: dict[str, Any]) -> None:
    def build(dtype: str) -> Any:
        config = EncoderConfig(input="any", kind=kind, weights="random", options={**options, "dtype": dtype})
        return build_encoder("it", config, device=torch.device("cpu"), seed=0)

    trial = compare(build("float32"), build("bfloat16"), repeats=2)
    assert 0 < trial.error <= MAX_ERROR
    assert min(trial.float32_ms, trial.bfloat16_ms) > 0


@dataclass
class Overflowing:
    """A quick encoder of level, whose features are not a number from one of its runs on."""

    fails_in: int
    modality: str = "microphone"
    runs: int = 0

    def __call__(self, data: Any) -> Encoding:
        self.runs += 1
        level = torch.tensor([float(np.abs(data.waveform).mean())])
        return Encoding(level * (torch.nan if self.runs == self.fails_in else 1))


@pytest.mark.parametrize("fails_in", [1, 2, 4])
def test_a_format_that_gives_nan_once_is_not_taken(fails_in: int) -> None:
    trial = compare(Overflowing(0), Overflowing(fails_in), repeats=3)  # type: ignore[arg-type]
    assert np.isnan(trial.error)
    assert Trial(trial.error, float32_ms=9.0, bfloat16_ms=1.0).choice == "float32"


def test_the_format_of_the_fusion_holds_for_encoders_that_name_none() -> None:
    named = RESNET.model_copy(update={"options": {"size": 64, "dtype": "float32"}})
    engine = build_engine(
        fusion(dtype="bfloat16", encoders={"open": RESNET, "named": named, "level": LEVEL}), clock=lambda: 0
    )
    assert engine.facts()[fact("open")] == "bfloat16"
    assert not {fact("named"), fact("level")} & set(engine.facts())
    assert engine.config.encoders["named"] == named


def test_a_format_is_part_of_what_a_state_says_of_its_model() -> None:
    plain, short = (build_engine(fusion(dtype=dtype), clock=lambda: 0) for dtype in ("float32", "bfloat16"))
    assert plain.info.config_hash != short.info.config_hash
    assert plain.info.weights_hash != short.info.weights_hash


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "smell"}, "fusion.encoders.nose.kind: 'smell' is no kind of encoder; kinds are "),
        ({"options": {"sise": 64}}, "fusion.encoders.nose.options.sise: no such option; options are "),
    ],
)
def test_an_encoder_that_does_not_exist_is_named_with_its_key(changes: dict[str, Any], problem: str) -> None:
    wrong = fusion(dtype="auto", encoders={"level": LEVEL, "nose": RESNET.model_copy(update=changes)})
    with pytest.raises(ProfileError) as published:
        as_published(wrong, {})
    with pytest.raises(ProfileError) as built:
        build_engine(wrong, clock=lambda: 0)
    assert str(published.value).startswith(problem)
    assert str(built.value).startswith(problem)


def test_what_was_published_settles_what_auto_leaves_open() -> None:
    open_ = fusion(dtype="auto")
    assert as_published(open_, {}) == open_
    assert as_published(open_, {fact("resnet"): "float32"}) == fusion()
    settled = as_published(open_, {fact("resnet"): "bfloat16"})
    assert settled.dtype == "float32"
    assert settled.encoders["resnet"].options == {"size": 64, "dtype": "bfloat16"}


Recording = list[Message[Header]]


def told_otherwise(recording: Recording, dtype: str) -> Recording:
    """The recording, with another format in the device facts."""

    def with_format(header: Health) -> Health:
        return structs.replace(header, device=header.device | {fact("resnet"): dtype})

    return [
        structs.replace(one, header=with_format(one.header)) if isinstance(one.header, Health) else one
        for one in recording
    ]


def test_a_verification_computes_in_the_format_that_the_live_run_chose() -> None:
    use_threads(1)
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=20)
    arrivals = list(messages(ScriptConfig(seed=3), camera, MicrophoneConfig(source="scripted"), 2.5))
    config = fusion(dtype="auto")
    recording = LiveRun(config, "first", speed=1.0).run(arrivals)
    states = [one.header for one in recording if isinstance(one.header, FusedState)]
    *_, facts = (one.header.device for one in recording if isinstance(one.header, Health))
    verdict = verify(recording, Profile(fusion=config))
    assert (verdict.exit_code, verdict.equal) == (0, len(states))

    other = "float32" if facts[fact("resnet")] == "bfloat16" else "bfloat16"
    wrong = verify(told_otherwise(recording, other), Profile(fusion=config))
    assert (wrong.exit_code, wrong.equal, wrong.different) == (2, 0, 0)
    assert any("config hash" in obstacle for obstacle in wrong.obstacles)
