"""Between hosts, only peers with the deployment's keys exchange messages."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import perception
from perception.bus import keys
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.errors import BusError
from perception.messages import TextCommand
from tests.waiting import LONG_S, eventually

HELLO = TextCommand(stamp_ns=1, text="hello")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        yield Path(folder)


@pytest.fixture
def pair(base: Path) -> Path:
    return keys.new_keys(base / "ours")


@pytest.fixture
def publisher(base: Path, pair: Path) -> Iterator[Publisher]:
    with Publisher(
        "text/say",
        source="test",
        runtime=Runtime(base=base),
        clock=HostClock(base).now_ns,
        endpoint="tcp://127.0.0.1:*",
        keys=pair,
    ) as publisher:
        yield publisher


def remote(base: Path, publisher: Publisher, folder: Path | None) -> Subscriber:
    assert publisher.endpoint is not None
    return Subscriber(
        "text/say",
        runtime=Runtime("elsewhere", base),
        clock=HostClock(base).now_ns,
        connect={"text/say": publisher.endpoint},
        keys=folder,
    )


def test_who_holds_the_keys_is_served(base: Path, pair: Path, publisher: Publisher) -> None:
    with remote(base, publisher, pair) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(HELLO)
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert message.header.source == publisher.source


def test_on_the_host_no_keys_are_needed(base: Path, publisher: Publisher) -> None:
    with Subscriber("text/*", runtime=Runtime(base=base), clock=HostClock(base).now_ns) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(HELLO)
        assert subscriber.receive(LONG_S) is not None


def test_one_subscriber_reads_with_keys_from_afar_and_without_on_the_host(
    base: Path, pair: Path, publisher: Publisher
) -> None:
    assert publisher.endpoint is not None
    elsewhere = Runtime("elsewhere", base)
    clock = HostClock(base).now_ns
    with (
        Subscriber(
            "*", runtime=elsewhere, clock=clock, connect={"text/say": publisher.endpoint}, keys=pair
        ) as subscriber,
        Publisher("text/here", source="test", runtime=elsewhere, clock=clock) as here,
    ):
        assert publisher.wait_for_subscriber(LONG_S)
        assert here.wait_for_subscriber(LONG_S)
        publisher.send(HELLO)
        here.send(HELLO)
        received = [subscriber.receive(LONG_S), subscriber.receive(LONG_S)]
        assert {message.topic for message in received if message} == {"text/say", "text/here"}


def test_who_holds_no_keys_or_others_gets_nothing(base: Path, publisher: Publisher) -> None:
    others = keys.new_keys(base / "others")
    with remote(base, publisher, None) as bare, remote(base, publisher, others) as outsider:
        assert not publisher.wait_for_subscriber(0.3)
        publisher.send(HELLO)
        assert bare.receive(0.1) is None
        assert outsider.receive(0.1) is None


@pytest.mark.parametrize("given", [None, "others"])
def test_wrong_keys_are_said_on_both_sides(
    base: Path, publisher: Publisher, given: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = keys.new_keys(base / given) if given else None
    with remote(base, publisher, folder):
        eventually(lambda: len(caplog.records) >= 2)
    warnings = sorted(record.message for record in caplog.records)
    there = (
        "the publisher has other keys, or none"
        if given
        else "the publisher requires keys and none are given here"
    )
    assert warnings[0].startswith(
        f"text/say: refused a connection to {publisher.endpoint}: the peer has other keys"
    )
    assert warnings[1].startswith(f"text/say: {publisher.endpoint}: handshake failed: {there}")
    assert len(warnings) == 2, "once"


def test_keys_where_none_are_wanted_are_said(
    base: Path, pair: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Publisher(
            "text/say",
            source="test",
            runtime=Runtime(base=base),
            clock=HostClock(base).now_ns,
            endpoint="tcp://127.0.0.1:*",
        ) as plain,
        remote(base, plain, pair),
    ):
        eventually(lambda: len(caplog.records) >= 2)
    warnings = sorted(record.message for record in caplog.records)
    assert "the peer requires keys, and none are given here" in warnings[0]
    assert "the publisher has other keys, or none" in warnings[1]


def test_right_keys_are_not_mentioned(
    base: Path, pair: Path, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    with remote(base, publisher, pair) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(HELLO)
        assert subscriber.receive(LONG_S) is not None
    assert not caplog.records


def test_a_folder_of_keys_may_be_given_as_text(base: Path, pair: Path, publisher: Publisher) -> None:
    assert publisher.endpoint is not None
    connect = {"text/say": publisher.endpoint}
    with perception.subscribe("text/say", domain="elsewhere", connect=connect, keys=str(pair)) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(HELLO)
        assert subscriber.receive(LONG_S) is not None


def test_knowing_the_public_key_is_not_enough(pair: Path, publisher: Publisher) -> None:
    assert publisher.endpoint is not None
    public, secret = zmq.curve_keypair()
    with zmq.Context() as context, context.socket(zmq.SUB) as outsider:
        outsider.set(zmq.CURVE_PUBLICKEY, public)
        outsider.set(zmq.CURVE_SECRETKEY, secret)
        outsider.set(zmq.CURVE_SERVERKEY, keys.load(pair).public)
        outsider.subscribe("")
        outsider.connect(publisher.endpoint)
        assert not publisher.wait_for_subscriber(0.3)
        publisher.send(HELLO)
        assert not outsider.poll(100)


def test_a_publisher_without_the_keys_is_not_believed(base: Path, pair: Path) -> None:
    impostor = Publisher(
        "text/say",
        source="impostor",
        runtime=Runtime(base=base),
        clock=HostClock(base).now_ns,
        endpoint="tcp://127.0.0.1:*",
        keys=keys.new_keys(base / "others"),
    )
    with impostor, remote(base, impostor, pair) as subscriber:
        assert not impostor.wait_for_subscriber(0.3)
        impostor.send(HELLO)
        assert subscriber.receive(0.1) is None


def test_keys_lift_the_ban_on_leaving_the_host(base: Path, pair: Path) -> None:
    clock = HostClock(base).now_ns
    with Publisher(
        "text/a", source="test", runtime=Runtime(base=base), clock=clock, endpoint="tcp://*:*", keys=pair
    ) as publisher:
        assert publisher.endpoint is not None


def test_keys_are_readable_by_their_owner_only_and_never_replaced(pair: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in pair.iterdir()} == {0o600}
    with pytest.raises(BusError, match="already holds keys; choose another folder"):
        keys.new_keys(pair)


def test_missing_or_exposed_keys_are_one_clear_error(base: Path, pair: Path) -> None:
    with pytest.raises(BusError, match=r"no keys in .*nowhere.*create them with: perception keys new"):
        keys.load(base / "nowhere")
    (pair / "bus.key_secret").chmod(0o644)
    with pytest.raises(BusError, match="open to other users; run: chmod 600"):
        keys.load(pair)
    (pair / "bus.key_secret").chmod(0o600)
    (pair / "bus.key_secret").write_text("\0 no keys")
    with pytest.raises(BusError, match="no keys in"):
        keys.load(pair)
