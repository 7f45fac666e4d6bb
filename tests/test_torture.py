"""The campaign's judgement on known states, and one short campaign on a real graph."""

from pathlib import Path

import pytest
from msgspec import structs

from perception.messages import Fused, FusedState, Latency, ModalityState, ModelInfo
from perception.torture import campaign
from perception.torture.campaign import frames_lost, judge, missing, sequence
from perception.torture.faults import FULL_DISK, Fault, catalogue
from perception.torture.table import as_text
from perception.torture.witness import Seen

KILL = ("kill -9 camera-front",)
NOBODY = Fault("nothing", "", lambda *_: lambda: None, (0, 0))
CAMERA = Fault("stop", "camera-front", lambda *_: lambda: None, (0, 0), silences=True)


def state(tick: int, **changes: object) -> Seen:
    camera = ModalityState(topic="camera/front", presence="present")
    fused = Fused(classes=("a", "b"), probabilities=(0.25, 0.75), label="b", confidence=0.75, entropy=0.5)
    whole = FusedState(
        seq=tick, stamp_ns=tick * 10**8, source="f#1", tick=tick, fused=fused, modalities={"camera": camera},
        model=ModelInfo(config_hash="a", weights_hash="b"),
    )  # fmt: skip
    return Seen(tick / 10, tick * 10**8 + 10**7, structs.replace(whole, **changes))


def test_a_run_without_a_fault_breaks_nothing() -> None:
    seen = [state(tick) for tick in range(100)]
    assert judge(seen, NOBODY, 0.0, 10.0) == sequence(seen, 0, 0) == []
    assert missing(seen) == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (state(5, stamp_ns=10**12), "about the future"),
        (state(5, latency=Latency(receive_ms=-1.0)), "negative latency"),
        (state(5, fused=structs.replace(state(5).state.fused, probabilities=(0.5, 0.7))), "probabilities"),
        (state(5, fused=structs.replace(state(5).state.fused, probabilities=(float("nan"), 1.0))), "probab"),
    ],
)
def test_a_state_that_no_fault_excuses_is_broken(wrong: Seen, says: str) -> None:
    assert says in judge([state(4), wrong], NOBODY, 0.0, 1.0)[0]


def test_what_is_lost_must_have_been_shed_or_skipped() -> None:
    seen = [state(1), state(2), state(6, seq=3)]
    assert missing(seen) == 3
    assert "3 states lost" in judge(seen, NOBODY, 0.0, 1.0)[0]
    assert "3 ticks have no state" in sequence(seen, 0, 0)[0]
    assert sequence(seen, 0, 3) == []
    shed = [state(1), state(2), state(6, seq=3, shed=3)]
    assert sequence(shed, 0, 0) == judge(shed, NOBODY, 0.0, 1.0) == []
    assert "follows" in sequence([state(1), state(2, seq=5)], 0, 0)[0]


def test_a_stopped_camera_must_not_stay_present() -> None:
    seen = [state(tick) for tick in range(60)]
    assert "camera was present" in judge(seen, CAMERA, 1.0, 5.9)[0]
    absent = {"camera": ModalityState(topic="camera/front", presence="absent", reason="late")}
    assert judge([*seen[:35], *(state(t, modalities=absent) for t in range(35, 60))], CAMERA, 1.0, 5.9) == []


def test_more_than_a_hundredth_of_frames_lost_is_broken() -> None:
    frames = [(number / 20, number) for number in range(200)]
    assert frames_lost(frames) == []
    assert "3 of 200 frames did not arrive" in frames_lost(frames[:50] + frames[53:])[0]
    assert frames_lost(frames[:1])


def test_names_of_faults_are_unique_and_the_table_has_a_row_for_each() -> None:
    names = [fault.name for fault in (*catalogue(), FULL_DISK)]
    assert len(set(names)) == len(names) > 25
    trials = [campaign.Trial(name, 0.0, 0.5, None, 1, 0, ()) for name in names]
    rows = campaign.Result(1, trials=trials).rows()
    assert len(as_text(rows).splitlines()) == len(names) + 1


def test_a_short_campaign_on_a_real_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "catalogue", lambda: [one for one in catalogue() if one.name in KILL])
    result = campaign.run(tmp_path, minutes=0.01, seed=3, progress=print, links=False)
    assert result.failures == []
    assert {trial.fault for trial in result.trials} == {*KILL, "full disk"}
    assert result.states > 20
    assert result.sessions
