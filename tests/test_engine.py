"""The engine on windows of a scripted stream: contents of a state, what is computed again, what is not."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from perception.devices.script import CLASSES
from perception.devices.scripted import messages
from perception.errors import ProfileError
from perception.fusion.build import build_engine, pick_device
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.fusion.window import CameraSlice, Window
from perception.messages import Box, BranchState, FusedState, Latency
from perception.models.checkpoint import build_head
from perception.models.encoder import Encoding, ImageInput
from perception.models.precision import noise
from perception.models.registry import build_encoder
from perception.profile import (
    CameraConfig,
    EncoderConfig,
    FusionConfig,
    HeadConfig,
    InputConfig,
    MicrophoneConfig,
    ScriptConfig,
)

CAMERA = CameraConfig(source="scripted", width=320, height=240, rate_hz=20)
INTENTS = {"intents": {"come": ["come here"], "stop": ["stop now"]}}


def config(**encoders: EncoderConfig) -> FusionConfig:
    return FusionConfig(
        inputs={
            "camera": InputConfig(topic="camera/front"),
            "microphone": InputConfig(topic="microphone/main"),
            "text": InputConfig(topic="text/*"),
        },
        encoders=encoders
        or {
            "faces": EncoderConfig(input="camera", kind="faces"),
            "motion": EncoderConfig(input="camera", kind="motion"),
            "level": EncoderConfig(input="microphone", kind="level"),
            "intent": EncoderConfig(input="text", kind="tfidf", options=INTENTS),
        },
        head=HeadConfig(classes=CLASSES),
    )


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    core = FusionCore(config())
    stream = messages(ScriptConfig(seed=3), CAMERA, MicrophoneConfig(source="scripted"), 4.0)
    return [w for m in stream if not m.topic.startswith("label") for w in core.push(m)]


@pytest.fixture
def engine() -> Engine:
    return build_engine(config(), clock=lambda: 0)


def without_times(state: FusedState) -> FusedState:
    return structs.replace(state, latency=Latency())


def test_a_state_says_what_was_concluded_from_what(engine: Engine, windows: list[Window]) -> None:
    states = [engine.run(window) for window in windows]
    assert [s.tick for s in states] == [w.tick for w in windows]
    last = states[-1]
    assert last.fused.classes == CLASSES
    assert sum(last.fused.probabilities) == pytest.approx(1.0)
    assert last.fused.confidence == max(last.fused.probabilities)
    assert last.modalities["camera"].presence == "present"
    assert last.modalities["microphone"].seqs is not None
    assert states[0].modalities["microphone"].presence == "absent"
    assert last.modalities["camera"].branches["faces"].labels == ("face",)
    assert len(last.model.weights_hash) == len(last.model.config_hash) == 64


def test_the_same_windows_give_the_same_states_whoever_computes_them(windows: list[Window]) -> None:
    first, second = (build_engine(config(), clock=lambda: 0) for _ in range(2))
    assert [without_times(first.run(w)) for w in windows] == [without_times(second.run(w)) for w in windows]


def test_shedding_windows_does_not_change_the_others(windows: list[Window]) -> None:
    every, third = (build_engine(config(), clock=lambda: 0) for _ in range(2))
    full = {w.tick: without_times(every.run(w)) for w in windows}
    for window in windows[::3]:
        assert without_times(third.run(window)) == full[window.tick]


def test_encoders_run_only_when_their_input_changed(engine: Engine, windows: list[Window]) -> None:
    class Counting:
        def __init__(self, name: str) -> None:
            self.inner, self.calls = engine.encoders[name], 0
            self.uses_previous = getattr(self.inner, "uses_previous", False)

        def __call__(self, data: object) -> object:
            self.calls += 1
            return self.inner(data)

    counting = {name: Counting(name) for name in engine.encoders}
    engine.encoders = counting  # type: ignore[assignment]
    camera = windows[20].inputs["camera"]
    held = [structs.replace(w, inputs=w.inputs | {"camera": camera}) for w in windows[20:30]]
    for window in held:
        engine.encode(window)
    assert counting["faces"].calls == 1
    assert counting["level"].calls == 10
    assert counting["intent"].calls <= 2


def corrupted(window: Window, part: str) -> Window:
    item = window.inputs["camera"]
    assert isinstance(item.data, CameraSlice)
    message = getattr(item.data, part)
    data = structs.replace(item.data, **{part: structs.replace(message, payload=b"\xff\xd8 not a jpeg")})
    return structs.replace(window, inputs=window.inputs | {"camera": structs.replace(item, data=data)})


def test_a_corrupt_image_is_absence_and_the_rest_runs_on(engine: Engine, windows: list[Window]) -> None:
    state = engine.run(corrupted(windows[30], "frame"))
    assert (state.modalities["camera"].presence, state.modalities["camera"].reason) == ("absent", "corrupt")
    assert state.modalities["microphone"].presence == "present"
    assert engine.counts == {"camera corrupt": 1}
    assert engine.run(windows[31]).modalities["camera"].presence == "present"


@pytest.mark.parametrize(
    "spoiled",
    [
        BranchState(labels=("x",), scores=(math.nan,)),
        BranchState(boxes=(Box(x=math.inf, y=0, width=1, height=1),)),
    ],
)
def test_scores_that_are_no_numbers_leave_their_encoder_out(
    engine: Engine, windows: list[Window], spoiled: BranchState
) -> None:
    faces = engine.encoders["faces"]
    engine.encoders["faces"] = lambda data: Encoding(faces(data).features, spoiled)  # type: ignore[assignment]
    assert "faces" not in engine.run(windows[30]).modalities["camera"].branches
    assert engine.counts == {"faces not finite": 1}


def test_a_corrupt_previous_frame_is_only_no_previous_frame(engine: Engine, windows: list[Window]) -> None:
    assert engine.run(corrupted(windows[30], "previous")).modalities["camera"].presence == "present"


def test_latency_is_split_into_stages_that_add_up(windows: list[Window]) -> None:
    def clock() -> Iterator[int]:
        now_ns = windows[30].end_ns
        while True:
            now_ns += 1_000_000
            yield now_ns

    ticking = clock()
    engine = build_engine(config(), clock=lambda: next(ticking))
    latency = engine.run(windows[30], cut_ns=windows[30].end_ns + 500_000).latency
    assert latency.align_ms == 0.5
    assert latency.queue_ms == 0.5
    assert set(latency.encoders_ms) == {"faces", "motion", "level", "intent"}
    assert latency.total_ms >= latency.align_ms + sum(latency.encoders_ms.values()) + latency.head_ms


def test_warm_up_leaves_no_trace(engine: Engine, windows: list[Window]) -> None:
    cold = build_engine(config(), clock=lambda: 0)
    engine.warm_up((320, 240))
    assert [without_times(engine.run(w)) for w in windows[:20]] == [
        without_times(cold.run(w)) for w in windows[:20]
    ]


def test_an_encoder_on_the_wrong_kind_of_input_is_one_clear_error() -> None:
    wrong = config(faces=EncoderConfig(input="microphone", kind="faces"))
    with pytest.raises(ProfileError, match=r"fusion\.encoders\.faces: 'faces' takes camera"):
        build_engine(wrong, clock=lambda: 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_asking_for_cuda_without_it_is_one_clear_error() -> None:
    with pytest.raises(ProfileError, match="finds no CUDA devices"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


class Network(torch.nn.Module):
    """A user's encoder that is a module: its `forward` is a method like any other."""

    modality = "camera"
    dim = 3

    def forward(self, data: ImageInput) -> Encoding:
        return Encoding(torch.from_numpy(data.image.mean(axis=(0, 1)).astype(np.float32)))

    def weights(self) -> dict[str, torch.Tensor]:
        return {}


def test_an_encoder_that_is_a_module_is_warmed_up_and_runs(windows: list[Window]) -> None:
    faces = config(faces=EncoderConfig(input="camera", kind="faces"))
    built = build_engine(faces.model_copy(update={"head": HeadConfig(classes=CLASSES)}), clock=lambda: 0)
    encoders: Any = {"faces": Network()}
    head = build_head(built.config.head, {"faces": Network.dim}, device=built.device, seed=0)
    engine = Engine(built.config, encoders, head, device=built.device, clock=lambda: 0)
    engine.warm_up((32, 24))
    assert engine.run(windows[30]).modalities["camera"].presence == "present"


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("meta")])
@pytest.mark.parametrize("kind", ["faces", "aruco", "motion", "level", "mfcc", "tfidf"])
def test_encoders_that_compute_on_the_cpu_leave_their_features_there(kind: str, device: torch.device) -> None:
    """On any device they are copied together, once per tick."""
    item = EncoderConfig(input="any", kind=kind, options=INTENTS if kind == "tfidf" else {})
    encoder: Any = build_encoder(kind, item, device=device, seed=0)
    assert encoder.cpu_only
    assert encoder(noise()[encoder.modality]).features.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("index", range(max(1, torch.cuda.device_count())))
def test_on_each_cuda_device_states_are_those_of_the_cpu(windows: list[Window], index: int) -> None:
    """Tolerance, for TF32 and frames resized as floats: 1 % of the features, 0.02 of a probability."""
    random = {"weights": "random"}
    models = config(
        faces=EncoderConfig(input="camera", kind="faces"),
        resnet=EncoderConfig(input="camera", kind="torchvision", **random),
        level=EncoderConfig(input="microphone", kind="level"),
        voice=EncoderConfig(input="microphone", kind="silero"),
        vggish=EncoderConfig(input="microphone", kind="vggish", **random),
        intent=EncoderConfig(input="text", kind="tfidf", options=INTENTS),
    )
    there = build_engine(models.model_copy(update={"device": f"cuda:{index}"}), clock=lambda: 0)
    here = build_engine(models.model_copy(update={"device": "cpu"}), clock=lambda: 0)
    there.warm_up((320, 240))
    facts = there.facts()
    assert facts["device"] == f"cuda:{index}"
    assert {facts[f"{name} graph"] for name in ("resnet", "vggish")} == {"captured"}
    for window in windows[20:30]:
        on_cpu, on_gpu = here.encode(window).encodings, there.encode(window).encodings
        assert on_cpu.keys() == on_gpu.keys()
        for name, encoding in on_cpu.items():
            difference = (on_gpu[name].features.cpu() - encoding.features).norm()
            assert difference <= 0.01 * encoding.features.norm() + 1e-6, name
        expected, found = here.run(window), there.run(window)
        assert found.fused.probabilities == pytest.approx(expected.fused.probabilities, abs=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_encoders_that_all_refuse_their_input_leave_a_state(windows: list[Window]) -> None:
    """Nothing waits for the device then, and its events may not be done when their time is read."""
    only = config(resnet=EncoderConfig(input="camera", kind="torchvision", weights="random"))
    engine = build_engine(only.model_copy(update={"device": "cuda"}), clock=lambda: 0)
    encoder: Any = engine.encoders["resnet"]

    def refuse(data: ImageInput) -> Encoding:
        encoder(data)
        raise ValueError("unusable")

    engine.encoders["resnet"] = refuse  # type: ignore[assignment]
    for window in windows[20:30]:
        assert engine.run(window).modalities["camera"].branches == {}


@pytest.fixture(scope="module")
def two_cameras() -> Engine:
    resnet = EncoderConfig(input="left", kind="torchvision", weights="random", options={"size": 64})
    both = {name: resnet.model_copy(update={"input": name}) for name in ("left", "right")}
    inputs = {name: InputConfig(topic=f"camera/{name}") for name in both}
    return build_engine(
        FusionConfig(inputs=inputs, encoders=both, head=HeadConfig(classes=CLASSES)), clock=lambda: 0
    )


def for_two_cameras(window: Window, before: Window) -> Window:
    """The frames of one camera for two, the second of them a tick behind."""
    inputs = {
        name: structs.replace(one.inputs["camera"], topic=f"camera/{name}")
        for name, one in (("left", window), ("right", before))
    }
    return structs.replace(window, inputs=inputs)


def test_encoders_that_differ_only_in_their_input_are_one_model(two_cameras: Engine) -> None:
    assert two_cameras.encoders["left"] is two_cameras.encoders["right"]


def test_one_pass_for_all_cameras_gives_what_a_pass_for_each_does(
    two_cameras: Engine, windows: list[Window]
) -> None:
    built = two_cameras
    together = Engine(
        built.config, built.encoders, built.head, device=built.device, clock=lambda: 0, batched=True
    )
    for before, window in pairwise(windows[15:18]):
        moved = for_two_cameras(window, before)
        single, batched = built.encode(moved).encodings, together.encode(moved).encodings
        assert single.keys() == batched.keys() == {"left", "right"}
        for name, encoding in single.items():
            torch.testing.assert_close(batched[name].features, encoding.features, rtol=1e-4, atol=1e-4)


def test_in_one_pass_a_frame_does_not_depend_on_what_stands_beside_it(two_cameras: Engine) -> None:
    """Which others are there differs between a live run and its replay, where windows were shed."""
    encoder: Any = two_cameras.encoders["left"]
    rng = np.random.default_rng(1)
    first, second = (ImageInput(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(2))
    elongated = ImageInput(np.zeros((8, 800, 3), np.uint8))
    expected = encoder.encode_batch([first, second])[1]
    for beside in (None, second, elongated):
        other, same = encoder.encode_batch([beside, second])
        assert (other is None) == (beside is not second)
        assert torch.equal(same.features, expected.features)
