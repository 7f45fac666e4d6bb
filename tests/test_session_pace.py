"""The stamps of a replay come from its pace: what a fusion sees at any rate, in laps, after pauses and steps.

The player, the fusion core and the engine are the real ones, on a clock that only waiting moves.
"""

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from msgspec import structs

from perception.features.window import raw_samples
from perception.fusion.build import build_engine
from perception.fusion.core import FusionCore
from perception.fusion.presence import Presence
from perception.fusion.window import Window
from perception.messages import (
    AudioBlock,
    CameraFrame,
    ClockTick,
    Header,
    Label,
    Message,
    TextCommand,
    reached_ns,
)
from perception.profile import FusionConfig
from perception.session import Session, SessionWriter
from perception.session.keyboard import Key
from perception.session.pace import Lap, SampleCounter, schedule
from perception.session.player import Playback, Player
from perception.session.sound import at_tempo
from perception.units import SECOND_NS
from perception.units.arrays import RawSamples
from tests.streams import CAMERA, MICROPHONE, MS, START_NS, Stream, config, of, scripted_room

BEGIN_NS = START_NS + 77 * 86_400 * SECOND_NS + 12_345_678
RATES = (0.3, 0.5, 1.0, 2.0, 7.0)


@pytest.fixture(scope="module")
def recording() -> Stream:
    return scripted_room()


@pytest.fixture(scope="module")
def file(recording: Stream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pace") / "room.mcap", recording)


def write(path: Path, messages: Iterable[Message[Header]]) -> Path:
    with SessionWriter(path) as writer:
        for message in messages:
            writer.write(message)
    return path


class Room:
    """A graph in one thread: its clock, a fusion that reads what is published, and somebody at the keys."""

    def __init__(
        self, fusion: FusionConfig, run_s: float, keys: Iterable[tuple[float, Key]] = (), most: int = 10_000
    ) -> None:
        self.now_ns = BEGIN_NS
        self.stopped = threading.Event()
        self.windows: list[Window] = []
        self.sent: defaultdict[str, Stream] = defaultdict(list)
        self.core, self._presence = FusionCore(fusion), Presence()
        self._run_s = run_s
        self._keys = list(keys)
        self._left = most
        self._push(Message("clock/fusion", ClockTick(stamp_ns=self.now_ns)))

    def clock(self) -> int:
        return self.now_ns

    def publisher(self, topic: str) -> Any:
        return Output(self, topic)

    def wait(self, timeout_s: float) -> Key | None:
        self.now_ns += round(min(timeout_s, 0.02) * 1e9)
        while self.core.deadline_ns is not None and self.core.deadline_ns <= self.now_ns:
            self._push(Message("clock/fusion", ClockTick(stamp_ns=self.now_ns)))
        if self.passed_s > self._run_s:
            self.stopped.set()
        return self._keys.pop(0)[1] if self._keys and self._keys[0][0] <= self.passed_s else None

    @property
    def passed_s(self) -> float:
        return (self.now_ns - BEGIN_NS) / 1e9

    def take(self, topic: str, header: Header, payload: bytes) -> None:
        self._left -= 1
        if not self._left:
            self.stopped.set()
        seq = len(self.sent[topic])
        header = structs.replace(header, seq=seq, sent_ns=self.now_ns, source="replayer#1")
        message = Message(topic, header, bytes(payload), self.now_ns)
        self.sent[topic].append(message)
        if not topic.startswith(("health/", "label/")):
            self._push(message)

    def _push(self, message: Message[Header]) -> None:
        self.windows += map(self._presence.mark_held, self.core.push(message))

    def play(self, file: Path, **playback: Any) -> Self:
        with Session(file) as session:
            Player(
                session,
                Playback(**playback),
                self.publisher,
                clock=self.clock,
                stopped=self.stopped,
                keys=self,
            ).run()
        return self


class Output:
    """Stands for a publisher: what is sent is at the fusion at once."""

    def __init__(self, room: Room, topic: str) -> None:
        self._room, self._topic = room, topic

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send(self, header: Header, payload: bytes = b"") -> None:
        self._room.take(self._topic, header, payload)


def presence(windows: Iterable[Window]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(f"{one.presence} {one.reason}".strip() for one in (window.inputs[name] for name in names))
        for names in [("camera", "microphone")]
        for window in windows
    )


# --- what a fusion sees ---


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_every_window_is_whole_at_any_rate_in_one_play_or_many(file: Path, rate: float, loop: bool) -> None:
    room = Room(config(lateness_ms=60.0), run_s=9.0).play(file, rate=rate, loop=loop)
    assert len(room.windows) >= (85 if loop else min(4 / rate, 9.0) * 10 - 3)
    filled = [window for window in room.windows if window.end_ns >= BEGIN_NS + 1_500 * MS]
    # frames 50 ms apart are further apart than windows are, if they come slower than at half the rate
    cameras = {"present", "held unchanged"} if rate < 0.5 else {"present"}
    assert {microphone for _, microphone in presence(filled)} <= {"present"}
    assert {camera for camera, _ in presence(filled)} <= cameras
    assert not any(room.core.counts.values()), "nothing was late, refused or out of step"


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_the_states_of_a_real_engine_have_all_their_inputs(file: Path, rate: float) -> None:
    fusion = config(lateness_ms=60.0)
    room = Room(fusion, run_s=6.0, keys=[(2.0, "pause"), (3.0, "pause")])
    room.play(file, rate=rate, loop=True)
    engine = build_engine(fusion, clock=room.clock)
    states = [engine.run(window) for window in room.windows]
    assert [state.tick for state in states] == list(range(states[0].tick, states[0].tick + len(states)))
    assert states[-1].stamp_ns > BEGIN_NS + 5_800 * MS
    for state in states:
        after_s = (state.stamp_ns - BEGIN_NS) / 1e9
        if 1.4 < after_s < 1.85 or after_s > 4.5:
            found = {name: one.presence for name, one in state.modalities.items()}
            assert (found["camera"], found["microphone"]) == ("present", "present"), after_s
    assert not any(engine.counts.values())


@pytest.mark.parametrize("pause_s", [0.2, 3.0])
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_after_a_pause_all_is_there_again(file: Path, rate: float, pause_s: float) -> None:
    keys: list[tuple[float, Key]] = [(1.6, "pause"), (1.6 + pause_s, "pause")]
    room = Room(config(lateness_ms=60.0), run_s=8.0, keys=keys).play(file, rate=rate, loop=True)
    again_ns = BEGIN_NS + round((1.6 + pause_s + 1.5) * SECOND_NS)
    after = [window for window in room.windows if window.end_ns >= again_ns]
    assert len(after) >= 15
    assert set(presence(after)) == {("present", "present")}
    assert not any(room.core.counts.values())


def test_steps_are_stamped_when_they_are_made(file: Path) -> None:
    steps: list[tuple[float, Key]] = [(1.0 + n * 0.2, "step") for n in range(20)]
    keys: list[tuple[float, Key]] = [(0.5, "pause"), *steps, (5.2, "pause")]
    room = Room(config(lateness_ms=60.0), run_s=9.0, keys=keys).play(
        file, topics=("camera/*", "microphone/*")
    )
    stepped = [one for topic in (CAMERA, MICROPHONE) for one in room.sent[topic]]
    for one in stepped:
        # sound is as old as its block is long
        assert 0 <= one.header.sent_ns - one.header.stamp_ns <= 60 * MS
    assert not any(reason for counts in room.core.counts.values() for reason in counts), room.core.counts
    last = [window for window in room.windows if window.end_ns >= BEGIN_NS + 6_800 * MS][:10]
    assert set(presence(last)) == {("present", "present")}


def test_steps_in_no_time_never_run_backwards(file: Path) -> None:
    steps: list[tuple[float, Key]] = [(0.6, "step")] * 30
    keys: list[tuple[float, Key]] = [(0.5, "pause"), *steps]
    room = Room(config(), run_s=3.0, keys=keys)
    room.play(file, topics=("camera/*", "microphone/*"))
    for topic in (CAMERA, MICROPHONE):
        stamps = [one.header.stamp_ns for one in room.sent[topic]]
        assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0, None])
def test_stamps_rise_over_laps_and_sound_joins_sound(file: Path, rate: float | None) -> None:
    room = Room(config(), run_s=9.0, most=700).play(file, rate=rate, loop=True)
    assert len(room.sent[CAMERA]) > 85
    for topic in (CAMERA, MICROPHONE, "text/terminal", "label/truth"):
        stamps = [one.header.stamp_ns for one in room.sent[topic]]
        assert stamps == sorted(set(stamps)), topic
    for before, after in itertools.pairwise(room.sent[MICROPHONE]):
        assert isinstance(before.header, AudioBlock)
        assert isinstance(after.header, AudioBlock)
        assert after.header.sample_index == before.header.sample_index + before.header.samples
        assert abs(after.header.stamp_ns - reached_ns(before.header)) <= SECOND_NS // before.header.rate_hz


def test_kept_stamps_and_the_clock_of_arrivals_may_be_far_apart(recording: Stream, tmp_path: Path) -> None:
    """A recording of a replay that kept its stamps happens now as well."""
    late = [structs.replace(one, received_ns=one.received_ns + 10**16) for one in recording]
    file = write(tmp_path / "kept.mcap", late)
    room = Room(config(lateness_ms=60.0), run_s=9.0).play(file)
    filled = [window for window in room.windows if window.end_ns >= BEGIN_NS + 1_500 * MS]
    assert len(filled) >= 20
    assert set(presence(filled)) == {("present", "present")}


# --- the schedule ---


@pytest.mark.parametrize("rate", RATES)
def test_ages_stay_and_distances_follow_the_rate(recording: Stream, rate: float) -> None:
    aged = [structs.replace(one, received_ns=one.received_ns + 37 * MS) for one in recording]
    dues = list(schedule(aged, rate))
    assert [due.due_ns for due in dues] == sorted(due.due_ns for due in dues)
    for due in dues:
        assert abs(due.due_ns - reached_ns(due.message.header) - 37 * MS) <= SECOND_NS // 16_000
    played = [due.message for due in dues if due.message.topic == CAMERA]
    first_ns = aged[0].received_ns
    assert [one.header.stamp_ns for one in played] == [
        pytest.approx((one.header.stamp_ns - first_ns) / rate, abs=1) for one in of(aged, CAMERA)
    ]
    assert [bytes(one.payload) for one in played] == [bytes(one.payload) for one in of(aged, CAMERA)]


def test_at_the_recordings_own_rate_nothing_but_the_origin_changes(recording: Stream) -> None:
    for due, was in zip(schedule(recording), recording, strict=True):
        by_ns = recording[0].received_ns
        assert due.due_ns == was.received_ns - by_ns
        assert due.message.payload == was.payload
        expected: dict[str, int] = {"stamp_ns": was.header.stamp_ns - by_ns}
        if isinstance(was.header, Label):
            expected |= {"start_ns": was.header.start_ns - by_ns, "end_ns": was.header.end_ns - by_ns}
        assert due.message.header == structs.replace(was.header, **expected)


def test_a_very_old_message_waits_for_its_arrival() -> None:
    old = TextCommand(stamp_ns=START_NS - 60 * SECOND_NS, text="late")
    frame = CameraFrame(stamp_ns=START_NS, width=1, height=1, encoding="mono8")
    stream = [
        Message(CAMERA, frame, b"0", START_NS),
        Message("text/say", old, b"", START_NS + SECOND_NS),
    ]
    assert [due.due_ns for due in schedule(stream, 0.5)] == [0, 2 * SECOND_NS]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [1, 512, 3200])
def test_sound_is_whole_at_any_rate_in_pieces_no_longer_than_before(rate: float, size: int) -> None:
    total = 16_000 if size > 1 else 100
    blocks: Stream = []
    for at in range(0, total - size + 1, size):
        header = AudioBlock(
            stamp_ns=START_NS + at * SECOND_NS // 16_000,
            sample_index=9_000 + at,
            samples=size,
            rate_hz=16_000,
        )
        payload = np.zeros(size, np.int16).tobytes()
        blocks.append(Message(MICROPHONE, header, payload, reached_ns(header)))
    headers = [due.message.header for due in schedule(blocks, rate)]
    assert all(isinstance(one, AudioBlock) and one.samples <= size for one in headers)
    for before, after in itertools.pairwise(headers):
        assert isinstance(before, AudioBlock)
        assert isinstance(after, AudioBlock)
        assert after.sample_index == before.sample_index + before.samples
        assert abs(after.stamp_ns - reached_ns(before)) <= SECOND_NS // 16_000
    count = sum(one.samples for one in headers if isinstance(one, AudioBlock))
    assert abs(count - len(blocks) * size / rate) <= 1


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8, 1.25, 2.0, 5.0])
def test_a_tone_keeps_its_pitch_and_its_joints(rate: float, kind: type) -> None:
    loud = 10_000 if kind is np.int16 else 0.3
    tone: RawSamples = (np.sin(np.arange(16_000) * 2 * np.pi * 1_000 / 16_000) * loud).astype(kind)[:, None]
    blocks = [at_tempo(tone[at : at + 1600], round(1600 / rate)) for at in range(0, 16_000, 1600)]
    assert all(block.dtype == kind for block in blocks)
    assert all(block[0, 0] == tone[n * 1600, 0] for n, block in enumerate(blocks))
    assert all(block[-1, 0] == tone[n * 1600 + 1599, 0] for n, block in enumerate(blocks))
    heard = np.concatenate(blocks)[:, 0].astype(float)
    spectrum = np.abs(np.fft.rfft(heard))
    assert abs(np.argmax(spectrum) * 16_000 / len(heard) - 1_000) < 20
    steepest = np.abs(np.diff(tone[:, 0].astype(float))).max()
    assert np.abs(np.diff(heard)).max() <= steepest * 1.2, "a click"


def test_channels_stay_apart() -> None:
    stereo = np.stack([np.full(100, 5), np.full(100, -7)], axis=1).astype(np.int16)
    header = AudioBlock(stamp_ns=0, sample_index=0, samples=100, rate_hz=16_000, channels=2)
    for rate in (0.4, 3.0):
        stream = [Message(MICROPHONE, header, stereo.tobytes(), reached_ns(header))]
        for due in schedule(stream, rate):
            block = raw_samples(due.message.header, due.message.payload)  # type: ignore[arg-type]
            assert set(block[:, 0]) == {5}
            assert set(block[:, 1]) == {-7}


def test_a_lap_is_as_long_as_its_sound_or_ends_a_step_after_its_last_message() -> None:
    def lap(*headers: Header) -> int:
        found = Lap()
        for header in headers:
            found.add(type(header).__name__, header)
        return found.length_ns

    frames = [CameraFrame(stamp_ns=n * 50, width=1, height=1, encoding="mono8") for n in range(4)]
    sound = AudioBlock(stamp_ns=10, sample_index=0, samples=16, rate_hz=16_000)
    assert lap(*frames) == 200
    assert lap(*frames, sound) == MS
    assert lap(structs.replace(frames[0], stamp_ns=-5 * MS), frames[1], sound) == 5 * MS + 50 + MS
    assert lap(frames[0]) == 100 * MS


def test_a_microphone_counts_on_through_a_pause_and_over_laps() -> None:
    counter, block = SampleCounter(), AudioBlock(stamp_ns=0, sample_index=0, samples=16, rate_hz=16_000)
    one = counter.counted(structs.replace(block, sample_index=500), 0)
    paused = counter.counted(structs.replace(block, sample_index=516, stamp_ns=4 * MS), 3 * MS)
    lap = counter.counted(structs.replace(block, sample_index=500, stamp_ns=5 * MS), 5 * MS)
    assert [item.sample_index for item in (one, paused, lap)] == [500, 564, 580]
