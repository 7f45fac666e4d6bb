"""Another head for a running fusion: nothing is lost, and the recording still verifies."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.cli import main as cli
from perception.errors import WeightsError
from perception.fusion.build import build_engine, use_threads
from perception.fusion.core import FusionCore
from perception.fusion.swap import HeadSwap, NamedHead, Trial
from perception.fusion.window import Window
from perception.messages import Fused, FusedState, Header, HeadStatus, HeadUse, Message, SwapRequest, checked
from perception.models.checkpoint import Head, head_hash, load_head
from perception.models.fusion import FeatureFusion
from perception.profile import FusionConfig, HeadConfig, Profile, RecorderConfig
from perception.session import Session, SessionWriter, read
from perception.session.info import info
from perception.session.recompute.compare import unmeasured_fields
from perception.session.recompute.engines import replay
from perception.session.recompute.verify import verify
from perception.session.recorder import Recorder, describe
from tests.live import LiveRun
from tests.test_verify import SPEED, fusion, scripted, states_of
from tests.waiting import LONG_S

CLASSES = ("a", "b", "c")
Recording = list[Message[Header]]


def dims_of(config: FusionConfig) -> dict[str, int]:
    return build_engine(config, clock=lambda: 0).dims


def random_head(seed: int, dims: dict[str, int], classes: tuple[str, ...] = CLASSES) -> Head:
    torch.manual_seed(seed)
    return FeatureFusion(dims, classes, head="mlp").eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads, `one` and `two`, for the encoders of `fusion()`; the second has a memory."""
    base = tmp_path_factory.mktemp("heads")
    random_head(0, dims_of(fusion())).save_pretrained(base / "one")
    FeatureFusion(dims_of(fusion()), CLASSES, gru=8, ticks=6).save_pretrained(base / "two")
    return base


def configured(folder: Path) -> FusionConfig:
    return fusion(head=HeadConfig(weights=str(folder / "one")))


def shadow(head: Path, changes: Mapping[str, str] | None = None, *, ticks: int = 5) -> SwapRequest:
    fields = {"folder": str(head), "head_hash": head_hash(load_head(head)), **(changes or {})}
    return checked(SwapRequest, {"stamp_ns": 0, "action": "shadow", "ticks": ticks, **fields})


def then(action: str, head_hash: str = "") -> SwapRequest:
    return checked(SwapRequest, {"stamp_ns": 0, "action": action, "head_hash": head_hash})


@pytest.fixture(scope="module")
def swapped(folder: Path) -> Recording:
    """Ten seconds; the head is swapped after three of them, and back after six."""
    use_threads(1)
    arrivals = scripted(10.0)
    third = len(arrivals) // 10 * 3
    request = shadow(folder / "two")
    requests = {third // 2: request, third: then("go", request.head_hash), 2 * third: then("back")}
    return LiveRun(configured(folder), "swapped", speed=SPEED).run(arrivals, requests)


def hashes(states: list[FusedState]) -> list[str]:
    """The models in the order in which they become active."""
    found = [state.model.weights_hash for state in states]
    return [one for one, before in zip(found, ["", *found], strict=False) if one != before]


def written(recording: Recording, file: Path, profile: Profile) -> Path:
    with SessionWriter(file) as writer:
        writer.add_metadata("profile", profile.model_dump(mode="json"))
        for one in recording:
            writer.write(one)
    return file


def test_a_run_whose_head_was_swapped_follows_from_its_recording(swapped: Recording, folder: Path) -> None:
    states = states_of(swapped)
    first, second, third = hashes(states)
    assert first == third != second
    verdict = verify(swapped, Profile(fusion=configured(folder)))
    assert (verdict.exit_code, verdict.equal, list(verdict.lines())) == (
        0,
        len(states),
        [f"same: {len(states)} of {len(states)} states compared are equal, {len(states)} recorded"],
    )


@pytest.mark.parametrize("began_s", [2.0, 4.5, 7.0])
def test_it_is_verified_from_anywhere(swapped: Recording, folder: Path, began_s: float) -> None:
    began_ns = swapped[0].received_ns + round(began_s * 1e9)
    verdict = verify([m for m in swapped if m.received_ns >= began_ns], Profile(fusion=configured(folder)))
    assert (verdict.exit_code, verdict.different) == (0, 0)
    assert verdict.equal > 5


def test_replay_of_a_session_switches_where_it_did(swapped: Recording, folder: Path, tmp_path: Path) -> None:
    profile = Profile(fusion=configured(folder))
    file = written(swapped, tmp_path / "swapped.mcap", profile)
    assert list(map(unmeasured_fields, replay(file))) == list(map(unmeasured_fields, states_of(swapped)))
    assert len(hashes(list(replay(file, profile)))) == 1, "a profile that is given brings its own head"


def test_a_head_that_is_gone_is_named_and_the_rest_is_verified(
    swapped: Recording, folder: Path, tmp_path: Path
) -> None:
    config, other = configured(folder), tmp_path / "elsewhere"
    shutil.move(folder / "two", other)
    try:
        verdict = verify(swapped, Profile(fusion=config))
        found = verify(swapped, Profile(fusion=config), heads=[other])
    finally:
        shutil.move(other, folder / "two")
    first = next(s for s in states_of(swapped) if s.model.weights_hash == hashes(states_of(swapped))[1])
    assert verdict.exit_code == 2
    assert verdict.obstacles[0].startswith(f"cannot verify from tick {first.tick}: head ")
    assert set(verdict.skipped) == {"their head is not found"}
    assert verdict.equal + sum(verdict.skipped.values()) == len(states_of(swapped))
    assert (found.exit_code, found.equal) == (0, len(states_of(swapped)))


def test_the_metadata_names_every_head_that_concluded(
    swapped: Recording, folder: Path, tmp_path: Path
) -> None:
    """So a recording names the weights of its states without them."""
    metadata = describe(Profile(fusion=configured(folder)), 0)
    recorder = Recorder(tmp_path / "r.mcap", RecorderConfig(min_free_mb=0), metadata)
    for message in swapped:
        recorder.write(message, message.received_ns)
    recorder.close()
    states = states_of(swapped)
    first, second, _ = hashes(states)
    counts = Counter(state.model.weights_hash for state in states)
    swapped_at = next(state.tick for state in states if state.model.weights_hash == second)
    with Session(tmp_path / "r.mcap") as session:
        models = {name: value for name, value in session.metadata.items() if name.startswith("model ")}
    assert [value["weights_hash"] for value in models.values()] == [first, second]
    assert [value.get("from_tick") for value in models.values()] == [None, swapped_at]
    shown = "\n".join(info(tmp_path / "r.mcap").lines())
    assert first[:12] in shown
    assert second[:12] in shown
    verdict = verify(tmp_path / "r.mcap")
    assert verdict.exit_code == 0
    assert verdict.as_dict()["models"] == counts
    assert verdict.notes == [f"{count} states are of weights {name[:12]}" for name, count in counts.items()]


def test_states_whose_weights_the_metadata_does_not_name_are_said(
    swapped: Recording, folder: Path, tmp_path: Path
) -> None:
    states = states_of(swapped)
    first, second, _ = hashes(states)
    with SessionWriter(tmp_path / "early.mcap") as writer:
        writer.add_metadata("profile", Profile(fusion=configured(folder)).model_dump(mode="json"))
        writer.add_metadata("model c0ffee", {"config_hash": "c0ffee", "weights_hash": first})
        for message in swapped:
            writer.write(message)
    count = sum(state.model.weights_hash == second for state in states)
    expected = f"{count} states are of weights {second[:12]}, which the metadata does not name"
    verdict = verify(tmp_path / "early.mcap")
    assert expected in verdict.lines()
    assert verdict.exit_code == 0


def test_a_verdict_is_plain_data(swapped: Recording, folder: Path) -> None:
    began_ns = swapped[0].received_ns + round(4.5e9)
    verdict = verify([m for m in swapped if m.received_ns >= began_ns], Profile(fusion=configured(folder)))
    plain = json.loads(json.dumps(verdict.as_dict()))
    assert plain["skipped"] == dict(verdict.skipped)
    assert sum(plain["models"].values()) == plain["states"]


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    core = FusionCore(fusion())
    return [w for m in scripted(3.0) if not m.topic.startswith("label") for w in core.push(m)]


class Conversation:
    """A swap on an engine whose windows are computed one by one."""

    def __init__(self, config: FusionConfig, windows: list[Window]) -> None:
        self.engine = build_engine(config, clock=lambda: 0)
        self.swap = HeadSwap(self.engine)
        self._windows = iter(windows)

    def ask(self, request: SwapRequest, windows: int) -> list[HeadStatus]:
        self.swap.request(request)
        while self.swap._loading.locked():
            pass
        for _ in range(windows):
            window = next(self._windows)
            self.swap.apply_requests(window.tick)
            self.swap.compare(self.engine.run(window).fused)
        statuses = list(self.swap.statuses)
        self.swap.statuses.clear()
        return statuses


def test_a_standby_adopts_the_head_that_the_active_fusion_uses(folder: Path, windows: list[Window]) -> None:
    engine = build_engine(configured(folder), clock=lambda: 0)
    swap, before = HeadSwap(engine), engine.info
    other = HeadUse(head_hash=head_hash(load_head(folder / "two")), folder=str(folder / "two"))
    swap.adopt(swap.active.use())
    assert engine.info == before
    swap.adopt(other)
    assert (swap.active.hash, swap.active.use()) == (other.head_hash, other)
    assert engine.run(windows[-1]).model == engine.info != before
    with pytest.raises(WeightsError, match="nowhere"):
        swap.adopt(HeadUse(head_hash="0" * 64, folder=str(folder / "nowhere")))
    assert swap.active.use() == other


def test_in_shadow_both_conclude_and_the_old_one_is_published(folder: Path, windows: list[Window]) -> None:
    talk = Conversation(configured(folder), windows)
    before = talk.engine.info
    statuses = talk.ask(shadow(folder / "two", ticks=4), windows=6)
    assert [status.phase for status in statuses] == ["shadow"] * 3 + ["compared"]
    assert statuses[-1].agreement.ticks == 4
    assert talk.engine.info == before
    assert not talk.swap.uses
    old, new = (load_head(folder / name) for name in ("one", "two"))
    engine = build_engine(configured(folder), clock=lambda: 0)
    pairs = [(engine.run(window).fused, engine.infer_last(new)) for window in windows[:4]]
    p, q = (np.array([pair[i].probabilities for pair in pairs]) for i in (0, 1))
    assert statuses[-1].agreement.variation == pytest.approx(np.abs(p - q).sum(axis=1).mean() / 2)
    assert statuses[-1].agreement.equal == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert old.classes == new.classes


def test_a_head_agrees_with_itself(folder: Path) -> None:
    head = load_head(folder / "one")
    trial = Trial(shadow(folder / "one"), NamedHead(head, "", ""))
    fused = Fused(classes=CLASSES, probabilities=(0.5, 0.3, 0.2), label="a", confidence=0.5, entropy=1.03)
    trial.compare(fused, fused)
    assert (trial.agreement.equal, trial.agreement.variation) == (1.0, 0.0)


def test_variation_has_the_same_bits_on_every_python(folder: Path) -> None:
    trial = Trial(shadow(folder / "one"), NamedHead(load_head(folder / "one"), "", ""))
    one, other = (
        Fused(classes=CLASSES, probabilities=each, label="a", confidence=0.5, entropy=1.0)
        for each in ((0.1,) * 10 + (0.0,), (0.0,) * 10 + (1.0,))
    )
    trial.compare(one, other)
    assert trial.agreement.variation == 1.0


def test_go_and_back_say_from_which_tick_on(folder: Path, windows: list[Window]) -> None:
    talk = Conversation(configured(folder), windows)
    request = shadow(folder / "two", ticks=2)
    talk.ask(request, windows=2)
    (live,) = talk.ask(then("go", request.head_hash), windows=1)
    (back,) = talk.ask(then("back"), windows=1)
    assert (live.phase, live.in_force.from_tick, live.in_force.head_hash) == (
        "live",
        windows[2].tick,
        request.head_hash,
    )
    assert (back.phase, back.in_force.from_tick, back.in_force.folder) == (
        "live",
        windows[3].tick,
        str(folder / "one"),
    )
    assert [use.from_tick for use in talk.swap.uses] == [windows[2].tick, windows[3].tick]


def spoiled(head: Head) -> Head:
    with torch.no_grad():
        next(head.parameters())[0] = float("nan")
    return head


def missing_one(dims: dict[str, int]) -> dict[str, int]:
    return {name: dim for name, dim in dims.items() if name != "motion"}


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        (lambda dims: random_head(3, dims, ("a", "b", "d")), {}, "its classes are a, b, d; expected a, b, c"),
        (lambda dims: random_head(3, dims, ("b", "a", "c")), {}, "in this order"),
        (lambda dims: random_head(3, dims | {"mfcc": 7}), {}, "encoder 'mfcc' gives 120 features, it was"),
        (lambda dims: random_head(3, missing_one(dims)), {}, "it was trained without encoder 'motion'"),
        (lambda dims: random_head(3, dims | {"faces": 9}), {}, "encoder 'faces', which is missing"),
        (lambda dims: spoiled(random_head(3, dims)), {}, "its weights are not all finite"),
        (lambda dims: random_head(3, dims), {"head_hash": "0" * 64}, "requested was 000000000000"),
        (lambda dims: random_head(3, dims), {"folder": "/nowhere"}, "/nowhere: no fusion head there"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_with_a_clear_line(
    folder: Path,
    windows: list[Window],
    tmp_path: Path,
    make: Callable[[dict[str, int]], Head],
    changes: dict[str, str],
    reason: str,
) -> None:
    talk = Conversation(configured(folder), windows)
    make(talk.engine.dims).save_pretrained(tmp_path)
    (status,) = talk.ask(shadow(tmp_path, changes), windows=2)
    assert status.phase == "refused"
    assert reason in status.reason


def test_nothing_is_unpickled(folder: Path, windows: list[Window], tmp_path: Path) -> None:
    shutil.copytree(folder / "two", tmp_path / "head")
    torch.save(load_head(folder / "two").state_dict(), tmp_path / "head" / "pytorch_model.bin")
    (tmp_path / "head" / "model.safetensors").write_bytes(
        (tmp_path / "head" / "pytorch_model.bin").read_bytes()
    )
    talk = Conversation(configured(folder), windows)
    request = shadow(folder / "two", {"folder": str(tmp_path / "head")})
    assert "not a safetensors file" in talk.ask(request, windows=1)[0].reason


@pytest.mark.parametrize(
    ("request_", "reason"),
    [(then("go", "ab" * 32), "head abababababab has not been in shadow"), (then("back"), "no other head")],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, windows: list[Window], request_: SwapRequest, reason: str
) -> None:
    (status,) = Conversation(configured(folder), windows).ask(request_, windows=1)
    assert (status.phase, reason in status.reason) == ("refused", True)


def test_a_head_that_fails_in_shadow_does_no_harm(
    folder: Path, windows: list[Window], tmp_path: Path
) -> None:
    head = random_head(3, dims_of(fusion()))
    with torch.no_grad():
        for weight in head.parameters():
            weight.fill_(3e38)
    head.save_pretrained(tmp_path)
    talk = Conversation(configured(folder), windows)
    statuses = talk.ask(shadow(tmp_path), windows=3)
    assert [status.phase for status in statuses] == ["refused"]
    assert talk.swap.active.folder == str(folder / "one")


GRAPH = """
domain = "swap"
record = true

[camera.front]
source = "scripted"
width = 160
height = 120
rate_hz = 10

[microphone.main]
source = "scripted"

[fusion]
lateness_ms = 200
threads = 1
inputs = {{ camera = {{ topic = "camera/front" }}, microphone = {{ topic = "microphone/main" }} }}

[fusion.encoders]
motion = {{ input = "camera", kind = "motion" }}
level = {{ input = "microphone", kind = "level" }}

[fusion.head]
weights = "{one}"

[recorder]
out = "{out}"
"""


def test_with_real_processes_no_tick_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, out = tmp_path / "graph.toml", tmp_path / "out.mcap"
    profile.write_text(GRAPH.format(one=tmp_path / "one", out=out))
    dims = {name: dims_of(fusion())[name] for name in ("level", "motion")}
    for seed, (name, classes) in enumerate({"one": CLASSES, "two": CLASSES, "wrong": ("a", "b")}.items()):
        random_head(seed, dims, classes).save_pretrained(tmp_path / name)
    graph = subprocess.Popen(
        [sys.executable, "-m", "perception", "up", str(profile)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        with Subscriber("state/fused", runtime=Runtime("swap"), clock=HostClock().now_ns) as states:
            assert states.receive(60) is not None

        def swap(*arguments: str) -> tuple[int, str]:
            code = cli.run(["swap", "--domain", "swap", *arguments])
            printed = capsys.readouterr()
            return code, printed.out + printed.err

        code, text = swap(str(tmp_path / "wrong"), "--go")
        assert (code, "its classes are a, b; expected a, b, c" in text) == (1, True)
        code, text = swap(str(tmp_path / "two"), "--after", "5", "--go")
        assert (code, "shadow: " in text, "live from tick" in text) == (0, True, True)
        code, text = swap("--back")
        assert (code, str(tmp_path / "one") in text) == (0, True)
        code, text = swap(str(tmp_path / "two"), "--node", "other")
        assert (code, "no fusion node 'other' in domain 'swap'" in text) == (1, True)
    finally:
        os.kill(graph.pid, signal.SIGINT)
        graph.communicate(timeout=LONG_S)
    recorded = [m.header for m in read(out, ["state/fused"]) if isinstance(m.header, FusedState)]
    assert len(hashes(recorded)) == 3
    for before, after in pairwise(recorded):
        assert after.tick == before.tick + 1 + after.shed, "every tick is published, or counted as shed"
    verdict = verify(out)
    assert (verdict.exit_code, verdict.different) == (0, 0), list(verdict.lines())
