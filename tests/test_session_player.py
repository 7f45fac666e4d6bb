"""A session published onto the bus: paced, in a loop, in part, by keys. Sockets and processes are real."""

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec import structs

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.cli import cli
from perception.errors import SessionError
from perception.messages import Label, Message
from perception.profile import Profile, load
from perception.session import Session, SessionWriter
from perception.session.player import Key, Pace, Playback, Player, moved
from perception.session.recorder import EVERY_MESSAGE
from tests.streams import (
    CAMERA,
    MS,
    SECOND_NS,
    START_NS,
    Stream,
    clock_tick,
    of,
    scripted_room,
)
from tests.waiting import LONG_S


@pytest.fixture(scope="module")
def recording() -> Stream:
    return scripted_room()


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
            structs.replace(clock_tick(START_NS), topic="clock/fusion", received_ns=START_NS + 2 * SECOND_NS)
        )
    return file


class Audience:
    """A keyboard nobody touches, but which is let go only once every publisher has a subscriber."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._publishers: list[Publisher] = []

    def publisher(self, topic: str) -> Publisher:
        self._publishers.append(self._bus.publisher(topic))
        return self._publishers[-1]

    def wait(self, timeout_s: float) -> Key | None:
        assert all(publisher.wait_for_subscriber(LONG_S) for publisher in self._publishers)
        time.sleep(timeout_s)
        return None


def played(bus: Bus, file: Path, playback: Playback) -> tuple[Stream, Counter[str]]:
    audience = Audience(bus)
    received: Stream = []
    with Session(file) as session, bus.subscriber("*") as subscriber:
        player = Player(
            session, playback, audience.publisher, clock=bus.clock, stopped=threading.Event(), keys=audience
        )
        player.run()
        # what a busy machine has on its way comes for sure, what should not come would come soon
        while message := subscriber.receive(LONG_S if len(received) < player.published.total() else 0.1):
            if not message.topic.startswith("health/"):
                received.append(message)
    return received, player.published


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


def test_at_rate_four_it_takes_no_less_than_a_quarter_of_the_time(bus: Bus, session_file: Path) -> None:
    received, _ = played(bus, session_file, Playback(rate=4.0, topics=("camera/*",)))
    took_s = (received[-1].header.sent_ns - received[0].header.sent_ns) / 1e9
    assert took_s >= 1.95 / 4 - 0.05


def test_a_loop_goes_on_until_stopped(bus: Bus, session_file: Path) -> None:
    stopped = threading.Event()
    with Session(session_file) as session, bus.subscriber("camera/*") as subscriber:
        playback = Playback(rate=200.0, loop=True, topics=("camera/*",))
        player = Player(session, playback, bus.publisher, clock=bus.clock, stopped=stopped)
        thread = threading.Thread(target=player.run)
        thread.start()
        stamps: list[int] = []
        while len(stamps) < 100:
            message = subscriber.receive(LONG_S)
            assert message is not None
            stamps.append(message.header.stamp_ns)
        stopped.set()
        thread.join(LONG_S)
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
        "camera/*",
        "--topics",
        "label/*",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.output.strip() == "published 40 camera/front, 1 label/truth"
    wrong = CliRunner().invoke(cli, ["replay", str(session_file), "--rate", "fast"])
    assert "'fast' is neither a rate above 0 nor 'max'" in wrong.output


def test_the_node_plays_the_session_of_its_profile(
    session_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    options = [f"replay.file={session_file}", "replay.rate=4"]
    settings = [part for option in options for part in ("--set", option)]
    command = [sys.executable, "-P", "-m", "perception.nodes.replayer", "replay", *settings]
    runtime, clock = Runtime("replay"), HostClock().now_ns
    with Subscriber(
        "camera/*", "label/*", runtime=runtime, clock=clock, policies=EVERY_MESSAGE
    ) as subscriber:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        seqs: list[int] = []
        topics: set[str] = set()
        while topics != {CAMERA, "label/truth"} or seqs[-1] < 39:
            message = subscriber.receive(LONG_S)
            assert message is not None
            topics.add(message.topic)
            if message.topic == CAMERA:
                seqs.append(message.header.seq)
        assert process.communicate(timeout=LONG_S)[1] == ""
    assert seqs == list(range(seqs[0], 40))  # on a busy machine some are published before it is found
    assert process.returncode == 0


def test_the_replay_profile_ships() -> None:
    profile: Profile = load("replay")
    assert profile.replay is not None
    assert profile.fusion is not None
