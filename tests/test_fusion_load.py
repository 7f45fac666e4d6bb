"""Presence compares with published states, and event time never runs ahead of the host."""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from perception.errors import SessionError
from perception.features.resample import Resampler
from perception.fusion.core import MAX_COUNTED, MAX_TOPICS, RULES, FusionCore
from perception.fusion.early import Early
from perception.fusion.presence import Presence
from perception.fusion.reader import InputReader
from perception.fusion.window import AudioSlice
from perception.messages import (
    AudioBlock,
    CameraFrame,
    FusedState,
    Header,
    Journal,
    Message,
    TextCommand,
    reached_ns,
)
from perception.models.encoder import AudioInput
from perception.profile import Profile
from perception.session import read
from perception.session.pace import schedule
from perception.session.recompute.cutting import cut_as_arrived
from perception.session.recompute.journal import steps
from perception.session.recompute.verify import verify
from perception.units import SECOND_NS, Counts
from tests.live import LiveRun
from tests.streams import (
    CAMERA,
    MICROPHONE,
    MS,
    START_NS,
    TEXT,
    block,
    camera_stream,
    clock_tick,
    config,
    frame,
    run,
    text,
)
from tests.test_verify import SPEED, fusion, scripted, states_of

SHED = Path(__file__).parent / "golden" / "shed.mcap"
"""Two seconds in which more than half of the windows were shed, recorded by rules 0. Never written again."""
ODD_RATE = Path(__file__).parent / "golden" / "odd_rate.mcap"
"""Two and a half seconds of sound at 44,101 Hz, recorded by rules 0. Never written again."""
Stream = list[Message[Header]]


def wrongly_held(states: list[FusedState], modality: str) -> int:
    """Count states with `held` for a message that the last state did not use."""
    wrong, before = 0, None
    for state in states:
        now = state.modalities[modality]
        wrong += now.presence == "held" and (now.topic, now.seqs) != before
        before = (now.topic, now.seqs) if now.presence != "absent" else before
    return wrong


# --- presence ---


def test_what_is_new_since_the_last_published_state_is_present_though_its_window_was_shed() -> None:
    stream: Stream = [frame(k, START_NS + k * 200 * MS) for k in range(10)]
    stream += [text(0, START_NS + 250 * MS, "come here")]
    stream.sort(key=lambda one: one.header.stamp_ns)
    core, presence = FusionCore(config(lateness_ms=1.0)), Presence()
    windows = {w.end_ns - START_NS: w for one in stream for w in core.push(one)}
    for at_ms in (300, 400):  # shed: the first with this frame, and with this command
        assert windows[at_ms * MS].inputs["camera"].presence == "present"
    published = [presence.mark_held(windows[at_ms * MS]) for at_ms in (100, 500, 600, 700, 900, 1000)]
    assert [w.inputs["camera"].presence for w in published] == [
        *("present", "present", "present", "held", "present", "present")
    ]
    assert [w.inputs["text"].presence for w in published] == [
        *("absent", "present", "held", "held", "held", "held")
    ]
    assert {w.inputs["text"].reason for w in published[2:]} == {"in force"}


def test_under_load_states_say_held_only_of_what_was_published_and_follow_from_the_recording() -> None:
    commands = [text(k, START_NS + (150 + 450 * k) * MS, f"come {k}") for k in range(12)]
    arrived = [structs.replace(one, received_ns=one.header.stamp_ns) for one in commands]
    stream = sorted(
        [*(one for one in scripted(6.0) if not one.topic.startswith("text/")), *arrived],
        key=lambda one: one.received_ns,
    )
    recording = LiveRun(fusion(hop_ms=50.0), "held", speed=SPEED, slow=("motion", 0.03)).run(stream)
    states = states_of(recording)
    assert sum(state.shed for state in states) > len(states) / 2
    assert wrongly_held(states, "camera") == wrongly_held(states, "text") == 0
    taken = {s.modalities["text"].seqs for s in states} - {None}
    present = {s.modalities["text"].seqs for s in states if s.modalities["text"].presence == "present"}
    assert present == taken
    assert len(taken) > 6
    verdict = verify(recording, Profile(fusion=fusion(hop_ms=50.0)))
    assert (verdict.exit_code, verdict.equal) == (0, len(states))


def test_a_session_with_shed_windows_of_earlier_rules_verifies_by_those() -> None:
    states = [one.header for one in read(SHED) if isinstance(one.header, FusedState)]
    assert wrongly_held(states, "camera") + wrongly_held(states, "text") > 0
    verdict = verify(SHED)
    assert verdict.obstacles == [] or verdict.notes, verdict.obstacles
    assert verdict.equal + verdict.different == len(states) == 21
    assert verdict.equal == len(states) or verdict.notes, str(verdict.first)


def test_a_session_of_earlier_rules_at_an_odd_rate_verifies_by_exact_filters() -> None:
    states = [one.header for one in read(ODD_RATE) if isinstance(one.header, FusedState)]
    present = [state.modalities["microphone"].presence == "present" for state in states]
    assert (len(states), sum(present)) == (29, 15)
    verdict = verify(ODD_RATE)
    assert verdict.obstacles == [] or verdict.notes, verdict.obstacles
    assert verdict.equal + verdict.different == len(states)
    assert verdict.equal == len(states) or verdict.notes, str(verdict.first)


def test_windows_are_resampled_by_the_filters_of_their_rules() -> None:
    """At an odd rate, here in one reader: those of rules 0 by exact filters, all others by the table."""
    rate_hz, blocks = 44_101, 135
    samples = np.random.default_rng(5).standard_normal(blocks * 441).astype(np.float32)
    stream: Stream = [
        block(k, START_NS + k * 10 * MS, samples[k * 441 : k * 441 + 441], k * 441, rate_hz)
        for k in range(blocks)
    ]
    reader = InputReader(config().inputs["microphone"])
    read_by = {}
    for rules in (0, RULES, 0):
        core = FusionCore(config(), rules=rules)
        window = [w for one in stream for w in core.push(one)][-1].inputs["microphone"].data
        assert isinstance(window, AudioSlice)
        data = reader.read(window).data
        assert isinstance(data, AudioInput)
        _, whole = Resampler(rate_hz, 16_000, exact=not rules).push(0, samples[: window.end_index])
        np.testing.assert_array_equal(data.waveform, whole[-data.waveform.size :])
        read_by[rules] = data.waveform
    assert not np.array_equal(read_by[0], read_by[RULES])


def test_rules_of_a_later_version_are_named_and_not_guessed() -> None:
    recording = LiveRun(fusion(), "later", speed=20.0).run(scripted(1.0))
    later = [
        structs.replace(one, header=structs.replace(one.header, before=structs.replace(before, rules=99)))
        if isinstance(one.header, Journal) and (before := one.header.before) is not None
        else one
        for one in recording
    ]
    with pytest.raises(
        SessionError, match=f"cut by rules 99; this version supports 0 to {RULES}: install a newer"
    ):
        verify(later, Profile(fusion=fusion()))


# --- what reaches ahead ---


def sound(seconds: float, stamp_ns: int, seq: int = 0) -> Message[Header]:
    samples = round(seconds * 16_000)
    return block(seq, stamp_ns, np.zeros(samples), 0)


@pytest.mark.parametrize("seconds", [1.1, 5.0, 30.0])
def test_a_block_whose_end_lies_ahead_is_refused_counted_and_moves_no_time(seconds: float) -> None:
    core = FusionCore(config())
    core.push(clock_tick(START_NS))
    due_ns = core.deadline_ns
    assert core.push(sound(seconds, START_NS)) == []
    assert core.counts[MICROPHONE] == {"end ahead": 1}
    assert core.deadline_ns == due_ns
    core.push(sound(0.5, START_NS, 1))
    assert core.mark().newest_ns == START_NS + 500 * MS
    assert core.counts[MICROPHONE] == {"end ahead": 1}


def test_a_core_of_earlier_rules_takes_such_a_block_as_it_did() -> None:
    core = FusionCore(config(), rules=0)
    core.push(clock_tick(START_NS))
    assert len(core.push(sound(5.0, START_NS))) > 40


def test_what_is_early_waits_in_its_order_and_what_is_too_early_is_refused() -> None:
    core = FusionCore(config())
    early = Early(core)
    ahead = [frame(k, START_NS + at_ms * MS) for k, at_ms in enumerate((0, 10, 500, 600, 1500))]
    for one in (*ahead, sound(1.2, START_NS), sound(0.4, START_NS, 1)):
        early.put(one, START_NS)
    assert [one.header.seq for one in early.due(START_NS)] == [0]
    assert early.next_ns == START_NS + 10 * MS
    taken = list(early.due(START_NS + 900 * MS))
    assert [reached_ns(one.header) - START_NS for one in taken] == [10 * MS, 400 * MS, 500 * MS, 600 * MS]
    assert early.next_ns is None
    assert core.counts == {
        CAMERA: {"early": 2, "stamp ahead": 1},
        MICROPHONE: {"end ahead": 1, "early": 1},
    }


def test_frames_of_a_clock_that_was_fast_are_dropped_when_it_is_set_back() -> None:
    early = Early(core := FusionCore(config()))
    for k in range(3):
        early.put(frame(k, START_NS + 500 * MS + k * 100 * MS), START_NS + k * 100 * MS)
    other = frame(0, START_NS + 650 * MS, source="other#1")
    early.put(other, START_NS + 250 * MS)
    early.put(frame(3, START_NS + 300 * MS), START_NS + 300 * MS)
    assert [one.header.seq for one in early.due(START_NS + 600 * MS)] == [3]
    assert list(early.due(START_NS + SECOND_NS)) == [other]
    assert core.counts[CAMERA] == {"early": 4, "clock set back": 3}


def test_the_room_for_what_is_early_is_bounded() -> None:
    early = Early(core := FusionCore(config()))
    for k in range(3000):
        early.put(frame(k, START_NS + 100 * MS + k), START_NS)
    assert core.counts[CAMERA] == {"early": 2048, "dropped": 952}
    assert sum(1 for _ in early.due(START_NS + SECOND_NS)) == 2048


@pytest.mark.parametrize("ahead_ms", [300, 900, 5000])
def test_a_publisher_whose_clock_is_fast_makes_no_state_of_the_future_and_nobody_late(ahead_ms: int) -> None:
    stream = [
        structs.replace(one, header=structs.replace(one.header, stamp_ns=one.header.stamp_ns + ahead_ms * MS))
        if one.topic == CAMERA
        else one
        for one in scripted(5.0)
    ]
    whole = structs.replace(sound(11.0, START_NS + 2 * SECOND_NS), received_ns=START_NS + 2 * SECOND_NS)
    again = structs.replace(whole, header=structs.replace(whole.header, source="user#1"))
    stream = sorted([*stream, again], key=lambda one: one.received_ns)
    run = LiveRun(fusion(), "fast", speed=SPEED)
    recording = run.run(stream)
    states = states_of(recording)
    assert all(state.stamp_ns <= state.sent_ns for state in states)
    assert len(states) + sum(state.shed for state in states) > 45
    audio = [
        s.modalities["microphone"].presence for s in states if 1200 * MS < s.stamp_ns - START_NS < 5000 * MS
    ]
    assert audio.count("present") > 0.9 * len(audio)
    verdict = verify(recording, Profile(fusion=fusion()))
    assert (verdict.exit_code, verdict.different) == (0, 0)


def test_a_long_block_of_a_recording_that_came_at_its_beginning_is_heard_as_it_plays() -> None:
    sounds = structs.replace(sound(11.0, START_NS), received_ns=START_NS)
    frames = [structs.replace(one, received_ns=one.header.stamp_ns) for one in camera_stream(11.0)]
    windows = [cut.window for cut in cut_as_arrived([sounds, *frames], config(lateness_ms=120.0))]
    assert {w.inputs["camera"].presence for w in windows} == {"present"}
    audio = [w.inputs["microphone"] for w in windows if w.end_ns >= START_NS + 1100 * MS]
    assert len(audio) > 95
    assert {item.presence for item in audio} == {"present"}


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_a_replay_publishes_such_a_block_as_it_plays(rate: float) -> None:
    came = structs.replace(sound(11.0, START_NS), received_ns=START_NS)
    parts = list(schedule([came], rate))
    assert len(parts) > 100
    assert all(due.due_ns >= reached_ns(due.message.header) - 1 for due in parts)
    headers = [due.message.header for due in parts]
    assert sum(one.samples for one in headers if isinstance(one, AudioBlock)) == 11 * 16_000 / rate


# --- topics ---


def test_topics_of_a_pattern_give_up_their_place_and_are_counted() -> None:
    core = FusionCore(config())
    core.push(clock_tick(START_NS))
    for k in range(80 * MAX_TOPICS):
        now_ns = START_NS + k * 10 * MS
        core.push(clock_tick(now_ns))
        message = TextCommand(stamp_ns=now_ns, source=f"c{k}#1", text="hi")
        core.push(Message(f"text/c{k}", message))
        core.push(Message(f"text/d{k}", structs.replace(message, stamp_ns=now_ns + 10 * SECOND_NS)))
    assert core.counts["text/*"]["topics forgotten"] == 79 * MAX_TOPICS
    assert sum(counts["stamp ahead"] for counts in core.counts.values()) == 80 * MAX_TOPICS
    assert len(core.mark().newest_of_topic) == MAX_TOPICS
    assert len(core.counts) < 10 * MAX_TOPICS
    core.push(frame(0, now_ns + 1))
    core.push(Message(TEXT, text(0, now_ns + 2, "come here").header))
    *_, window = core.push(clock_tick(now_ns + 400 * MS))
    assert window.inputs["camera"].presence == "present"
    assert window.inputs["text"].topic == TEXT
    assert core.counts[CAMERA] == core.counts[TEXT] == {}


def test_late_commands_of_ever_new_topics_are_all_counted_in_bounded_memory() -> None:
    core = FusionCore(config())
    core.push(clock_tick(START_NS))
    core.push(clock_tick(START_NS + SECOND_NS))
    for k in range(20 * MAX_TOPICS):  # each is older than all before, and gives up its place at once
        core.push(Message(f"text/c{k}", text(0, START_NS + MS - k, "hi").header))
    assert sum(counts["late"] for counts in core.counts.values()) == 20 * MAX_TOPICS
    assert len(core.counts) <= MAX_COUNTED + 1


def test_a_topic_that_speaks_keeps_its_place() -> None:
    core = FusionCore(config())
    for k in range(3 * MAX_TOPICS):
        core.push(text(k, START_NS + k * 10 * MS, "here"))
        core.push(Message(f"text/c{k}", text(0, START_NS + k * 10 * MS + 1, "hi").header))
    assert core.counts[TEXT] == {}
    core.push(text(0, START_NS, "again"))
    assert core.counts[TEXT] == {"stamp backwards": 1}


def test_a_core_resumed_among_many_topics_forgets_the_same() -> None:
    stream: Stream = [
        Message(f"text/c{k % 97}", text(k, START_NS + k * 10 * MS, "hi").header) for k in range(400)
    ]
    first, second = FusionCore(config()), FusionCore(config())
    run(first, stream[:250])
    second.resume(first.mark(), lambda item: next(m for m in stream if m.header.seq == item.seq))
    for one in stream[250:]:
        first.push(one)
        second.push(one)
        assert first.mark() == second.mark()


def test_frames_and_commands_without_room_are_counted() -> None:
    core = FusionCore(config(lateness_ms=900.0, alignment="reproducible"))
    for k in range(300):
        core.push(frame(k, START_NS + k))
        core.push(text(k, START_NS + k, "hi"))
    assert core.counts == {CAMERA: {"dropped": 300 - 256}, TEXT: {"dropped": 300 - 64}, MICROPHONE: {}}


@pytest.mark.parametrize("form", ["s16", "f32"])
def test_sound_of_another_size_than_its_header_says_is_refused(form: str) -> None:
    core = FusionCore(config())
    core.push(clock_tick(START_NS))
    good = block(0, START_NS, np.zeros(1600), 0)
    header = structs.replace(good.header, format=form, samples=1601)
    core.push(structs.replace(good, header=header))
    assert len(core.push(clock_tick(START_NS + SECOND_NS))) > 1
    assert core.counts[MICROPHONE] == {"wrong size": 1}


@pytest.mark.parametrize("lost", [1, 4])
def test_long_sound_of_another_size_ends_no_reading_of_a_recording(lost: int) -> None:
    counts: Counts = defaultdict(Counter)
    long = block(0, START_NS, np.zeros(80_000), 0)
    stream = [structs.replace(long, payload=long.payload[:-lost], received_ns=START_NS), *camera_stream(1)]
    assert len(list(cut_as_arrived(stream, config(), counts))) > 5
    assert counts[MICROPHONE] == {"end ahead": 1}


def test_inputs_of_publishers_that_have_ended_are_not_kept_while_a_recording_is_read() -> None:
    kept: list[weakref.ref[Pixels]] = []

    def restarts() -> Iterator[Message[Header]]:
        for k in range(100):
            now_ns = START_NS + k * SECOND_NS
            header = CameraFrame(seq=0, stamp_ns=now_ns, source=f"c#{k}", width=2, height=1, encoding="mono8")
            pixels = Pixels(b"12")
            kept.append(weakref.ref(pixels))
            yield Message(CAMERA, header, pixels, now_ns)

    journal = Message("journal/fusion", Journal(stamp_ns=0, entries=()))
    reader = steps(chain(restarts(), [journal]), lambda _: True)
    assert next(reader)
    assert sum(one() is not None for one in kept) < 30


class Pixels(bytearray):
    """A payload that can be watched."""
