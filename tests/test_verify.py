"""Live equals recompute: the states of a fusion under overload follow from its recording."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import structs

from perception.cli.replay import verify as verify_command
from perception.devices.scripted import messages
from perception.fusion.build import build_engine, use_threads
from perception.messages import AudioBlock, FusedState, Header, Health, Journal, Message
from perception.models.fusion import FeatureFusion
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
from perception.session import SessionWriter
from perception.session.recompute.compare import Difference, first_difference, unmeasured_fields
from perception.session.recompute.engines import replay
from perception.session.recompute.journal import PATIENCE_NS, Missed
from perception.session.recompute.verify import verify
from perception.topics import kind_of
from perception.units import SECOND_NS
from tests.live import LiveRun, late, restarted
from tests.rewriting import rewritten

START_NS = 1_700_000_000 * SECOND_NS
CAMERA, MICROPHONE = "camera/front", "microphone/main"
SPEED = 5.0
"""The live runs' clock goes so many times as fast as the wall's."""
INTENTS = {"intents": {"come": ["come here"], "stop": ["stop now"]}}

Recording = list[Message[Header]]


def fusion(**changes: Any) -> FusionConfig:
    base: dict[str, Any] = {
        "inputs": {
            "camera": InputConfig(topic=CAMERA),
            "microphone": InputConfig(topic=MICROPHONE),
            "text": InputConfig(topic="text/*"),
        },
        "encoders": {
            "motion": EncoderConfig(input="camera", kind="motion"),
            "level": EncoderConfig(input="microphone", kind="level"),
            "mfcc": EncoderConfig(input="microphone", kind="mfcc"),
            "intent": EncoderConfig(input="text", kind="tfidf", options=INTENTS),
        },
        "head": HeadConfig(classes=("a", "b", "c")),
        "threads": 1,
    }
    return FusionConfig.model_validate(base | changes)


PROFILE = Profile(fusion=fusion())


def scripted(seconds: float, start_s: float = 0.0) -> Recording:
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=20)
    microphone = MicrophoneConfig(source="scripted")
    script = ScriptConfig(seed=3)
    return list(messages(script, camera, microphone, seconds, start_s=start_s, origin_ns=START_NS))


@pytest.fixture(scope="module")
def overloaded() -> tuple[Recording, float]:
    """Ten seconds with a restart, a late stream and overload, and the share of windows that were shed."""
    use_threads(1)
    arrivals = restarted(scripted(10.0), CAMERA, START_NS + 3 * SECOND_NS, START_NS + 5 * SECOND_NS)
    arrivals = late(arrivals, MICROPHONE, 300_000_000, START_NS + 6 * SECOND_NS, START_NS + 7 * SECOND_NS)
    run = LiveRun(fusion(), "first", speed=SPEED, slow=("level", 0.05))
    return run.run(arrivals), run.shed_share


@pytest.fixture(scope="module")
def recording(overloaded: tuple[Recording, float]) -> Recording:
    return overloaded[0]


def states_of(recording: Recording) -> list[FusedState]:
    return [one.header for one in recording if isinstance(one.header, FusedState)]


def test_a_live_run_under_overload_follows_from_its_recording(overloaded: tuple[Recording, float]) -> None:
    recording, shed_share = overloaded
    verdict = verify(recording, PROFILE)
    assert shed_share >= 0.3
    reasons = {state.modalities[name].reason for state in states_of(recording) for name in ("camera",)}
    assert "dead" in reasons
    assert any(state.modalities["microphone"].reason == "late" for state in states_of(recording))
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(recording)))
    assert not verdict.skipped


def test_replay_gives_the_live_states_byte_for_byte(recording: Recording) -> None:
    replayed = list(replay(recording, PROFILE))
    assert [unmeasured_fields(one) for one in replayed] == [
        unmeasured_fields(one) for one in states_of(recording)
    ]
    assert list(replay(recording, PROFILE)) == replayed


def test_a_head_with_a_memory_under_overload_follows_from_its_recording_too(tmp_path: Path) -> None:
    """Its state reaches back over ticks, never over a shed window, and engines share the windows."""
    dims = build_engine(fusion(), clock=lambda: 0).dims
    FeatureFusion(dims, ("a", "b", "c"), gru=8, ticks=5).save_pretrained(tmp_path)
    config = fusion(head=HeadConfig(weights=str(tmp_path)))
    recording = LiveRun(config, "gru", speed=SPEED, slow=("level", 0.03)).run(scripted(8.0))
    states, profile = states_of(recording), Profile(fusion=config)
    assert any(state.shed for state in states)
    assert list(replay(recording, profile, workers=1)) == list(replay(recording, profile, workers=2))
    verdict = verify(recording, profile)
    assert (verdict.exit_code, verdict.equal) == (0, len(states))
    later = verify([m for m in recording if m.received_ns >= START_NS + 2 * SECOND_NS], profile)
    assert (later.exit_code, later.different) == (0, 0)
    assert later.equal > 0


def test_what_is_measured_is_left_out_as_its_declaration_says(recording: Recording) -> None:
    state = states_of(recording)[-1]
    assert state.latency.total_ms > 0
    assert structs.asdict(state).keys() - unmeasured_fields(state).keys() == {
        "sent_ns",
        "source",
        "latency",
        "correction_ns",
    }


def changed(recording: Recording, number: int, **update: Any) -> Recording:
    """The recording with fields of one state changed."""
    at = [index for index, one in enumerate(recording) if isinstance(one.header, FusedState)][number]
    header = structs.replace(recording[at].header, **update)
    return [*recording[:at], structs.replace(recording[at], header=header), *recording[at + 1 :]]


def test_the_first_divergence_is_named_by_topic_seq_and_field(recording: Recording) -> None:
    state = states_of(recording)[7]
    likely = 0.25
    first, _, last = state.fused.probabilities
    fused = structs.replace(state.fused, probabilities=(first, likely, last))
    verdict = verify(changed(recording, 7, fused=fused), PROFILE)
    assert (verdict.exit_code, verdict.different) == (1, 1)
    assert verdict.first is not None
    assert (verdict.first.topic, verdict.first.seq) == ("state/fused", 7)
    actual = state.fused.probabilities[1]
    assert verdict.first.difference == Difference("fused.probabilities.1", likely, actual)


@pytest.mark.parametrize("update", [{"tick": 17, "stamp_ns": 1_700_000_000}, {"shed": 9}, {"seq": 90}])
def test_a_state_that_was_not_due_or_is_numbered_wrongly_is_different(
    recording: Recording, update: dict[str, int]
) -> None:
    assert verify(changed(recording, 7, **update), PROFILE).exit_code == 1


def left_out(recording: Recording, pick: Callable[[Message[Header]], bool]) -> Recording:
    return [one for one in recording if not pick(one)]


def test_a_missed_input_is_named_and_the_rest_is_verified(recording: Recording) -> None:
    def missed(one: Message[Header]) -> bool:
        return one.topic == MICROPHONE and one.header.seq == 100

    verdict = verify(left_out(recording, missed), PROFILE)
    assert verdict.exit_code == 2
    assert verdict.missed == [Missed(MICROPHONE, "scripted#0", 100)]
    assert any("missed microphone/main seq 100" in line for line in verdict.lines())
    assert verdict.different == 0
    assert verdict.equal > len(states_of(recording)) / 2


def test_a_missed_journal_is_a_hole_and_no_more(recording: Recording) -> None:
    verdict = verify(
        left_out(recording, lambda one: isinstance(one.header, Journal) and one.header.seq == 6), PROFILE
    )
    assert verdict.exit_code == 2
    assert [one.topic for one in verdict.missed] == ["journal/fusion"]
    assert verdict.equal > len(states_of(recording)) / 2


def test_a_state_the_recorder_missed_disturbs_no_other(recording: Recording) -> None:
    def missed(one: Message[Header]) -> bool:
        return isinstance(one.header, FusedState) and one.header.seq in (5, 6, 11)

    verdict = verify(left_out(recording, missed), PROFILE)
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(recording)) - 3)


@pytest.mark.parametrize("began_s", [0.6, 2.2, 4.1, 6.4, 6.9, 8.0])
def test_a_recording_that_began_late_is_verified_from_there(recording: Recording, began_s: float) -> None:
    began_ns = START_NS + round(began_s * SECOND_NS)
    later = left_out(recording, lambda one: one.received_ns < began_ns)
    verdict = verify(later, PROFILE)
    assert (verdict.exit_code, verdict.different, verdict.missed) == (0, 0, [])
    assert set(verdict.skipped) == {"the beginning of the fusion is not recorded"}
    # what is left out reaches back before the beginning: a command in force for 3 s, a journal, a slow window
    reach_s = 3.0 + 0.25 + 0.3
    tolerable = sum(1 for state in states_of(later) if state.stamp_ns < began_ns + reach_s * SECOND_NS)
    assert sum(verdict.skipped.values()) <= tolerable + 1


@pytest.mark.parametrize("ended_s", [2.0, 4.3, 6.5, 9.0])
def test_a_recording_cut_off_anywhere_is_verified_up_to_there(recording: Recording, ended_s: float) -> None:
    """Journals may be on the disk before the frames they name: each kind of topic is written on its own."""
    ended_ns = START_NS + round(ended_s * SECOND_NS)

    def lost(one: Message[Header]) -> bool:
        return one.received_ns > ended_ns - (400_000_000 if one.topic == CAMERA else 0)

    cut = left_out(recording, lost)
    verdict = verify(cut, PROFILE)
    assert (verdict.exit_code, verdict.missed) == (0, [])
    assert verdict.equal >= sum(1 for s in states_of(cut) if s.stamp_ns < ended_ns - 1_000_000_000)


def test_a_restarted_fusion_is_another_core(recording: Recording) -> None:
    again = [
        structs.replace(one, header=structs.replace(one.header, source="scripted#1"))
        for one in scripted(4.0, start_s=11.0)
    ]
    second = LiveRun(fusion(), "second", speed=SPEED).run(again)
    # the first one is killed: its last journals are never sent
    killed_ns = START_NS + round(9.2 * SECOND_NS)
    first = left_out(
        recording, lambda one: one.received_ns > killed_ns and one.topic.startswith(("journal", "health"))
    )
    both = [*first, *second]
    verdict = verify(both, PROFILE)
    assert verdict.exit_code == 0
    assert set(verdict.skipped) <= {
        "the fusion ended before it journaled their inputs",
        "no journal names what was shed for them",
    }
    assert verdict.equal >= len(states_of(second))


def test_another_fusion_beside_it_is_left_alone(recording: Recording) -> None:
    other = LiveRun(fusion(name="other", hop_ms=200), "other", speed=SPEED).run(scripted(4.0))
    aside = [
        structs.replace(one, topic=one.topic.replace("/fusion", "/second"))
        for one in other
        if kind_of(one.topic) in ("journal", "clock", "state")
    ]
    both = sorted([*recording, *aside], key=lambda one: one.received_ns)
    verdict = verify(both, PROFILE)
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(recording)))


def test_without_journals_it_says_what_to_record(recording: Recording) -> None:
    verdict = verify(left_out(recording, lambda one: isinstance(one.header, Journal)), PROFILE)
    assert verdict.exit_code == 2
    assert "record journal/*" in verdict.obstacles[0]


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        ({"record": True}, "the fusion published none while it was recorded"),
        ({"recorder": {"topics": ["journal/*", "clock/*", "camera/*"]}}, "the fusion published none"),
        ({"recorder": {"topics": ["camera/*"]}}, "record journal/* and clock/* too"),
    ],
)
def test_what_was_recorded_already_is_no_advice(
    tmp_path: Path, recording: Recording, recorder: dict[str, Any], reason: str
) -> None:
    with_recorder = Profile.model_validate(PROFILE.model_dump() | recorder)
    with SessionWriter(tmp_path / "early.mcap") as writer:
        writer.add_metadata("profile", with_recorder.model_dump(mode="json"))
        for message in recording[:50]:
            if message.topic.startswith(("camera/", "microphone/")):
                writer.write(message)
    verdict = verify(tmp_path / "early.mcap")
    assert verdict.exit_code == 2
    assert reason in verdict.obstacles[0]


def test_without_states_there_is_nothing_to_compare(recording: Recording) -> None:
    verdict = verify(left_out(recording, lambda one: isinstance(one.header, FusedState)), PROFILE)
    assert verdict.exit_code == 2
    assert verdict.obstacles == ["it contains no state/fused that could be compared"]


def test_another_grid_is_another_journal(recording: Recording) -> None:
    verdict = verify(recording, Profile(fusion=fusion(hop_ms=50.0)))
    assert verdict.exit_code == 2
    assert "give the profile that journal/fusion had" in verdict.obstacles[0]


def test_another_head_is_another_model(recording: Recording) -> None:
    verdict = verify(recording, Profile(fusion=fusion(seed=2)))
    assert verdict.exit_code == 2
    assert any("weights hash was" in line for line in verdict.obstacles)
    assert (verdict.equal, verdict.different) == (0, 0)


def test_a_gpu_that_is_not_here_is_said(recording: Recording) -> None:
    there = [
        structs.replace(one, header=structs.replace(one.header, device={"device": "cuda:63"}))
        if isinstance(one.header, Health)
        else one
        for one in recording
    ]
    verdict = verify(there, PROFILE)
    assert (verdict.exit_code, verdict.obstacles) == (
        2,
        ["it was computed on cuda:63, which this machine does not have"],
    )


def test_an_input_that_never_comes_is_not_waited_for(recording: Recording) -> None:
    """Memory stays bounded: after a while it counts as missed, and the reader goes on."""
    from perception.session.recompute.journal import steps

    quiet = left_out(recording, lambda one: one.topic == MICROPHONE)
    far_ns = quiet[-1].received_ns + PATIENCE_NS + SECOND_NS
    after = Message("clock/other", Health(stamp_ns=far_ns, node="x"), received_ns=far_ns)
    found = list(steps([*quiet, after], lambda _: True))
    assert any(isinstance(one, Missed) and one.topic == MICROPHONE for one in found)


def written(recording: Recording, file: Path, profile: Profile = PROFILE) -> Path:
    with SessionWriter(file) as writer:
        writer.add_metadata("profile", profile.model_dump(mode="json"))
        for one in recording:
            writer.write(one)
    return file


def test_a_file_that_another_program_wrote_anew_is_verified_too(recording: Recording, tmp_path: Path) -> None:
    source = written(recording, tmp_path / "s.mcap")
    rewritten(source, tmp_path / "r.mcap", use_chunking=False)
    verdict = verify(tmp_path / "r.mcap")
    assert verdict.exit_code == 0, list(verdict.lines())


def test_the_command_prints_and_exits_as_promised(recording: Recording, tmp_path: Path) -> None:
    runner = CliRunner()
    same = runner.invoke(
        verify_command, [str(written(recording, tmp_path / "a.mcap"))], standalone_mode=False
    )
    assert same.output.startswith(f"same: {len(states_of(recording))} of ")
    assert same.return_value == 0
    other = written(changed(recording, 3, shed=8), tmp_path / "b.mcap")
    different = runner.invoke(verify_command, [str(other)], standalone_mode=False)
    assert different.return_value == 1
    assert "first divergence: state/fused seq 3" in different.output
    missing = runner.invoke(verify_command, [str(tmp_path / "none.mcap")], standalone_mode=False)
    assert missing.return_value == 2
    assert "cannot open" in missing.output


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ({"a": {"b": (1.0, 2.0)}}, {"a": {"b": (1.0, 2.5)}}, "a.b.1"),
        ({"a": 1}, {}, "a"),
        ({"a": (1,)}, {"a": (1, 2)}, "a.1"),
        ({"a": 0.0}, {"a": -0.0}, "a"),
        ({"a": None}, {"a": 0}, "a"),
        ({"a": 1}, {"a": 1.0}, "a"),
    ],
)
def test_the_first_difference_is_found(one: Any, other: Any, path: str) -> None:
    difference = first_difference(one, other)
    assert difference is not None
    assert difference.path == path


def test_a_tolerance_is_for_floats_alone() -> None:
    assert first_difference({"a": 1.0, "b": (0.1,)}, {"b": (0.1001,), "a": 1.0}, tolerance=1e-3) is None
    assert first_difference({"a": 1}, {"a": 2}, tolerance=5.0) is not None


def test_sound_of_a_block_is_no_header(recording: Recording) -> None:
    assert any(isinstance(one.header, AudioBlock) and len(one.payload) for one in recording)
