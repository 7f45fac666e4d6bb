"""Conditions of signals: from header to window to state, live and recomputed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec import structs
from pydantic import ValidationError

from perception.devices.received import ReceivedSignals
from perception.devices.signal.frames import FrameJudge
from perception.features.window import CONTEXT_NS
from perception.fusion.build import build_engine
from perception.fusion.core import FusionCore
from perception.fusion.ledger import Ledger
from perception.fusion.presence import Presence
from perception.fusion.window import CameraSlice, Window
from perception.messages import FusedState, Header, Journal, Message, condition_of, with_condition
from perception.profile import InputConfig
from perception.session import read
from perception.session.recompute.engines import replay
from perception.session.recompute.verify import verify
from perception.units import SECOND_NS
from tests.live import LiveRun, late
from tests.streams import (
    CAMERA,
    MICROPHONE,
    MS,
    START_NS,
    arrivals,
    block,
    camera_stream,
    config,
    frame,
    microphone_stream,
    run,
    run_live,
    text,
)
from tests.test_verify import PROFILE, fusion, scripted

GOLDEN = Path(__file__).parent / "golden" / "conditions.mcap"
Judged = Mapping[str, list[tuple[float, float, str]]]
"""By topic: conditions of what happened from one time to another, in seconds."""


def judged(stream: list[Message[Header]], conditions: Judged) -> list[Message[Header]]:
    """Set the conditions of a stream as a capture node does; `ok` where none is given."""

    def of(message: Message[Header]) -> str:
        at_s = (message.header.stamp_ns - START_NS) / 1e9
        spans = conditions.get(message.topic, [])
        return next((name for start, stop, name in spans if start <= at_s < stop), "ok")

    return [with_condition(message, of(message)) for message in stream]


def windows_of(conditions: Judged, seconds: float = 4.0, **changes: object) -> dict[int, Window]:
    """Windows of a camera and a microphone, by their end in ms."""
    streams = [list(camera_stream(seconds)), list(microphone_stream(seconds))]
    core = FusionCore(config(**changes), rules=int(str(changes.pop("rules", 2))))
    windows = run(core, arrivals([judged(one, conditions) for one in streams], lambda _: 0))
    return {(window.end_ns - START_NS) // MS: window for window in windows}


def test_a_frame_of_a_bad_condition_is_absent_and_returns_at_once() -> None:
    windows = windows_of({CAMERA: [(1.0, 2.0, "black"), (2.5, 3.0, "blurred")]})
    seen = {ms: window.inputs["camera"] for ms, window in windows.items()}
    assert {
        (item.presence, item.reason, item.condition) for ms, item in seen.items() if 1000 <= ms < 2000
    } == {("absent", "black", "black")}
    assert all(seen[ms].data is None and seen[ms].age_ns is not None for ms in range(1000, 2000, 100))
    assert {(seen[ms].presence, seen[ms].condition, seen[ms].suspect) for ms in range(2000, 2500, 100)} == {
        ("present", "ok", False)
    }
    assert {(seen[ms].presence, seen[ms].condition, seen[ms].suspect) for ms in range(2500, 3000, 100)} == {
        ("present", "blurred", True)
    }


def test_the_frame_before_is_left_out_while_it_is_of_a_bad_condition() -> None:
    windows = windows_of({CAMERA: [(1.0, 2.0, "frozen")]})
    data = [windows[ms].inputs["camera"].data for ms in (2000, 2100, 2200)]
    previous = [slice_.previous for slice_ in data if isinstance(slice_, CameraSlice)]
    assert [frame is None for frame in previous] == [True, False, False]


def test_sound_is_of_the_worst_condition_in_the_span_that_the_profile_names() -> None:
    """A window of 980 ms: the block that ended 984 ms before its end no longer counts."""
    windows = windows_of({MICROPHONE: [(1.504, 1.6, "silent"), (1.6, 2.0, "clipped")]})
    heard = {ms: windows[ms].inputs["microphone"] for ms in range(1400, 3300, 100)}
    reached = [ms for ms, item in heard.items() if item.condition == "silent"]
    assert reached == list(range(1600, 2600, 100))
    assert {(heard[ms].presence, heard[ms].reason) for ms in reached} == {("absent", "silent")}
    assert [ms for ms, item in heard.items() if item.condition == "clipped"] == [2600, 2700, 2800, 2900]
    assert {(heard[ms].presence, heard[ms].suspect) for ms in (2600, 2900)} == {("present", True)}
    assert {heard[ms].condition for ms in (1400, 1500, 3000, 3200)} == {"ok"}
    assert CONTEXT_NS > 10 * MS  # else the bound of the span was not tested


def test_the_profile_decides_what_is_absent_and_what_is_suspect() -> None:
    inputs = {
        "camera": InputConfig(topic=CAMERA, absent_when=("blurred",), suspect_when=("black", "blurred")),
        "microphone": InputConfig(topic=MICROPHONE, absent_when=(), suspect_when=()),
    }
    conditions = {
        CAMERA: [(1.0, 2.0, "black"), (2.0, 3.0, "blurred")],
        MICROPHONE: [(0.0, 4.0, "silent")],
    }
    windows = windows_of(conditions, inputs=inputs)
    black, blurred = windows[1500].inputs["camera"], windows[2500].inputs["camera"]
    assert (black.presence, black.condition, black.suspect) == ("present", "black", True)
    assert (blurred.presence, blurred.reason, blurred.suspect) == ("absent", "blurred", False)
    silent = windows[2500].inputs["microphone"]
    assert (silent.presence, silent.condition, silent.suspect) == ("present", "silent", False)


def test_a_condition_of_a_later_version_is_suspect() -> None:
    item = windows_of({CAMERA: [(1.0, 2.0, "lens fell off")]})[1500].inputs["camera"]
    assert (item.presence, item.condition, item.suspect) == ("present", "lens fell off", True)


def test_a_stream_of_which_nothing_comes_is_starting_then_lagging_then_lost() -> None:
    stream = judged(list(camera_stream(1.0)), {})
    windows = run_live(FusionCore(config()), stream, START_NS + 7000 * MS)
    by_end = {(window.end_ns - START_NS) // MS: window.inputs for window in windows}
    camera = {ms: inputs["camera"] for ms, inputs in by_end.items()}
    assert (camera[900].presence, camera[900].condition) == ("present", "ok")
    assert (camera[1700].reason, camera[1700].condition) == ("late", "lagging")
    assert (camera[2500].reason, camera[2500].condition) == ("dead", "lost")
    microphone = {ms: inputs["microphone"].condition for ms, inputs in by_end.items()}
    assert (microphone[4900], microphone[5100]) == ("starting", "lost")
    assert {by_end[ms]["text"].condition for ms in by_end} == {""}


def test_rules_from_before_conditions_read_none() -> None:
    core = FusionCore(config(), rules=1)
    stream = judged(list(camera_stream(1.0)), {CAMERA: [(0.0, 1.0, "black")]})
    for window in run(core, stream):
        camera = window.inputs["camera"]
        assert (camera.presence in ("present", "held"), camera.condition, camera.suspect) == (True, "", False)


def test_lists_at_their_defaults_change_no_hash_of_a_profile() -> None:
    inputs = {"camera": InputConfig(topic=CAMERA, absent_when=("black",))}
    plain, listed = config(), config(inputs=inputs, encoders={})
    assert set(plain.model_dump()["inputs"]["camera"]) == {"topic", "length_ms", "max_age_ms", "ttl_ms"}
    again = type(listed).model_validate(listed.model_dump(mode="json"))
    assert again.inputs["camera"].absent_when == ("black",)
    assert again == listed


@pytest.mark.parametrize("name", ["ok", "starting", "broken"])
def test_only_a_fault_can_make_data_absent(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        InputConfig.model_validate({"topic": CAMERA, "absent_when": [name]})


CHANGING: Judged = {
    CAMERA: [(1.03, 1.91, "black"), (2.52, 3.03, "blurred"), (3.03, 3.58, "frozen"), (4.4, 6.0, "later")],
    MICROPHONE: [(0.0, 1.45, "starting"), (2.01, 2.24, "silent"), (3.33, 3.61, "clipped"), (4.9, 6, "DC")],
}


def live(stream: list[Message[Header]], signals: ReceivedSignals | None = None) -> list[Message[Header]]:
    """What a fusion publishes that sheds nothing, and its inputs: core, ledger and engine without threads."""
    core, engine, presence = FusionCore(fusion()), build_engine(fusion(), clock=lambda: 0), Presence()
    ledger = Ledger(core, state_topic="state/fused", state_source="fusion#1")
    counts: Counter[str] = Counter()
    recording: list[Message[Header]] = []

    def record(topic: str, header: Header, at_ns: int) -> None:
        sent = structs.replace(header, seq=counts[topic], sent_ns=at_ns, source="fusion#1")
        counts[topic] += 1
        recording.append(Message(topic, sent, received_ns=at_ns))

    for number, message in enumerate(one for one in stream if not one.topic.startswith("label/")):
        recording.append(message)
        condition = signals.judge(message) if signals is not None else ""
        received = with_condition(message, condition) if condition else message
        for window in ledger.push(received, condition):
            record("state/fused", engine.run(presence.mark_held(window)), message.received_ns)
        if number % 20 == 19 and (journal := ledger.journal(message.received_ns)) is not None:
            record("journal/fusion", journal, message.received_ns)
    if (journal := ledger.journal(stream[-1].received_ns, last=True)) is not None:
        record("journal/fusion", journal, stream[-1].received_ns)
    return recording


@pytest.fixture(scope="module")
def recording() -> list[Message[Header]]:
    return live(judged(scripted(6.0), CHANGING))


def states_of(recording: list[Message[Header]]) -> list[FusedState]:
    return [one.header for one in recording if isinstance(one.header, FusedState)]


def test_a_state_names_the_condition_of_each_stream(recording: list[Message[Header]]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for state in states_of(recording):
        for name, item in state.modalities.items():
            seen.add((name, item.presence, item.condition))
    assert {
        *(("camera", "present", "ok"), ("camera", "absent", "black"), ("camera", "present", "blurred")),
        *(("camera", "absent", "frozen"), ("camera", "present", "later")),
        *(("microphone", "present", "starting"), ("microphone", "absent", "silent")),
        *(("microphone", "present", "clipped"), ("microphone", "absent", "DC")),
    } <= seen


def test_conditions_follow_from_the_recording(recording: list[Message[Header]]) -> None:
    verdict = verify(recording, PROFILE)
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(recording))), str(verdict.first)
    assert [one.modalities for one in replay(recording, PROFILE)] == [
        one.modalities for one in states_of(recording)
    ]


@pytest.mark.parametrize("began_s", [1.2, 2.1, 2.9, 3.3, 4.1])
def test_conditions_follow_from_any_cut(recording: list[Message[Header]], began_s: float) -> None:
    later = [one for one in recording if one.received_ns >= START_NS + round(began_s * 1e9)]
    verdict = verify(later, PROFILE)
    assert (verdict.exit_code, verdict.different) == (0, 0), str(verdict.first)
    assert verdict.equal >= 5


def unjudged(seconds: float) -> list[Message[Header]]:
    """A stream of a publisher that judges nothing: black and all zeros from 2 to 5 seconds."""
    _, black = cv2.imencode(".jpg", np.zeros((120, 160, 3), np.uint8))

    def lying(message: Message[Header]) -> Message[Header]:
        if not 2 * SECOND_NS <= message.header.stamp_ns - START_NS < 5 * SECOND_NS:
            return message
        if message.topic == MICROPHONE:
            return structs.replace(message, payload=bytes(len(message.payload)))
        return structs.replace(message, payload=black.tobytes()) if message.topic == CAMERA else message

    return [lying(message) for message in scripted(seconds)]


def conditions_of(states: Iterable[FusedState], name: str) -> dict[int, tuple[str, str]]:
    """Presence and condition of an input, by the end of the window in ms."""
    return {
        (state.stamp_ns - START_NS) // MS: (state.modalities[name].presence, state.modalities[name].condition)
        for state in states
    }


@pytest.fixture(scope="module")
def foreign() -> list[Message[Header]]:
    return live(unjudged(8.0), ReceivedSignals())


def test_the_loop_of_a_fusion_judges_what_nobody_judged_and_journals_it() -> None:
    recording = LiveRun(fusion(), "foreign", speed=2.0).run(unjudged(5.0))
    entries = [entry for one in recording if isinstance(one.header, Journal) for entry in one.header.entries]
    assert {"black", "silent"} & {entry.condition for entry in entries}  # on a busy machine not both
    verdict = verify(recording, PROFILE)
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(recording))), str(verdict.first)


@pytest.mark.parametrize(("name", "lie"), [("camera", "black"), ("microphone", "silent")])
def test_a_lie_of_a_publisher_that_does_not_judge_is_absent_until_it_ends(
    foreign: list[Message[Header]], name: str, lie: str
) -> None:
    seen = conditions_of(states_of(foreign), name)
    assert {seen[ms] for ms in range(1500, 2000, 100) if ms in seen} == {("present", "ok")}
    assert {seen[ms] for ms in range(4500, 5000, 100) if ms in seen} == {("absent", lie)}
    assert {seen[ms] for ms in range(7500, 8000, 100) if ms in seen} == {("present", "ok")}


def test_what_was_judged_on_receipt_is_journaled_and_follows_from_the_recording(
    foreign: list[Message[Header]],
) -> None:
    entries = [entry for one in foreign if isinstance(one.header, Journal) for entry in one.header.entries]
    assert {"ok", "black", "silent"} <= {entry.condition for entry in entries}
    assert {condition_of(one.header) for one in foreign} == {""}  # nothing recorded was changed
    verdict = verify(foreign, PROFILE)
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(foreign))), str(verdict.first)
    later = verify([one for one in foreign if one.received_ns >= START_NS + 3 * SECOND_NS], PROFILE)
    assert (later.exit_code, later.different) == (0, 0), str(later.first)


def test_without_a_journal_the_same_is_judged_again() -> None:
    offline = list(replay(unjudged(8.0), PROFILE))
    assert list(replay(late(unjudged(8.0), "text/none", 0, 0, 0), PROFILE, workers=2)) == offline
    for name, lie in (("camera", "black"), ("microphone", "silent")):
        seen = conditions_of(offline, name)
        assert {seen[ms] for ms in range(4500, 5000, 100)} == {("absent", lie)}
        assert {seen[ms] for ms in range(7000, 7900, 100)} == {("present", "ok")}


@pytest.mark.parametrize(("topic", "lie"), [(CAMERA, "frozen"), (MICROPHONE, "stuck")])
def test_under_a_lie_the_head_computes_what_it_computes_without_the_stream(topic: str, lie: str) -> None:
    """So its accuracy is that of the stream being absent; `benchmarks/demo_lies.py` measures it."""
    stream = judged(scripted(3.0), {topic: [(0.0, 3.0, lie)]})
    without = [one for one in stream if one.topic != topic]
    lied, absent = ({one.tick: one.fused for one in replay(part, PROFILE)} for part in (stream, without))
    assert len(lied.keys() & absent.keys()) > 20
    assert all(lied[tick] == absent[tick] for tick in lied.keys() & absent.keys())


def test_a_condition_that_a_publisher_claims_is_taken_as_its_word() -> None:
    claimed = [with_condition(one, "ok") for one in unjudged(5.0)]
    seen = conditions_of(replay(claimed, PROFILE), "camera")
    assert seen[4500] == ("present", "ok")


def test_data_that_cannot_be_decoded_is_not_judged() -> None:
    signals = ReceivedSignals()
    broken = [frame(0, START_NS, encoding="jpeg"), block(0, START_NS, np.full(512, np.nan), 0)]
    broken = [with_condition(one, "") for one in broken]
    assert {signals.judge(one) for one in broken} == {FrameJudge().condition}
    assert signals.judge(text(0, START_NS, "come")) == ""


def test_a_session_recorded_with_conditions_verifies() -> None:
    """Recorded by rules 2: a camera whose node judged it, a microphone that the fusion judged."""
    states = [one.header for one in read(GOLDEN) if isinstance(one.header, FusedState)]
    found = {(name, item.presence, item.condition) for one in states for name, item in one.modalities.items()}
    assert {
        *(("camera", "absent", "black"), ("camera", "present", "blurred"), ("camera", "absent", "frozen")),
        *(
            ("camera", "present", "later"),
            ("microphone", "absent", "silent"),
            ("microphone", "present", "ok"),
        ),
    } <= found
    assert {condition_of(one.header) for one in read(GOLDEN, ["microphone/*"])} == {""}
    verdict = verify(GOLDEN)
    assert verdict.obstacles == [] or verdict.notes, verdict.obstacles
    assert verdict.equal + verdict.different == len(states)
    assert verdict.equal == len(states) or verdict.notes, str(verdict.first)
