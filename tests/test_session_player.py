"""A session published onto the bus: paced, in a loop, in part, by keys. Sockets and processes are real."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec import structs

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.cli.main import cli
from perception.errors import SessionError
from perception.messages import FusedState, Health, InputHealth
from perception.profile import Profile, load
from perception.session import Session, SessionWriter
from perception.session.keyboard import Key
from perception.session.player import Playback, Player
from perception.session.readers import Readers
from perception.session.recorder import EVERY_MESSAGE
from perception.units import SECOND_NS
from tests.streams import CAMERA, MS, START_NS, Stream, clock_tick, of, scripted_room
from tests.waiting import LONG_S, eventually


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
    first_ns = of(received, CAMERA)[0].header.stamp_ns
    assert begun_ns < first_ns < bus.clock()
    for topic in {one.topic for one in expected}:
        for got, was in zip(of(received, topic), of(expected, topic), strict=True):
            passed_ns = was.header.stamp_ns - START_NS
            assert abs(got.header.stamp_ns - first_ns - passed_ns / 10) <= 1
            assert got.header.stamp_ns < got.header.sent_ns
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
        steps = np.diff(stamps)
        # 40 frames, 50 ms apart, in a two-hundredth of the time; the next lap follows as closely
        assert (steps > 0).all()
        assert abs(steps - 50 * MS / 200).max() <= 1
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


# --- commands and processes ---


def test_the_command_plays_a_file(session_file: Path) -> None:
    arguments = [
        "replay",
        str(session_file),
        "--rate",
        "max",
        "--no-wait",
        "--domain",
        "t",
        "--topics",
        "camera/*",
        "--topics",
        "label/*",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.output.splitlines() == [
        "perception: begins at once, without waiting for readers",
        "published 40 camera/front, 1 label/truth",
    ]
    wrong = CliRunner().invoke(cli, ["replay", str(session_file), "--rate", "fast"])
    assert "'fast' is neither a rate above 0 nor 'max'" in wrong.output


def test_the_node_plays_the_session_of_its_profile(session_file: Path) -> None:
    options = [f"replay.file={session_file}", "replay.rate=4", "replay.wait=1"]
    settings = [part for option in options for part in ("--set", option)]
    command = [sys.executable, "-P", "-m", "perception.nodes.replayer", "replay", *settings]
    runtime, clock = Runtime("replay"), HostClock().now_ns
    with Subscriber(
        "camera/*", "label/*", runtime=runtime, clock=clock, policies=EVERY_MESSAGE
    ) as subscriber:
        process = subprocess.Popen(command)
        seqs: list[int] = []
        topics: set[str] = set()
        while topics != {CAMERA, "label/truth"} or seqs[-1] < 39:
            message = subscriber.receive(LONG_S)
            assert message is not None
            topics.add(message.topic)
            if message.topic == CAMERA:
                seqs.append(message.header.seq)
        assert process.wait(LONG_S) == 0
    assert seqs == list(range(40))


def test_the_replay_profile_ships() -> None:
    profile: Profile = load("replay")
    assert profile.replay is not None
    assert profile.fusion is not None


# --- readers ---

GRAPH = """
domain = "{domain}"
[replay]
file = "{file}"
[fusion.inputs.camera]
topic = "camera/front"
[fusion.inputs.microphone]
topic = "microphone/main"
[fusion.encoders.level]
input = "microphone"
kind = "level"
[fusion.head]
weights = "random"
classes = ["a", "b"]
"""


def graph(folder: Path, file: Path, domain: str) -> Path:
    profile = folder / f"{domain}.toml"
    profile.write_text(GRAPH.format(domain=domain, file=file))
    return profile


def test_a_short_recording_gives_states_and_is_recorded_whole(session_file: Path, tmp_path: Path) -> None:
    """The player waits for the fusion, which loads torch meanwhile, and for the recorder."""
    profile = graph(tmp_path, session_file, "short")
    report, out = tmp_path / "report.json", tmp_path / "again.mcap"
    command = [sys.executable, "-m", "perception", "up", str(profile), "--json", str(report)]
    settings = ["--set", "record=true", "--set", f"recorder.out={out}"]
    ended = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=LONG_S)
    assert ended.returncode == 0, ended.stderr
    assert "waits for fusion to read camera/front, microphone/main" in ended.stderr
    assert "all readers are connected, the play begins" in ended.stderr
    assert json.loads(report.read_text())["ticks"]["published"] >= 15
    with Session(out) as again, Session(session_file) as was:
        for topic in (CAMERA, "microphone/main", "label/truth"):
            assert again.counts[topic] == was.counts[topic]
        states = [message.header for message in again.messages(["state/*"])]
    seen = [one for one in states if isinstance(one, FusedState) and one.modalities["camera"].seqs]
    assert min(one.modalities["camera"].seqs[0] for one in seen if one.modalities["camera"].seqs) <= 2


def test_the_command_waits_for_a_fusion_that_is_loading_whoever_else_reads(
    session_file: Path, tmp_path: Path
) -> None:
    runtime, clock = Runtime("late"), HostClock().now_ns
    node = [sys.executable, "-P", "-m", "perception.nodes.fusion"]
    node.append(str(graph(tmp_path, session_file, "late")))
    patterns = ("camera/*", "label/*", "state/*")
    with Subscriber(*patterns, runtime=runtime, clock=clock, policies=EVERY_MESSAGE) as other:
        fusion = subprocess.Popen(node)
        try:
            eventually(lambda: "journal/fusion" in runtime.topics())
            result = CliRunner().invoke(cli, ["replay", str(session_file), "--domain", "late"])
            states = []
            while message := other.receive(1.0):
                if isinstance(message.header, FusedState):
                    states.append(message.header)
                    if len(states) > 30:
                        break
        finally:
            fusion.terminate()
            fusion.wait(LONG_S)
    assert "waits for fusion to read anything" in result.output
    presence = Counter(one.modalities["camera"].presence for one in states)
    assert presence["present"] >= 15


def test_the_command_waits_for_as_many_readers_as_asked_for(
    session_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, clock = Runtime("two"), HostClock().now_ns
    seqs: dict[str, list[int]] = {"first": [], "second": []}

    def read(name: str, stack: ExitStack) -> None:
        subscriber = stack.enter_context(
            Subscriber("camera/*", runtime=runtime, clock=clock, policies=EVERY_MESSAGE)
        )
        while len(seqs[name]) < 40 and (message := subscriber.receive(LONG_S)) is not None:
            seqs[name].append(message.header.seq)

    command = [sys.executable, "-m", "perception", "replay", str(session_file), "--rate", "20", "--wait", "2"]
    with ExitStack() as stack:
        readers = [threading.Thread(target=read, args=(name, stack)) for name in seqs]
        readers[0].start()
        process = subprocess.Popen([*command, "--domain", "two"], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "waits for " in process.stderr.readline()
        readers[1].start()
        for reader in readers:
            reader.join(LONG_S)
        assert process.wait(LONG_S) == 0
        process.stderr.close()
    assert seqs == {"first": list(range(40)), "second": list(range(40))}


def test_readers_are_counted_once_each_and_labels_do_not_count(bus: Bus) -> None:
    topics = [CAMERA, "text/say", "label/truth"]
    with ExitStack() as stack:
        publishers = {topic: stack.enter_context(bus.publisher(topic)) for topic in topics}
        health = stack.enter_context(bus.subscriber("health/*"))
        readers = Readers(health, at_least=2)
        stack.enter_context(bus.subscriber("label/*"))
        assert publishers["label/truth"].wait_for_subscriber(LONG_S)
        assert readers.awaited(publishers) == "2 readers of camera/front, text/say, label/truth"
        stack.enter_context(bus.subscriber(CAMERA, "text/say"))
        eventually(lambda: readers.awaited(publishers).startswith("1 reader of"))
        assert all(publishers[topic].wait_for_subscriber(LONG_S) for topic in topics)
        assert readers.awaited(publishers).startswith("1 reader of")
        stack.enter_context(bus.subscriber("text/*"))
        eventually(lambda: readers.awaited(publishers) == "")


def test_a_promised_node_has_said_itself_that_it_reads(bus: Bus) -> None:
    with ExitStack() as stack:
        publishers = {topic: stack.enter_context(bus.publisher(topic)) for topic in (CAMERA, "text/say")}
        health = stack.enter_context(bus.subscriber("health/*"))
        readers = Readers(health, nodes={"fusion": (CAMERA, "microphone/main", "text/*")})
        stack.enter_context(bus.subscriber("*"))
        assert all(publisher.wait_for_subscriber(LONG_S) for publisher in publishers.values())
        assert readers.awaited(publishers) == "fusion to read camera/front, text/say"
        node = stack.enter_context(bus.publisher("health/fusion"))
        assert node.wait_for_subscriber(LONG_S)

        def says(*topics: str) -> str:
            report = Health(stamp_ns=1, node="fusion", inputs={topic: InputHealth() for topic in topics})
            node.send(report)
            return readers.awaited(publishers)

        eventually(lambda: says(CAMERA) == "fusion to read camera/front, text/say")
        eventually(lambda: says(CAMERA, "text/say", "microphone/main") == "")


def test_who_waits_says_so_and_can_quit(bus: Bus, session_file: Path) -> None:
    said: list[str] = []
    stopped = threading.Event()
    with Session(session_file) as session:
        player = Player(
            session,
            Playback(),
            bus.publisher,
            clock=bus.clock,
            stopped=stopped,
            keys=Script([None, None, "quit"]),
            awaited=lambda publishers: f"a reader of {len(publishers)} topics",
            notify=said.append,
        )
        player.run()
    assert said == ["waits for a reader of 3 topics"]
    assert not player.published
    assert stopped.is_set()


def test_nothing_to_play_is_an_error(bus: Bus, session_file: Path) -> None:
    with Session(session_file) as session:
        player = Player(
            session,
            Playback(start_s=100.0),
            bus.publisher,
            clock=bus.clock,
            stopped=threading.Event(),
        )
        with pytest.raises(SessionError, match="holds nothing in the time to play"):
            player.run()
