"""Holders of a key do what its entry in the trust file allows, nothing else; a revoked key does nothing."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from perception.bus import codec, keys, trust
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.remote import closest
from perception.bus.subscriber import Subscriber
from perception.cli.main import run
from perception.errors import BusError
from perception.messages import CameraFrame, Header, SwapRequest
from tests.bus import Bus, say, text
from tests.waiting import LONG_S, eventually

FRAME = CameraFrame(stamp_ns=1, width=2, height=1, encoding="bgr8")
SWAP = SwapRequest(stamp_ns=1, action="shadow", folder="/evil")
CONTENT: dict[str, tuple[Header, bytes]] = {
    "camera": (FRAME, bytes(6)), "control": (SWAP, b""), "text": (say("lie"), b"")
}  # fmt: skip


class Host:
    """A host with a pair of keys and a runtime directory of its own."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self.keys = keys.new_keys(base / f"{name}-keys")
        (base / name).mkdir(mode=0o700)
        self.runtime = Runtime(base=base / name)
        self.clock = HostClock(base / name).now_ns

    def trusts(self, other: "Host", **rights: Any) -> None:
        entry = trust.Entry(key=trust.hex_of(keys.load(other.keys).public), **rights)
        trust.add(self.keys, other.name, entry)

    def publisher(self, topic: str, endpoint: str = "tcp://127.0.0.1:*") -> Publisher:
        return Publisher(
            topic, source=self.name, runtime=self.runtime, clock=self.clock, endpoint=endpoint, keys=self.keys
        )

    def subscriber(self, *patterns: str, connect: dict[str, str]) -> Subscriber:
        return Subscriber(*patterns, runtime=self.runtime, clock=self.clock, connect=connect, keys=self.keys)


class Liar:
    """Publishes any topic at one endpoint, with the keys of a host or without."""

    def __init__(self, host: Host | None = None) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        if host is None:
            self._socket.bind("tcp://127.0.0.1:*")
        else:
            with keys.load(host.keys).serving(self._socket):
                self._socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._seq = 0

    def send(self, *topics: str) -> None:
        for topic in topics:
            header, payload = CONTENT[topic.partition("/")[0]]
            self._seq += 1
            self._socket.send_multipart(codec.encode(topic, header, payload))

    def __enter__(self) -> "Liar":
        return self

    def __exit__(self, *exc: object) -> None:
        self._context.destroy(0)


def at(name: str, endpoint: str | None) -> str:
    return f"tcp://{name}@{str(endpoint).removeprefix('tcp://')}"


def taken(reader: Subscriber, liar: Liar, honest: str, *lies: str) -> set[str]:
    """Return the topics received while a liar publishes on its own topic and on others."""
    found: set[str] = set()
    end_s = time.monotonic() + LONG_S
    while honest not in found and time.monotonic() < end_s:
        liar.send(*lies, honest)
        while message := reader.receive(0.02):
            found.add(message.topic)
    for _ in range(5):
        liar.send(*lies)
        while message := reader.receive(0.02):
            found.add(message.topic)
    return found


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        yield Path(folder)


@pytest.fixture
def robot(base: Path) -> Host:
    return Host("robot", base)


@pytest.fixture
def laptop(base: Path) -> Host:
    return Host("laptop", base)


def received(publisher: Publisher, reader: Subscriber) -> bool:
    publisher.send(say("x"))
    return reader.receive(0.05) is not None


def test_each_host_has_its_own_pair(robot: Host, laptop: Host) -> None:
    robot.trusts(laptop, subscribe=("text/*",))
    laptop.trusts(robot, publish=("text/*",))
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": at("robot", out.endpoint)}) as reader,
    ):
        eventually(lambda: received(out, reader))


def test_the_only_host_that_may_publish_a_topic_need_not_be_named(robot: Host, laptop: Host) -> None:
    robot.trusts(laptop, subscribe=("*",))
    laptop.trusts(robot, publish=("text/*",))
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/*", connect={"text/*": str(out.endpoint)}) as reader,
    ):
        eventually(lambda: received(out, reader))


@pytest.mark.parametrize(
    "rights",
    [
        {"subscribe": ("camera/*",)},
        {"subscribe": ("text/sayer",)},
        {"publish": ("*",)},
        {"control": ("*",)},
    ],
    ids=str,
)
def test_attack_a_key_without_the_right_to_subscribe_receives_nothing(
    robot: Host, laptop: Host, rights: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    robot.trusts(laptop, **rights)
    laptop.trusts(robot, publish=("*",))
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": str(out.endpoint)}) as reader,
    ):
        eventually(lambda: "text/say: refused 'laptop': its key has no right to subscribe" in caplog.text)
        out.send(say("secret"))
        assert reader.receive(0.2) is None
        assert out.subscribers == 0


def test_attack_a_revoked_reader_is_cut_off_within_5_s_and_stays_out(robot: Host, laptop: Host) -> None:
    robot.trusts(laptop, subscribe=("*",))
    laptop.trusts(robot, publish=("*",))
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": str(out.endpoint)}) as reader,
    ):
        eventually(lambda: received(out, reader))
        begun_s = time.monotonic()
        trust.remove(robot.keys, "laptop")
        eventually(lambda: out.subscribers == 0, 5)
        assert time.monotonic() - begun_s < 5
        reader.receive(0)
        out.send(say("secret"))
        assert reader.receive(0.5) is None
        assert out.subscribers == 0


def test_revocation_of_one_reader_does_not_touch_the_others(robot: Host, laptop: Host, base: Path) -> None:
    other = Host("other", base)
    for host in (laptop, other):
        robot.trusts(host, subscribe=("*",))
        host.trusts(robot, publish=("*",))
    with robot.publisher("text/say") as out:
        connect = {"text/say": str(out.endpoint)}
        with (
            laptop.subscriber("text/say", connect=connect) as revoked,
            other.subscriber("text/say", connect=connect) as stays,
        ):
            eventually(lambda: received(out, revoked) and received(out, stays))
            while stays.receive(0.1):
                pass
            before = out.published
            trust.remove(robot.keys, "laptop")
            eventually(lambda: out.subscribers == 1, 5)
            for _ in range(20):
                out.send(say("x"))
                assert stays.receive(LONG_S) is not None
            assert stays.health()["text/say"].lost == 0
            assert out.published == before + 20


def test_attack_nothing_is_taken_from_a_revoked_publisher(
    robot: Host, laptop: Host, caplog: pytest.LogCaptureFixture
) -> None:
    robot.trusts(laptop, subscribe=("*",))
    laptop.trusts(robot, publish=("*",))
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": at("robot", out.endpoint)}) as reader,
    ):
        eventually(lambda: received(out, reader))
        trust.remove(laptop.keys, "robot")
        eventually(lambda: "no right to publish this, or it was revoked" in caplog.text, 5)
        while reader.receive(0):
            pass
        out.send(say("lie"))
        assert reader.receive(0.5) is None
        laptop.trusts(robot, publish=("*",))  # without a restart
        eventually(lambda: received(out, reader))


def test_a_host_may_be_given_a_new_pair_while_the_graph_runs(robot: Host, laptop: Host, base: Path) -> None:
    robot.trusts(laptop, subscribe=("*",))
    laptop.trusts(robot, publish=("*",))
    with robot.publisher("text/say") as old:
        endpoint = str(old.endpoint)
        reader = laptop.subscriber("text/say", connect={"text/say": at("robot", endpoint)})
        eventually(lambda: received(old, reader))
    (robot.keys / "bus.key_secret").unlink()
    keys.new_keys(robot.keys)
    laptop.trusts(robot, publish=("*",))
    with reader, robot.publisher("text/say", endpoint) as new:
        eventually(lambda: received(new, reader))


def test_attack_a_trusted_host_cannot_pass_for_another(robot: Host, laptop: Host, base: Path) -> None:
    evil = Host("evil", base)
    laptop.trusts(robot, publish=("text/*",))
    laptop.trusts(evil, publish=("camera/*",))
    evil.trusts(laptop, subscribe=("*",))
    with (
        evil.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": at("robot", out.endpoint)}) as reader,
    ):
        assert not out.wait_for_subscriber(0.3)
        out.send(say("lie"))
        assert reader.receive(0.2) is None


def test_attack_a_publisher_is_accepted_for_the_topics_of_its_right_only(robot: Host, laptop: Host) -> None:
    laptop.trusts(robot, publish=("camera/*",))
    robot.trusts(laptop, subscribe=("*",))
    with (
        Liar(robot) as liar,
        laptop.subscriber("*", connect={"*": at("robot", liar.endpoint)}) as reader,
    ):
        lies = ("text/say", "control/fusion", "text/operator")
        assert taken(reader, liar, "camera/front", *lies) == {"camera/front"}


@pytest.mark.parametrize("pattern", ["control/fusion", "control/*"])
def test_attack_control_needs_the_right_to_control(robot: Host, laptop: Host, pattern: str) -> None:
    laptop.trusts(robot, publish=("*",), control=("control/other",) if pattern != "control/fusion" else ())
    with Liar(robot) as liar:
        connect = {"camera/front": at("robot", liar.endpoint), pattern: at("robot", liar.endpoint)}
        with laptop.subscriber("camera/front", "control/fusion", connect=connect) as reader:
            assert taken(reader, liar, "camera/front", "control/fusion") == {"camera/front"}


def test_who_has_the_right_controls(robot: Host, laptop: Host) -> None:
    laptop.trusts(robot, control=("control/fusion",))
    with (
        Liar(robot) as liar,
        laptop.subscriber("control/fusion", connect={"control/fusion": at("robot", liar.endpoint)}) as reader,
    ):
        assert taken(reader, liar, "control/fusion") == {"control/fusion"}


def test_attack_an_endpoint_is_taken_for_the_topics_it_was_named_for_only(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """Without keys: a remote camera could swap the head."""
    with (
        Liar() as liar,
        bus.subscriber(
            "camera/*", "text/*", "control/fusion", connect={"camera/front": liar.endpoint}
        ) as reader,
    ):
        lies = ("control/fusion", "text/say", "camera/rear", "camera/frontal")
        assert taken(reader, liar, "camera/front", *lies) == {"camera/front"}
        assert set(reader.health()) == {"camera/front"} | {"control/fusion"}
        assert reader.health()["control/fusion"].received == 0


def test_attack_an_endpoint_for_everything_does_not_control(bus: Bus) -> None:
    with Liar() as liar, bus.subscriber("*", connect={"*": liar.endpoint}) as reader:
        assert taken(reader, liar, "camera/front", "control/fusion") == {"camera/front"}


def test_attack_an_endpoint_named_for_a_pattern_is_not_taken_for_a_topic_that_another_one_is_named_for(
    bus: Bus,
) -> None:
    with Liar() as wide, Liar() as front:
        connect = {"camera/*": wide.endpoint, "camera/front": front.endpoint, "text/say": front.endpoint}
        with bus.subscriber("camera/*", "text/say", connect=connect) as reader:
            assert taken(reader, wide, "camera/rear", "camera/front") == {"camera/rear"}
            assert taken(reader, front, "camera/front", "camera/rear") == {"camera/front"}
            assert taken(reader, front, "text/say", "camera/side") == {"text/say"}


def test_the_closest_pattern_names_a_topic() -> None:
    patterns = ("*", "camera/*", "camera/f*", "camera/front", "control/*")
    assert closest(patterns, "camera/front") == ["camera/front"]
    assert closest(patterns, "camera/far") == ["camera/f*"]
    assert closest(patterns, "text/say") == ["*"]
    assert closest(patterns, "control/fusion") == ["control/*"]
    assert closest(("*",), "control/fusion") == []


def test_attack_a_flood_of_new_topics_displaces_no_named_topic(bus: Bus) -> None:
    with (
        Liar() as liar,
        bus.publisher("text/here") as here,
        bus.subscriber("text/here", "camera/*", connect={"camera/*": liar.endpoint}) as reader,
    ):
        assert here.wait_for_subscriber(LONG_S)
        taken(reader, liar, "camera/front")
        for number in range(1200):
            liar.send(f"camera/n{number}")
        while reader.receive(0.3):
            pass
        here.send(say("received"))
        messages = iter(lambda: reader.receive(LONG_S), None)
        assert text(next(message for message in messages if message.topic == "text/here")) == "received"


def test_without_a_trust_file_only_copies_of_the_folder_are_served(robot: Host, laptop: Host) -> None:
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": str(out.endpoint)}) as reader,
    ):
        assert not out.wait_for_subscriber(0.3)
        assert reader.receive(0) is None


def test_a_publisher_that_is_not_named_clearly_is_one_clear_error(
    robot: Host, laptop: Host, base: Path
) -> None:
    other = Host("other", base)
    laptop.trusts(robot, publish=("camera/*",))
    laptop.trusts(other, publish=("camera/front",))
    with pytest.raises(BusError, match="robot, other may publish it; name one before its host"):
        laptop.subscriber("camera/*", connect={"camera/*": "tcp://127.0.0.1:9"})
    with pytest.raises(BusError, match="holds no key of 'nobody'; add it: perception keys trust nobody"):
        laptop.subscriber("camera/*", connect={"camera/*": "tcp://nobody@127.0.0.1:9"})
    with pytest.raises(BusError, match="names a key; give the folder of keys"):
        Subscriber(
            "camera/*",
            runtime=laptop.runtime,
            clock=laptop.clock,
            connect={"camera/*": "tcp://robot@127.0.0.1:9"},
        )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[robot]\nkey = 'zz'\n", "robot.key"),
        ("[robot]\nkey = '" + "a" * 64 + "'\nsubscribe = ['camra/*']\n", "matches no topic"),
        ("[robot]\nkey = '" + "a" * 64 + "'\nadmin = true\n", "robot.admin: no such key"),
        ("[a]\nkey = '" + "a" * 64 + "'\n[b]\nkey = '" + "a" * 64 + "'\n", "two names have one key"),
        ("[robot\n", "unreadable"),
        ("a = " + "[" * 100_000, "unreadable"),
        ("#" * (2 << 20), "unreadable"),
    ],
    ids=["key", "pattern", "right", "twice", "broken", "deep", "long"],
)
def test_a_malformed_trust_file_is_one_clear_error(robot: Host, content: str, problem: str) -> None:
    (robot.keys / "trust.toml").write_text(content)
    with pytest.raises(BusError, match=problem) as error:
        keys.load(robot.keys)
    assert "\n" not in str(error.value)


def test_attack_a_trust_file_that_others_may_change_is_refused(robot: Host, laptop: Host) -> None:
    robot.trusts(laptop, subscribe=("*",))
    (robot.keys / "trust.toml").chmod(0o666)
    with pytest.raises(BusError, match="can be changed by other users; run: chmod 600"):
        keys.load(robot.keys)


def test_a_trust_file_broken_while_the_graph_runs_changes_no_rights(
    robot: Host, laptop: Host, caplog: pytest.LogCaptureFixture
) -> None:
    robot.trusts(laptop, subscribe=("*",))
    laptop.trusts(robot, publish=("*",))
    with (
        robot.publisher("text/say") as out,
        laptop.subscriber("text/say", connect={"text/say": str(out.endpoint)}) as reader,
    ):
        eventually(lambda: received(out, reader))
        (robot.keys / "trust.toml").write_text("[")
        eventually(lambda: "what it held before still applies" in caplog.text)
        eventually(lambda: received(out, reader))


def test_the_command_manages_keys_and_keeps_what_a_person_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["keys", "new"]) == 0
    assert run(["keys", "new", "other"]) == 0
    capsys.readouterr()
    assert run(["keys", "show", "--folder", "other"]) == 0
    key = capsys.readouterr().out.strip()
    assert run(["keys", "trust", "cam", key, "--publish", "camera/*", "--subscribe", "state/*"]) == 0
    file = tmp_path / "keys" / "trust.toml"
    file.write_text(f"# by hand\n{file.read_text()}# cam ends here\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(["keys", "trust", "cam", key, "--control", "control/fusion"]) == 0
    capsys.readouterr()
    assert run(["keys", "list"]) == 0
    assert f"cam: key {key}: control control/fusion\n" in capsys.readouterr().out
    assert run(["keys", "revoke", "cam"]) == 0
    assert trust.read(file) == {}
    assert file.read_text().startswith("# by hand")
    assert run(["keys", "revoke", "cam"]) == 5
    assert run(["keys", "trust", "cam", key]) == 2
    assert run(["keys", "trust", "cam", "zz", "--publish", "*"]) == 2
    assert run(["keys", "trust", "c m", key, "--publish", "*"]) == 5
    assert run(["keys", "trust", "cam", key, "--publish", "camra/*"]) == 2
