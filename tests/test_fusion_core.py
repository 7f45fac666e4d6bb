"""The rules of the fusion core, as scenarios over perturbed streams. No test sleeps."""

import random
import weakref
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from perception.clock.samples import SampleClock, device_to_host_ns
from perception.fusion.core import MAX_CUT_AT_ONCE, FusionCore
from perception.fusion.ledger import Backlog
from perception.fusion.window import AudioSlice, CameraSlice, TextSlice, Window, WindowInput
from perception.messages import AudioBlock, Header, Message
from perception.profile import InputConfig
from perception.topics import kind_of
from perception.units import SECOND_NS
from tests.streams import (
    CAMERA,
    MICROPHONE,
    MS,
    START_NS,
    TEXT,
    arrivals,
    block,
    camera_stream,
    clock_tick,
    config,
    end_ns,
    frame,
    microphone_stream,
    run,
    run_live,
    text,
    text_stream,
)


def all_streams(seconds: float) -> list[list[Message[Header]]]:
    return [list(camera_stream(seconds)), list(microphone_stream(seconds)), list(text_stream(seconds))]


def in_order(seconds: float) -> list[Message[Header]]:
    return arrivals(all_streams(seconds), lambda _: 0)


def content(window: Window) -> tuple[object, ...]:
    """A window by value, samples included, so that windows compare with ==."""
    parts: list[object] = [window.tick, window.end_ns]
    for name, item in sorted(window.inputs.items()):
        data = item.data
        if isinstance(data, AudioSlice):
            parts.append((data.samples.tobytes(), data.end_index, data.rate_hz, data.missing))
            item = structs.replace(item, data=None)
        parts.append((name, structs.replace(item, received_ns=None)))
    return tuple(parts)


def audio_of(window: Window) -> AudioSlice:
    data = window.inputs["microphone"].data
    assert isinstance(data, AudioSlice)
    return data


def test_windows_end_on_the_grid_one_per_hop() -> None:
    windows = run(FusionCore(config()), in_order(3.0))
    assert [w.end_ns for w in windows] == [w.tick * 100 * MS for w in windows]
    assert [w.tick for w in windows] == list(range(windows[0].tick, windows[0].tick + len(windows)))
    assert windows[0].end_ns == START_NS + 100 * MS


def test_a_window_holds_exactly_the_samples_before_its_end() -> None:
    for window in run(FusionCore(config()), in_order(3.0))[11:]:
        audio = audio_of(window)
        last = (window.end_ns - START_NS) * 16_000 // SECOND_NS
        np.testing.assert_array_equal(audio.samples, np.arange(last - 16_000, last))
        assert (audio.end_index, audio.missing) == (last, 0)


def test_a_window_holds_the_newest_frame_at_its_end_and_the_one_a_hop_before() -> None:
    for window in run(FusionCore(config()), in_order(2.0))[3:]:
        data = window.inputs["camera"].data
        assert isinstance(data, CameraSlice)
        assert data.previous is not None
        assert 0 <= window.end_ns - data.frame.header.stamp_ns < SECOND_NS // 30 + 1
        assert 100 * MS <= window.end_ns - data.previous.header.stamp_ns < 100 * MS + SECOND_NS // 30 + 1


def test_text_is_present_once_then_held_until_its_time_to_live() -> None:
    streams = [camera_stream(4.0), microphone_stream(4.0), [text(0, START_NS + 250 * MS, "come")]]
    windows = run(FusionCore(config()), arrivals(streams, lambda _: 0))
    by_end = {(w.end_ns - START_NS) // MS: w.inputs["text"] for w in windows}
    assert (by_end[200].presence, by_end[200].reason) == ("absent", "none")
    assert by_end[300].presence == "present"
    assert by_end[300].age_ns == 50 * MS
    assert {by_end[ms].presence for ms in range(400, 2300, 100)} == {"held"}
    assert (by_end[2300].presence, by_end[2300].reason) == ("absent", "expired")


def test_a_newer_command_replaces_the_one_in_force() -> None:
    texts = [text(0, START_NS + 250 * MS, "come"), text(1, START_NS + 650 * MS, "stop")]
    windows = run(
        FusionCore(config()), arrivals([camera_stream(2), microphone_stream(2), texts], lambda _: 0)
    )
    commands = [w.inputs["text"].data for w in windows]
    words = [s.command.header.text for s in commands if isinstance(s, TextSlice)]
    assert words[:5] == ["come"] * 4 + ["stop"]


@pytest.mark.parametrize("seed", range(200))
def test_arrival_order_within_lateness_cannot_matter(seed: int) -> None:
    reproducible = config(alignment="reproducible")
    expected = run(FusionCore(reproducible), in_order(2.5))
    rng = random.Random(seed)
    shuffled = arrivals(all_streams(2.5), lambda _: rng.randrange(199 * MS))
    core = FusionCore(reproducible)
    windows = run(core, shuffled)
    count = min(len(windows), len(expected))
    assert count >= 20
    assert [content(w) for w in windows[:count]] == [content(w) for w in expected[:count]]
    assert not any(reason == "late" for counts in core.counts.values() for reason in counts)


def test_low_latency_does_not_wait_for_lateness_while_all_clocked_streams_live() -> None:
    core = FusionCore(config(lateness_ms=500.0))
    waits = []
    core.push(clock_tick(START_NS))
    for message in in_order(3.0):
        waits += [end_ns(message) - w.end_ns for w in core.push(message)]
    assert max(waits) <= SECOND_NS // 30 + 32 * MS


DEAD = [set(pair) for size in (1, 2) for pair in combinations(("camera", "microphone", "text"), size)]


@pytest.mark.parametrize("dead", DEAD, ids=["+".join(sorted(d)) for d in DEAD])
def test_killing_streams_keeps_the_rate_and_marks_them_absent(dead: set[str]) -> None:
    dies_ns, until_ns = START_NS + 4 * SECOND_NS, START_NS + 14 * SECOND_NS
    messages = [m for m in in_order(14) if kind_of(m.topic) not in dead or m.header.stamp_ns < dies_ns]
    windows = run_live(FusionCore(config()), messages, until_ns)
    ends = np.array([w.end_ns for w in windows])
    assert abs(len(ends) - 140) <= 3
    np.testing.assert_array_equal(np.diff(ends), 100 * MS)
    for window in windows[-80:]:
        absent = {name for name, item in window.inputs.items() if item.presence == "absent"}
        assert absent >= dead
        assert absent - {"text"} == dead - {"text"}


def test_with_every_stream_dead_clock_ticks_alone_keep_the_rate() -> None:
    messages = [m for m in in_order(3) if m.header.stamp_ns < START_NS + SECOND_NS]
    windows = run_live(FusionCore(config()), messages, START_NS + 10 * SECOND_NS)
    assert np.diff([w.end_ns for w in windows]).tolist() == [100 * MS] * (len(windows) - 1)
    assert len(windows) >= 97
    assert windows[-1].inputs["camera"].reason == windows[-1].inputs["microphone"].reason == "dead"


def test_a_stream_that_returns_is_present_again_within_one_tick() -> None:
    gone = (START_NS + 3 * SECOND_NS, START_NS + 6 * SECOND_NS)
    messages = [m for m in in_order(9) if m.topic != CAMERA or not gone[0] <= m.header.stamp_ns < gone[1]]
    windows = run_live(FusionCore(config()), messages, START_NS + 9 * SECOND_NS)
    back = [w.inputs["camera"].presence for w in windows if w.end_ns >= gone[1]]
    assert back[0] == "present"


@pytest.mark.parametrize(
    ("leap_ns", "reason"),
    [(60 * SECOND_NS, "stamp ahead"), (10**18, "stamp ahead"), (-SECOND_NS, "stamp backwards")],
)
def test_a_bad_stamp_is_refused_counted_and_poisons_nothing(leap_ns: int, reason: str) -> None:
    good = in_order(4)
    bad = frame(999, START_NS + 2 * SECOND_NS + leap_ns)
    at = next(i for i, m in enumerate(good) if m.header.stamp_ns >= START_NS + 2 * SECOND_NS)
    core = FusionCore(config())
    windows = run(core, [*good[:at], bad, *good[at:]])
    assert core.counts[CAMERA] == {reason: 1}
    assert [content(w) for w in windows] == [content(w) for w in run(FusionCore(config()), good)]


def test_late_data_is_counted_and_never_changes_a_window() -> None:
    messages = in_order(4)
    late_ns = START_NS + 2 * SECOND_NS
    held_back = [
        m for m in messages if m.topic == CAMERA and late_ns <= m.header.stamp_ns < late_ns + 300 * MS
    ]
    on_time = [m for m in messages if m not in held_back and end_ns(m) < late_ns + 300 * MS]
    core = FusionCore(config(lateness_ms=60.0))
    before = run(core, on_time)
    frozen = [content(w) for w in before]
    run_late = [w for m in held_back for w in core.push(m)]
    assert core.counts[CAMERA]["late"] == 7
    assert [content(w) for w in before] == frozen
    assert all(w.tick > before[-1].tick for w in run_late)


def test_a_gap_in_the_sound_is_zero_and_counted_and_too_large_a_gap_is_absence() -> None:
    lost = {50, 51, 52, 90, 91, 92, 93}
    sound = [m for k, m in enumerate(microphone_stream(5.0)) if k not in lost]
    windows = run(FusionCore(config()), arrivals([camera_stream(5.0), sound], lambda _: 0))
    over = [w.inputs["microphone"] for w in windows]
    assert any(item.presence == "absent" and item.reason == "gap" for item in over)
    small = [w for w in windows if w.inputs["microphone"].reason == "gap" and w.inputs["microphone"].data]
    for window in small:
        audio = audio_of(window)
        assert audio.missing == np.count_nonzero(audio.samples == 0)
    assert over[-1].reason == ""


def test_a_restarted_microphone_goes_on_at_its_true_place() -> None:
    first = list(microphone_stream(2.0))[:40]
    resume_ns = START_NS + 2 * SECOND_NS
    again = [block(k, resume_ns + k * 32 * MS, np.full(512, -1.0), k * 512, source="m#2") for k in range(60)]
    core = FusionCore(config())
    windows = run(core, arrivals([camera_stream(4.0), [*first, *again]], lambda _: 0))
    assert core.counts[MICROPHONE]["resync"] == 1
    after = next(w for w in windows if w.end_ns >= resume_ns + 1100 * MS)
    np.testing.assert_array_equal(audio_of(after).samples, np.full(16_000, -1.0))
    straddling = next(w for w in windows if w.end_ns == resume_ns + 1000 * MS)
    assert (audio_of(straddling).samples == -1.0).all()


def test_sound_that_is_not_finite_is_refused_and_the_rest_runs_on() -> None:
    sound = list(microphone_stream(3.0))
    bad = np.full(512, np.nan)
    sound[30] = block(30, sound[30].header.stamp_ns, bad, 30 * 512)
    core = FusionCore(config())
    windows = run(core, arrivals([camera_stream(3.0), sound], lambda _: 0))
    assert core.counts[MICROPHONE] == {"not finite": 1}
    assert all(np.isfinite(audio_of(w).samples).all() for w in windows if w.inputs["microphone"].data)


def test_blocks_of_changing_format_make_one_sound() -> None:
    floats = [block(k, START_NS + k * 32 * MS, np.full(512, k / 1024), k * 512) for k in range(90)]
    mixed = [as_stereo_s16(one) if one.header.seq % 3 else one for one in floats]
    cores = FusionCore(config()), FusionCore(config())
    plain, changing = (run(core, [*sound]) for core, sound in zip(cores, (floats, mixed), strict=True))
    whole = [window.inputs["microphone"].data is not None for window in plain]
    assert sum(whole) > 10
    assert [content(window) for window in plain] == [content(window) for window in changing]


def as_stereo_s16(message: Message[AudioBlock]) -> Message[AudioBlock]:
    samples = np.frombuffer(message.payload, "<f4") * 32768
    payload = np.repeat(samples.astype("<i2"), 2).tobytes()
    return structs.replace(
        message, header=structs.replace(message.header, format="s16", channels=2), payload=payload
    )


def test_a_long_silence_is_skipped_in_one_step_not_cut_window_by_window() -> None:
    core = FusionCore(config())
    core.push(clock_tick(START_NS))
    windows = core.push(clock_tick(START_NS + 3600 * SECOND_NS))
    assert len(windows) == MAX_CUT_AT_ONCE
    assert core.counts["windows"]["skipped"] == 36_000 - 2 - MAX_CUT_AT_ONCE


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-(10**10), 10**10), st.integers(0, 10**6)), max_size=80)
)
@settings(max_examples=60, deadline=None)
def test_no_sequence_of_stamps_crashes_or_goes_back(items: list[tuple[int, int, int]]) -> None:
    core = FusionCore(config())
    windows = core.push(clock_tick(START_NS))
    for kind, offset_ns, index in items:
        stamp_ns = START_NS + offset_ns
        message: Message[Header] = (
            frame(index, stamp_ns),
            block(index, stamp_ns, np.zeros(160), index),
            text(index, stamp_ns, "hello"),
        )[kind]
        windows += core.push(message)
    ticks = [w.tick for w in windows]
    assert ticks == sorted(set(ticks))


def test_ten_minutes_of_drift_and_clock_steps_leave_windows_in_place() -> None:
    """A microphone 100 ppm fast whose own clock steps by 30 s; windows contain the sound of their time."""
    rng = np.random.default_rng(5)
    true_hz, step_s, minutes = 16_000 * (1 + 100e-6), 30.0, 10
    clock = SampleClock(16_000)
    core = FusionCore(config(inputs={"microphone": InputConfig(topic=MICROPHONE)}, encoders={}))
    core.push(clock_tick(START_NS))
    worst_s = 0.0
    for k in range(int(minutes * 60 * true_hz / 512)):
        index = k * 512
        captured_ns = START_NS + round(index / true_hz * SECOND_NS)
        called_ns = captured_ns + round((0.032 + rng.exponential(0.004)) * SECOND_NS)
        wall_s = called_ns / SECOND_NS + step_s * ((k // 4000) % 3 - 1)
        adc_s = wall_s - (called_ns - captured_ns) / SECOND_NS
        clock.observe(index, device_to_host_ns(adc_s, wall_s, called_ns))
        message = block(k, clock.stamp_ns(index), np.arange(index, index + 512), index)
        for window in core.push(message):
            item = window.inputs["microphone"].data
            if isinstance(item, AudioSlice):
                shown_s = (float(item.samples[-1]) + 1) / true_hz
                worst_s = max(worst_s, abs(shown_s - (window.end_ns - START_NS) / SECOND_NS))
    assert worst_s <= 0.005
    assert core.counts[MICROPHONE] == {}


def test_the_newest_due_window_runs_and_the_older_ones_are_shed() -> None:
    windows = run(FusionCore(config()), in_order(1.0))
    backlog = Backlog()
    assert backlog.take() is None
    shed = backlog.offer(windows[:3], cut_ns=5)
    shed += backlog.offer(windows[3:5], cut_ns=7)
    assert shed == [window.tick for window in windows[:4]]
    assert backlog.take() == (windows[4], 7, 4)
    assert backlog.take() is None
    assert backlog.offer(windows[5:6], cut_ns=9) == []
    assert backlog.take() == (windows[5], 9, 0)


def test_while_models_hang_one_window_is_kept_and_what_is_shed_is_known_at_once() -> None:
    backlog, kept = Backlog(), []
    for tick in range(6000):
        window = Window(tick, tick * MS, {})
        kept.append(weakref.ref(samples := np.zeros(1, np.float32)))
        audio = AudioSlice(samples, 0, 16_000, 0)
        window.inputs["microphone"] = WindowInput(MICROPHONE, "present", data=audio)
        assert backlog.offer([window], cut_ns=tick) == ([tick - 1] if tick else [])
    del window, samples, audio
    assert sum(one() is not None for one in kept) == 1
    taken = backlog.take()
    assert taken is not None
    assert (taken[0].tick, taken[2]) == (5999, 5999)


def test_only_text_may_be_a_pattern_and_only_known_kinds_can_be_fused() -> None:
    for topic, problem in (("camera/*", "only text topics may have a"), ("health/fusion", "cannot be fused")):
        with pytest.raises(ValueError, match=problem):
            FusionCore(config(inputs={"x": InputConfig(topic=topic)}, encoders={}))


def test_a_topic_nobody_asked_for_is_refused() -> None:
    core = FusionCore(config())
    core.push(Message("camera/other", frame(0, START_NS).header))
    assert core.counts["camera/other"] == {"no such input": 1}
    assert TEXT not in core.counts
