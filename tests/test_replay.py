"""Replaying: in process without journals, perturbed, and onto the bus. Sockets and processes are real."""

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.cli import cli
from perception.devices.scripted import messages
from perception.errors import SessionError
from perception.features.window import decode_samples
from perception.fusion.core import FusionCore
from perception.fusion.window import Window
from perception.messages import AudioBlock, CameraFrame, Header, Label, Message
from perception.profile import CameraConfig, FusionConfig, MicrophoneConfig, Profile, ScriptConfig, load
from perception.session import Session, SessionWriter, replay
from perception.session.cutting import cut_as_arrived
from perception.session.perturb import (
    Perturbation,
    Perturbed,
    delay,
    drift,
    drop,
    freeze,
    noise,
    stamp_leap,
    without,
)
from perception.session.player import Key, Pace, Playback, Player, moved
from perception.session.recorder import EVERY_MESSAGE
from tests.streams import CAMERA, MICROPHONE, MS, SECOND_NS, START_NS, clock_tick, run
from tests.streams import config as streams_config
from tests.test_fusion_core import content, in_order
from tests.test_verify import PROFILE, fusion

Stream = list[Message[Header]]


@pytest.fixture(scope="module")
def recording() -> Stream:
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=20)
    microphone = MicrophoneConfig(source="scripted")
    return list(messages(ScriptConfig(seed=3), camera, microphone, 4.0, origin_ns=START_NS))


# --- a core goes on where another stood ---


@pytest.mark.parametrize("at", [1, 40, 133, 250])
def test_a_core_resumed_from_a_mark_cuts_the_same_windows(at: int) -> None:
    stream = in_order(8.0)
    first, second = FusionCore(streams_config()), FusionCore(streams_config())
    run(first, stream[:at])
    mark = first.mark()
    by_seq = {(one.topic, one.header.seq): one for one in stream}
    second.resume(type(mark).model_validate_json(mark.model_dump_json()), lambda i: by_seq[i.topic, i.seq])
    assert second.mark() == mark
    went_on = [[window for one in stream[at:] for window in core.push(one)] for core in (first, second)]
    assert [window.tick for window in went_on[0]] == [window.tick for window in went_on[1]]

    def beyond_sound(windows: list[Window]) -> list[tuple[object, ...]]:
        known_ns = stream[at].header.stamp_ns + 1_200 * MS
        return [content(window) for window in windows if window.end_ns > known_ns]

    assert beyond_sound(went_on[0]) == beyond_sound(went_on[1])
    assert len(beyond_sound(went_on[0])) >= 10


def test_a_mark_fits_only_a_core_that_is_configured_alike() -> None:
    mark = FusionCore(streams_config()).mark()
    with pytest.raises(ValueError, match="configured otherwise"):
        FusionCore(streams_config(hop_ms=50.0)).resume(mark, lambda item: pytest.fail("nothing was held"))


# --- without journals ---


def test_without_journals_all_windows_are_concluded_to_the_last_data(recording: Stream) -> None:
    states = list(replay(recording, PROFILE))
    assert [state.tick for state in states] == list(range(states[0].tick, states[0].tick + 39))
    assert [state.seq for state in states] == list(range(39))
    assert states[-1].modalities["camera"].presence == "present"


def test_the_number_of_workers_changes_nothing(recording: Stream) -> None:
    one, three = (list(replay(recording, PROFILE, workers=count)) for count in (1, 3))
    assert one == three


def ticks(stream: Sequence[Message[Header]], config: FusionConfig, on_clock: bool) -> list[int]:
    return [cut.window.tick for cut in cut_as_arrived(stream, config, on_clock=on_clock)]


def test_time_goes_on_by_arrivals_while_nothing_that_is_fused_arrives(recording: Stream) -> None:
    last_ns = START_NS + 3 * SECOND_NS
    silent = [*recording[:40], replace(of(recording, "label/truth")[0], received_ns=last_ns)]
    live, alone = (ticks(silent, fusion(), on_clock) for on_clock in (True, False))
    assert live[: len(alone)] == alone
    assert live[-1] == (last_ns - 1 - 60 * MS) // (100 * MS)
    assert live == list(range(live[0], live[-1] + 1))


# --- perturbations ---


def apply(stream: Stream, *perturbations: Perturbation) -> Stream:
    result = list(Perturbed(stream, *perturbations))
    assert result == list(Perturbed(stream, *perturbations))
    arrivals = [one.received_ns for one in result]
    assert arrivals == sorted(arrivals)
    return result


def of(stream: Stream, topic: str) -> Stream:
    return [one for one in stream if one.topic == topic]


def test_without_loses_a_stream_for_a_while(recording: Stream) -> None:
    left = of(apply(recording, without("camera", from_s=1.0, to_s=2.0)), CAMERA)
    assert {one.header.stamp_ns for one in of(recording, CAMERA)} - {one.header.stamp_ns for one in left} == {
        START_NS + SECOND_NS + k * 50 * MS for k in range(20)
    }
    assert not of(apply(recording, without("camera")), CAMERA)
    assert apply(recording, without("camera/rear")) == recording


def test_delay_moves_arrivals_and_not_stamps(recording: Stream) -> None:
    result = apply(recording, delay("microphone", ms=150))
    before, after = of(recording, MICROPHONE), of(result, MICROPHONE)
    assert [one.header for one in before] == [one.header for one in after]
    assert {b.received_ns - a.received_ns for a, b in zip(before, after, strict=True)} == {150 * MS}
    assert of(result, CAMERA) == of(recording, CAMERA)
    with pytest.raises(ValueError, match="nothing arrives before"):
        delay("microphone", ms=-1)


def test_drop_loses_single_messages_and_each_topic_for_itself(recording: Stream) -> None:
    both = apply(recording, drop(rate=0.1, seed=1))
    alone = apply(recording, drop(rate=0.1, seed=1, topic="camera"))
    assert of(both, CAMERA) == of(alone, CAMERA)
    assert 0.02 < 1 - len(of(both, MICROPHONE)) / len(of(recording, MICROPHONE)) < 0.25
    assert both != apply(recording, drop(rate=0.1, seed=2))


def test_drift_lets_the_same_samples_take_less_time(recording: Stream) -> None:
    result = of(apply(recording, drift(ppm=10_000)), MICROPHONE)
    stamps = [one.header.stamp_ns for one in result]
    assert (stamps[-1] - stamps[0]) * 1.01 == pytest.approx(
        of(recording, MICROPHONE)[-1].header.stamp_ns - stamps[0], abs=2
    )
    indices = [one.header.sample_index for one in result if isinstance(one.header, AudioBlock)]
    assert indices == [512 * k for k in range(len(result))]
    apply(recording, drift(ppm=-10_000))


@pytest.mark.parametrize("form", ["s16", "f32"])
def test_noise_has_the_power_asked_for(form: str) -> None:
    rng = np.random.default_rng(0)
    stream: Stream = []
    for k in range(40):
        samples = 0.05 * rng.standard_normal((512, 2))
        scaled = samples * 32768 if form == "s16" else samples
        header = AudioBlock(
            stamp_ns=k * 32 * MS, sample_index=512 * k, samples=512, rate_hz=16_000, channels=2,
            format="s16" if form == "s16" else "f32",
        )  # fmt: skip
        data = scaled.astype("<i2" if form == "s16" else "<f4").tobytes()
        stream.append(Message(MICROPHONE, header, data, k * 32 * MS))

    def sound(of: Stream) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        return np.concatenate(
            [decode_samples(m.header, m.payload) for m in of if isinstance(m.header, AudioBlock)]
        )

    added = sound(apply(stream, noise(snr_db=5))) - sound(stream)
    # both channels are averaged here, signal and noise alike
    assert 10 * np.log10(np.square(sound(stream)).mean() / np.square(added).mean()) == pytest.approx(
        5, abs=0.2
    )
    half = apply([one for one in stream if one.header.seq % 2 == 0], noise(snr_db=5))
    assert [one.header for one in half] == [one.header for one in stream]


def test_freeze_repeats_the_picture_while_time_goes_on(recording: Stream) -> None:
    result = of(apply(recording, freeze("camera", from_s=1.0)), CAMERA)
    assert [one.header.stamp_ns for one in result] == [one.header.stamp_ns for one in of(recording, CAMERA)]
    assert len({bytes(one.payload) for one in result[20:]}) == 1
    assert all(isinstance(one.header, CameraFrame) for one in result)


def test_a_stamp_leaps_and_the_next_is_right_again(recording: Stream) -> None:
    result = of(apply(recording, stamp_leap("camera", ms=5000, at_s=1.0, count=2)), CAMERA)
    off = [b.header.stamp_ns - a.header.stamp_ns for a, b in zip(of(recording, CAMERA), result, strict=True)]
    assert Counter(off) == {0: len(off) - 2, 5 * SECOND_NS: 2}


def test_perturbations_combine_and_leave_out_what_was_concluded(recording: Stream) -> None:
    both = apply(recording, delay("microphone", ms=50), drop(rate=0.5, seed=3, topic="microphone"))
    assert 0 < len(of(both, MICROPHONE)) < len(of(recording, MICROPHONE))
    concluded = replace(clock_tick(START_NS), topic="state/fused")
    assert apply([concluded, *recording]) == recording
    assert delay("microphone", ms=5) == delay("microphone", ms=5) != delay("microphone", ms=6)
    assert str(drop(rate=0.1, seed=1)) == "drop(rate=0.1, seed=1, topic='*')"


# --- onto the bus ---


class Bus:
    def __init__(self, base: Path) -> None:
        self.runtime = Runtime("test", base=base / "p")
        self.clock = HostClock(self.runtime.base).now_ns

    def publisher(self, topic: str) -> Publisher:
        return Publisher(topic, source="replayer", runtime=self.runtime, clock=self.clock)

    def subscriber(self, *patterns: str) -> Subscriber:
        return Subscriber(*patterns, runtime=self.runtime, clock=self.clock, policies=EVERY_MESSAGE)


@pytest.fixture
def bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory() as folder:
        yield Bus(Path(folder))


@pytest.fixture(scope="module")
def session_file(recording: Stream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("session") / "room.mcap"
    with SessionWriter(file) as writer:
        for one in recording:
            if one.received_ns < START_NS + 2 * SECOND_NS:
                writer.write(one)
        writer.write(
            replace(clock_tick(START_NS), topic="clock/fusion", received_ns=START_NS + 2 * SECOND_NS)
        )
    return file


def played(bus: Bus, file: Path, playback: Playback) -> tuple[Stream, Counter[str]]:
    with Session(file) as session, bus.subscriber("*") as subscriber:
        player = Player(session, playback, bus.publisher, clock=bus.clock, stopped=threading.Event())
        player.run()
        received: Stream = []
        while (message := subscriber.receive(0.3)) is not None:
            received.append(message)
    return [one for one in received if not one.topic.startswith("health/")], player.published


def test_a_session_comes_over_the_bus_as_it_was_but_happening_now(
    bus: Bus, session_file: Path, recording: Stream
) -> None:
    begun_ns = bus.clock()
    received, published = played(bus, session_file, Playback(rate=10.0))
    expected = [one for one in recording if one.received_ns < START_NS + 2 * SECOND_NS]
    assert sum(published.values()) == len(received) == len(expected)
    shift_ns = {
        got.header.stamp_ns - was.header.stamp_ns
        for topic in {one.topic for one in expected}
        for got, was in zip(of(received, topic), of(expected, topic), strict=True)
    }
    assert len(shift_ns) == 1
    assert begun_ns < shift_ns.pop() + expected[0].received_ns < bus.clock()
    assert [one.header.seq for one in of(received, CAMERA)] == list(range(40))
    assert [bytes(one.payload) for one in of(received, CAMERA)] == [
        bytes(one.payload) for one in of(expected, CAMERA)
    ]
    assert not of(received, "clock/fusion")


def test_stamps_can_be_kept_and_a_part_be_chosen(bus: Bus, session_file: Path) -> None:
    playback = Playback(rate=10.0, keep_stamps=True, start_s=1.0, end_s=1.5, topics=("camera/*",))
    received, _ = played(bus, session_file, playback)
    assert [one.header.stamp_ns for one in received] == [
        START_NS + SECOND_NS + k * 50 * MS for k in range(10)
    ]


def test_at_rate_two_it_takes_half_the_time(bus: Bus, session_file: Path) -> None:
    received, _ = played(bus, session_file, Playback(rate=4.0, topics=("camera/*",)))
    took_s = (received[-1].header.sent_ns - received[0].header.sent_ns) / 1e9
    assert took_s == pytest.approx(1.95 / 4, abs=0.15)


def test_a_loop_goes_on_until_stopped(bus: Bus, session_file: Path) -> None:
    stopped = threading.Event()
    with Session(session_file) as session, bus.subscriber("camera/*") as subscriber:
        playback = Playback(rate=200.0, loop=True, topics=("camera/*",))
        player = Player(session, playback, bus.publisher, clock=bus.clock, stopped=stopped)
        thread = threading.Thread(target=player.run)
        thread.start()
        stamps: list[int] = []
        while len(stamps) < 100:
            message = subscriber.receive(5)
            assert message is not None
            stamps.append(message.header.stamp_ns)
        stopped.set()
        thread.join(5)
        assert not thread.is_alive()
        with pytest.raises(SessionError, match="run backwards in a loop"):
            Player(
                session,
                Playback(loop=True, keep_stamps=True),
                bus.publisher,
                clock=bus.clock,
                stopped=stopped,
            )


class Script:
    """A keyboard on which somebody has typed already."""

    def __init__(self, keys: Sequence[Key | None]) -> None:
        self._keys = list(keys)
        self.waits = 0

    def wait(self, timeout_s: float) -> Key | None:
        self.waits += 1
        return self._keys.pop(0) if self._keys else None


def test_keys_pause_step_and_quit(bus: Bus, session_file: Path) -> None:
    # the first wait lets subscribers settle; then: pause, three steps, quit
    keys = Script([None, "pause", "step", None, "step", "step", "quit"])
    with Session(session_file) as session:
        playback = Playback(topics=("camera/*",))
        player = Player(
            session, playback, bus.publisher, clock=bus.clock, stopped=threading.Event(), keys=keys
        )
        player.run()
    assert player.published == {CAMERA: 1 + 3}


def test_a_session_without_such_topics_says_what_it_holds(bus: Bus, session_file: Path) -> None:
    with Session(session_file) as session:
        player = Player(
            session,
            Playback(topics=("camera/rear",)),
            bus.publisher,
            clock=bus.clock,
            stopped=threading.Event(),
        )
        with pytest.raises(SessionError, match=r"no such topics; it holds camera/front, clock/fusion, label"):
            player.run()


def test_the_pace_is_of_absolute_times_and_a_pause_moves_them_all() -> None:
    pace = Pace(first_ns=1000, now_ns=50_000, rate=2.0)
    assert [pace.due_ns(at) for at in (1000, 1100, 3000)] == [50_000, 50_050, 51_000]
    pace.hold(7)
    assert pace.due_ns(1000) == 50_007
    assert Pace(1000, 50_000, None).due_ns(99_000) == 50_000


def test_a_label_moves_as_a_whole() -> None:
    label = Label(stamp_ns=5, start_ns=5, end_ns=9, name="clap")
    assert moved(Message("label/truth", label), 10).header == Label(
        stamp_ns=15, start_ns=15, end_ns=19, name="clap"
    )


# --- commands and processes ---


def test_the_command_plays_a_file(
    session_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    arguments = [
        "replay",
        str(session_file),
        "--rate",
        "max",
        "--domain",
        "t",
        "--topics",
        "camera/*,label/*",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.output.strip() == "published 40 camera/front, 1 label/truth"
    wrong = CliRunner().invoke(cli, ["replay", str(session_file), "--rate", "fast"])
    assert "'fast' is neither a rate above 0 nor 'max'" in wrong.output


def test_the_node_plays_the_session_of_its_profile(
    session_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    options = [f"replay.file={session_file}", "replay.rate=20"]
    settings = [part for option in options for part in ("--set", option)]
    command = [sys.executable, "-P", "-m", "perception.nodes.replayer", "replay", *settings]
    runtime, clock = Runtime("replay"), HostClock().now_ns
    with Subscriber(
        "camera/*", "label/*", runtime=runtime, clock=clock, policies=EVERY_MESSAGE
    ) as subscriber:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        received: list[str] = []
        deadline = time.monotonic() + 30
        while process.poll() is None or len(received) < 41:
            if (message := subscriber.receive(0.2)) is not None:
                received.append(message.topic)
            assert time.monotonic() < deadline
        assert process.communicate()[1] == ""
    assert received.count(CAMERA) == 40
    assert process.returncode == 0


def test_the_replay_profile_ships() -> None:
    profile: Profile = load("replay")
    assert profile.replay is not None
    assert profile.fusion is not None
