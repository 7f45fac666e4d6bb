"""Readers correct the times of other hosts: a time service answers, an estimate is applied on receipt."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq

import perception
from perception.bus import keys, trust
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.remote_hosts import ask, service_at
from perception.bus.subscriber import Subscriber
from perception.bus.time_service import RATE_HZ, TIME, TOPICS, Allowance, TimeServer
from perception.bus.trust import Entry
from perception.errors import BusError, PerceptionError
from perception.messages import Label, TextCommand
from perception.profile.hosts import RemoteHost
from perception.torture import zmtp
from tests.waiting import LONG_S, eventually

SECOND = 1_000_000_000
AHEAD = 30 * SECOND
LOOPBACK = "tcp://127.0.0.1:*"


class Elsewhere:
    """A host whose clock is ahead, fast, and may be set."""

    def __init__(self, base: Path) -> None:
        self._here = HostClock(base).now_ns
        self._zero_ns = self._here()
        self.ahead_ns = AHEAD

    def now_ns(self) -> int:
        here_ns = self._here()
        return here_ns + self.ahead_ns + (here_ns - self._zero_ns) // 10_000


@contextmanager
def serving(server: TimeServer) -> Iterator[TimeServer]:
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            server.serve(0.02)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        thread.join()
        server.close()


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        yield Path(folder)


@pytest.fixture
def clock(base: Path) -> Elsewhere:
    return Elsewhere(base)


@pytest.fixture
def server(clock: Elsewhere) -> Iterator[TimeServer]:
    with serving(TimeServer(LOOPBACK, clock=clock.now_ns, ports={"text/say": 5601})) as server:
        yield server


@pytest.fixture
def publisher(base: Path, clock: Elsewhere) -> Iterator[Publisher]:
    with Publisher(
        "text/say", source="far", runtime=Runtime("far", base / "far"), clock=clock.now_ns, endpoint=LOOPBACK
    ) as publisher:
        yield publisher


def reader(base: Path, *patterns: str, **hosts: RemoteHost) -> Subscriber:
    here = HostClock(base).now_ns
    return Subscriber(*patterns, runtime=Runtime("here", base), clock=here, hosts=hosts)


def far(server: TimeServer, *publishers: Publisher) -> RemoteHost:
    return RemoteHost(server.endpoint, {one.topic: str(one.endpoint) for one in publishers})


def known(subscriber: Subscriber) -> bool:
    return all(one.offset_ms is not None for one in subscriber.host_times().values())


def say(publisher: Publisher, clock: Elsewhere) -> TextCommand:
    sent = publisher.send(TextCommand(stamp_ns=clock.now_ns(), text="hello"))
    assert isinstance(sent, TextCommand)
    return sent


def test_times_of_another_host_are_corrected_on_receipt(
    base: Path, clock: Elsewhere, server: TimeServer, publisher: Publisher
) -> None:
    here = HostClock(base).now_ns
    with reader(base, "text/*", robot=far(server, publisher)) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        eventually(lambda: known(subscriber))
        before_ns = here()
        sent = say(publisher, clock)
        after_ns = here()
        message = subscriber.receive(LONG_S)
        assert message is not None
        header = message.header
        tolerance_ns = SECOND // 100  # a busy machine
        assert before_ns - tolerance_ns <= header.stamp_ns <= header.sent_ns <= after_ns + tolerance_ns
        assert header.stamp_ns - header.correction_ns == sent.stamp_ns
        assert header.sent_ns - header.correction_ns == sent.sent_ns
        assert header.source == publisher.source
        report = subscriber.host_times()["robot"]
        assert report.offset_ms is not None
        assert report.offset_ms == pytest.approx(30_000, abs=20)
        assert report.round_trip_ms > 0
        assert 0 < report.bound_ms < 100
        assert subscriber.health()["text/say"].age_ms is not None


def test_a_host_is_read_once_its_clock_is_known(base: Path, clock: Elsewhere, publisher: Publisher) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{one.getsockname()[1]}"
    host = RemoteHost(endpoint, {"text/say": str(publisher.endpoint)})
    with reader(base, "text/*", robot=host) as subscriber:
        assert subscriber.receive(0.5) is None
        assert publisher.subscribers == 0
        assert subscriber.host_times()["robot"].offset_ms is None
        with serving(TimeServer(endpoint, clock=clock.now_ns)):
            assert publisher.wait_for_subscriber(LONG_S)
            say(publisher, clock)
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert message.header.correction_ns < 0
        assert subscriber.health()["text/say"].dropped == {}


def test_a_program_reads_a_host_by_its_address(base: Path, clock: Elsewhere, publisher: Publisher) -> None:
    port = int(str(publisher.endpoint).rpartition(":")[2])
    with serving(TimeServer(LOOPBACK, clock=clock.now_ns, ports={"text/say": port})) as server:
        address = server.endpoint.removeprefix("tcp://")
        with perception.subscribe("text/*", connect=address) as subscriber:
            assert publisher.wait_for_subscriber(LONG_S)
            say(publisher, clock)
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert abs(message.header.stamp_ns - message.received_ns) < LONG_S * 1e9
            assert message.header.correction_ns < -20 * SECOND
        with pytest.raises(PerceptionError, match=r"serves no topic that matches camera/\*; it serves"):
            perception.subscribe("camera/*", connect=address)


def test_a_clock_that_was_set_is_followed(
    base: Path, clock: Elsewhere, server: TimeServer, publisher: Publisher
) -> None:
    with reader(base, "text/say", robot=far(server, publisher)) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        eventually(lambda: known(subscriber))
        clock.ahead_ns -= 3600 * SECOND
        eventually(lambda: subscriber.host_times()["robot"].steps == 1)
        say(publisher, clock)
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert abs(message.header.stamp_ns - message.received_ns) < 5 * SECOND


def test_topics_of_this_host_and_plain_connections_are_not_touched(
    base: Path, clock: Elsewhere, server: TimeServer, publisher: Publisher
) -> None:
    runtime, here = Runtime("here", base), HostClock(base).now_ns
    with (
        Publisher("label/truth", source="near", runtime=runtime, clock=here) as near,
        Publisher(
            "text/plain", source="x", runtime=Runtime("x", base / "far"), clock=here, endpoint=LOOPBACK
        ) as plain,
        Subscriber(
            "*",
            runtime=runtime,
            clock=here,
            connect={"text/plain": str(plain.endpoint)},
            hosts={"robot": far(server, publisher)},
        ) as subscriber,
    ):
        assert all(one.wait_for_subscriber(LONG_S) for one in (near, plain, publisher))
        near.send(Label(stamp_ns=5, start_ns=5, end_ns=9, name="a"))
        plain.send(TextCommand(stamp_ns=7, text="a"))
        got = {
            one.topic: one.header for one in (subscriber.receive(LONG_S), subscriber.receive(LONG_S)) if one
        }
        assert {topic: (one.stamp_ns, one.correction_ns) for topic, one in got.items()} == {
            "label/truth": (5, 0),
            "text/plain": (7, 0),
        }


def test_an_absurd_stamp_is_refused(
    base: Path, clock: Elsewhere, server: TimeServer, publisher: Publisher
) -> None:
    clock.ahead_ns = -AHEAD
    with reader(base, "text/say", robot=far(server, publisher)) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        eventually(lambda: known(subscriber))
        publisher.send(TextCommand(stamp_ns=1 << 62, text="far future"))
        eventually(lambda: subscriber.health()["text/say"].dropped.get("malformed") == 1)


def test_a_host_that_comes_back_elsewhere_in_time_is_found(base: Path, clock: Elsewhere) -> None:
    """Its time service and its publishers start again, after a reboot without a clock battery."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    endpoint = f"tcp://127.0.0.1:{port}"
    host = RemoteHost(endpoint, {"text/say": "tcp://127.0.0.1:9"})
    with reader(base, "text/say", robot=host) as subscriber:
        with serving(TimeServer(endpoint, clock=clock.now_ns)):
            eventually(lambda: known(subscriber))
        clock.ahead_ns = -50 * 365 * 86_400 * SECOND
        with serving(TimeServer(endpoint, clock=clock.now_ns)):
            eventually(lambda: subscriber.host_times()["robot"].steps == 1)
        offset_ms = subscriber.host_times()["robot"].offset_ms
        assert offset_ms is not None
        assert offset_ms < -1e9


# --- the service ---


def asked(server: TimeServer, *frames: bytes, wait_ms: int = 200) -> object:
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.set(zmq.LINGER, 0)
        client.connect(server.endpoint)
        client.send_multipart(frames)
        return msgpack.unpackb(client.recv(), strict_map_key=False) if client.poll(wait_ms) else None


def test_any_msgpack_library_can_ask(server: TimeServer, clock: Elsewhere) -> None:
    before_ns = clock.now_ns()
    answer = asked(server, msgpack.packb([TIME, 7]), wait_ms=60_000)
    assert isinstance(answer, list)
    kind, number, received_ns, answered_ns = answer
    assert (kind, number) == (TIME, 7)
    assert before_ns <= received_ns <= answered_ns <= clock.now_ns()
    assert asked(server, msgpack.packb([TOPICS, 8]), wait_ms=60_000) == [TOPICS, 8, {"text/say": 5601}]


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"\xff" * 32,),
        (b"\x91" * 32,),
        (msgpack.packb([3, 1]),),
        (msgpack.packb([TIME, -1, 4]),),
        (msgpack.packb([TIME, 1]), b"more"),
        (b"\0" * 64,),
    ],
    ids=["empty", "garbage", "nested", "unknown kind", "too many items", "two frames", "too large"],
)
def test_what_is_no_request_gets_no_answer_and_harms_nobody(
    server: TimeServer, frames: tuple[bytes, ...]
) -> None:
    assert asked(server, *frames) is None
    assert asked(server, msgpack.packb([TIME, 7]), wait_ms=60_000) is not None


def test_a_peer_that_asks_without_end_is_limited_and_others_are_answered(server: TimeServer) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as flood:
        flood.set(zmq.LINGER, 0)
        flood.connect(server.endpoint)
        for number in range(500):
            flood.send(msgpack.packb([TIME, number]))
        eventually(lambda: server.counts["refused"] > 100)
        assert server.counts["answered"] < 400
        assert asked(server, msgpack.packb([TIME, 7]), wait_ms=60_000) is not None


def test_a_message_without_an_end_is_cut_off(server: TimeServer) -> None:
    with zmtp.connected(server.endpoint) as endless:
        zmtp.greet(endless, b"REQ")
        most = 100_000_000
        assert zmtp.sent_until_disconnected(endless, zmtp.frame(b"x", more=True) * 10_000, most) < most
    eventually(lambda: server.counts["disconnected"] == 1)
    assert asked(server, msgpack.packb([TIME, 7]), wait_ms=60_000) is not None


def test_an_allowance_is_what_the_rate_gives() -> None:
    allowance = Allowance(RATE_HZ, 10, 0)
    assert [allowance.take(0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [allowance.take(SECOND // RATE_HZ) for _ in range(2)] == [True, False]
    assert [allowance.take(100 * SECOND) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not allowance.take(0), "a clock that was set back gives nothing"


def test_only_who_holds_the_keys_is_answered(base: Path, clock: Elsewhere) -> None:
    pair, other = keys.new_keys(base / "ours"), keys.new_keys(base / "theirs")
    ports = {"text/say": 5601}
    with serving(TimeServer(LOOPBACK, clock=clock.now_ns, ports=ports, keys=pair)) as server:
        address = server.endpoint.removeprefix("tcp://")
        host = ask(address, timeout_s=LONG_S, keys=pair)
        assert host == RemoteHost(server.endpoint, {"text/say": "tcp://127.0.0.1:5601"})
        for folder in (None, other):
            with pytest.raises(BusError, match=r"no answer from tcp://127\.0\.0\.1:"):
                ask(address, timeout_s=0.3, keys=folder)


def test_hosts_with_keys_of_their_own_correct_their_times(base: Path, clock: Elsewhere) -> None:
    robot, desk = keys.new_keys(base / "robot"), keys.new_keys(base / "desk")
    trust.add(robot, "desk", Entry(key=trust.hex_of(keys.load(desk).public), subscribe=("text/*",)))
    trust.add(desk, "robot", Entry(key=trust.hex_of(keys.load(robot).public), publish=("text/*",)))
    runtime = Runtime("far", base / "far")
    with (
        serving(TimeServer(LOOPBACK, clock=clock.now_ns, keys=robot)) as server,
        Publisher(
            "text/say", source="far", runtime=runtime, clock=clock.now_ns, endpoint=LOOPBACK, keys=robot
        ) as publisher,
    ):
        service, texts = (str(one).replace("//", "//robot@") for one in (server.endpoint, publisher.endpoint))
        with Subscriber(
            "text/*",
            runtime=Runtime("here", base),
            clock=HostClock(base).now_ns,
            hosts={"robot": RemoteHost(service, {"text/say": texts})},
            keys=desk,
        ) as subscriber:
            assert publisher.wait_for_subscriber(LONG_S)
            say(publisher, clock)
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert message.header.correction_ns < -20 * SECOND


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("robot.local", "tcp://robot.local:5600"),
        ("10.0.0.2:7000", "tcp://10.0.0.2:7000"),
        ("[::1]", "tcp://[::1]:5600"),
        ("[::1]:7000", "tcp://[::1]:7000"),
        ("tcp://robot:7000", "tcp://robot:7000"),
    ],
)
def test_a_host_may_be_named_in_short(address: str, endpoint: str) -> None:
    assert service_at(address) == endpoint


@pytest.mark.parametrize("address", ["", "*", "a b", "0.0.0.0", "robot:99999", "http://x", "::1", "robot:*"])
def test_what_is_no_host_is_refused(address: str) -> None:
    with pytest.raises(BusError):
        service_at(address)


def test_off_loopback_keys_are_needed(clock: Elsewhere) -> None:
    with pytest.raises(BusError, match="leaves this host unencrypted"):
        ask("192.0.2.1", timeout_s=1.0)
    with pytest.raises(BusError, match="leaves this host unencrypted"):
        TimeServer("tcp://0.0.0.0:5600", clock=clock.now_ns)


def test_a_port_in_use_is_one_clear_error(server: TimeServer, clock: Elsewhere) -> None:
    with pytest.raises(BusError, match="is in use by another program; choose another port"):
        TimeServer(server.endpoint, clock=clock.now_ns)


def test_a_reader_that_is_dropped_ends_its_threads(
    base: Path, server: TimeServer, publisher: Publisher
) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate()}

    subscriber = reader(base, "text/say", robot=far(server, publisher))
    assert "clocks of other hosts" in threads()
    del subscriber
    eventually(lambda: "clocks of other hosts" not in threads())
