"""Publishers and subscribers over real sockets: order of start, filters, restarts, refusals."""

import gc
import logging
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

from perception import topics
from perception.bus.codec import MAX_PART_BYTES
from perception.bus.host import Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import BusError, MalformedMessageError
from perception.messages import CameraFrame, ClockTick
from tests.bus import Bus, assert_exact, say, text
from tests.waiting import LONG_S, eventually

# --- delivery ---


def test_a_message_arrives_with_its_number_source_and_times(bus: Bus) -> None:
    with bus.publisher("text/say") as publisher, bus.subscriber("text/say") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        sent = publisher.send(say("hello"))
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert message.header == sent
        assert (sent.seq, sent.source) == (0, publisher.source)
        assert sent.sent_ns <= message.received_ns <= bus.clock.now_ns()
        assert publisher.published == 1


def test_pixels_arrive_as_they_were(bus: Bus) -> None:
    image = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    with bus.publisher("camera/a") as publisher, bus.subscriber("camera/a") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(CameraFrame(stamp_ns=1, width=640, height=480, encoding="bgr8"), image)
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert np.array_equal(np.frombuffer(message.payload, np.uint8).reshape(480, 640, 3), image)


@pytest.mark.parametrize("pattern", ["text/say", "text/*", "*"])
def test_it_does_not_matter_who_starts_first(bus: Bus, pattern: str) -> None:
    with bus.subscriber(pattern) as early, bus.publisher("text/say") as publisher:
        assert publisher.wait_for_subscriber(LONG_S)
        with bus.subscriber(pattern) as late:
            eventually(lambda: publisher.subscribers == 2)
            publisher.send(say("both"))
            assert text(early.receive(LONG_S)) == text(late.receive(LONG_S)) == "both"
        eventually(lambda: publisher.subscribers == 1)


def test_a_topic_whose_name_begins_like_another_is_another(bus: Bus) -> None:
    with (
        bus.publisher("text/a") as a,
        bus.publisher("text/ab") as ab,
        bus.subscriber("text/a", "text/ab", "text/abc") as both,
        bus.subscriber("text/a") as one,
    ):
        eventually(lambda: a.subscribers == 2 and ab.subscribers == 1)
        ab.send(say("ab"))
        a.send(say("a"))
        assert text(one.receive(LONG_S)) == "a"
        assert {text(both.receive(LONG_S)), text(both.receive(LONG_S))} == {"a", "ab"}
        assert both.receive(0.05) is None


def test_a_reader_of_a_shared_endpoint_takes_only_its_own_topic(bus: Bus) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as foreign:
        port = foreign.bind_to_random_port("tcp://127.0.0.1")
        remote = {"text/a": f"tcp://127.0.0.1:{port}"}
        with bus.subscriber("text/a", connect=remote) as subscriber:
            body = msgpack.packb({"stamp_ns": 1, "text": "x"})

            def received() -> bool:
                foreign.send_multipart([b"text/ab", body])
                foreign.send_multipart([b"text/a", body])
                return subscriber.health()["text/a"].received > 3

            eventually(received)
            assert list(subscriber.health()) == ["text/a"]


def test_domains_are_apart(bus: Bus) -> None:
    other = Runtime("other", bus.runtime.base)
    with (
        bus.publisher("text/say") as publisher,
        Subscriber("*", runtime=other, clock=bus.clock.now_ns) as elsewhere,
        bus.subscriber("*"),
    ):
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(say("here"))
        assert elsewhere.receive(0.2) is None
        assert publisher.subscribers == 1


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "tcp://localhost:*", "tcp://[::1]:*"])
def test_tcp_carries_the_same_messages(bus: Bus, endpoint: str) -> None:
    if "::1" in endpoint and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this host has no IPv6")
    with bus.publisher("text/say", endpoint=endpoint) as publisher:
        assert publisher.endpoint is not None
        elsewhere = Runtime("elsewhere", bus.runtime.base)
        with Subscriber(
            "text/*", runtime=elsewhere, clock=bus.clock.now_ns, connect={"text/say": publisher.endpoint}
        ) as subscriber:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(say("over tcp"))
            assert text(subscriber.receive(LONG_S)) == "over tcp"


@pytest.mark.parametrize(
    ("wanted", "connect"),
    [
        ("text/say", "text/*"),
        ("text/*", "text/*"),
        ("text/*", "text/s*"),
        ("*", "text/say"),
        ("text/s*", "*"),
    ],
)
def test_a_pattern_names_publishers_of_another_host(bus: Bus, wanted: str, connect: str) -> None:
    with bus.publisher("text/say", endpoint="tcp://127.0.0.1:*") as publisher:
        elsewhere = Runtime("elsewhere", bus.runtime.base)
        assert publisher.endpoint is not None
        remote = {connect: publisher.endpoint, "camera/*": "tcp://127.0.0.1:9"}
        with Subscriber(wanted, runtime=elsewhere, clock=bus.clock.now_ns, connect=remote) as subscriber:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(say("from there"))
            assert text(subscriber.receive(LONG_S)) == "from there"
            assert_exact(subscriber.health()["text/say"])


def test_beside_a_pattern_of_another_host_topics_of_this_one_are_followed(bus: Bus) -> None:
    remote = {"text/*": "tcp://127.0.0.1:9"}
    with (
        bus.subscriber("text/*", connect=remote) as subscriber,
        bus.publisher("text/here") as publisher,
    ):
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(say("from here"))
        assert text(subscriber.receive(LONG_S)) == "from here"


def test_what_has_come_from_a_new_publisher_is_received_without_waiting(bus: Bus) -> None:
    def received_at_once() -> bool:
        with bus.publisher("text/say") as publisher, bus.subscriber("text/say") as subscriber:
            assert subscriber.receive(0.1) is None
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(say("here"))
            return subscriber.receive(0) is not None

    # on a busy machine it may still be on its way, in ZeroMQ or in the thread that drains
    assert any(received_at_once() for _ in range(5))


def test_receiving_gives_none_when_nothing_comes_and_when_closed(bus: Bus) -> None:
    subscriber = bus.subscriber("text/say")
    assert subscriber.receive(0) is None
    waiting = threading.Timer(0.1, subscriber.close)
    waiting.start()
    assert list(subscriber) == []
    waiting.join()
    assert subscriber.receive() is None
    subscriber.close()


def test_a_subscriber_nobody_holds_stops_by_itself(bus: Bus) -> None:
    before = threading.active_count()
    subscriber = bus.subscriber("text/say")
    assert threading.active_count() == before + 1
    del subscriber
    gc.collect()
    eventually(lambda: threading.active_count() == before)


# --- restarts ---


@pytest.mark.parametrize("pattern", ["text/say", "text/*"])
def test_a_restarted_publisher_is_heard_again_soon(bus: Bus, pattern: str) -> None:
    with bus.subscriber(pattern) as subscriber:
        for life in range(3):
            with bus.publisher("text/say") as publisher:
                assert publisher.wait_for_subscriber(LONG_S)
                publisher.send(say(str(life)))
                assert text(subscriber.receive(LONG_S)) == str(life)
        assert subscriber.health()["text/say"].lost == 0


def test_a_killed_publisher_is_replaced(bus: Bus) -> None:
    code = """
import sys, time
from pathlib import Path
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
base = Path(sys.argv[1])
Publisher("text/say", source="victim", runtime=Runtime(base=base), clock=HostClock(base).now_ns)
print("up", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(bus.runtime.base)]
    with (
        bus.subscriber("text/say") as subscriber,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim,
    ):
        assert victim.stdout is not None
        assert victim.stdout.readline() == "up\n"
        with pytest.raises(BusError, match=f"text/say is already published by process {victim.pid}; stop it"):
            bus.publisher("text/say")
        victim.kill()
        victim.wait()
        with bus.publisher("text/say") as publisher:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(say("back"))
            assert text(subscriber.receive(LONG_S)) == "back"


def test_new_topics_do_not_silence_the_old_ones(bus: Bus) -> None:
    """Each kind of topic has another depth; connecting one must not change the connections of the others."""
    with bus.publisher("text/a") as publisher, bus.subscriber("*") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        for number in range(60):
            publisher.send(say(str(number)))
        assert [text(subscriber.receive(LONG_S)) for _ in range(60)] == [str(number) for number in range(60)]
        with bus.publisher("journal/deep") as deep, bus.publisher("state/shallow") as shallow:
            for newcomer in (deep, shallow):
                assert newcomer.wait_for_subscriber(LONG_S)
            for number in range(60):
                publisher.send(say(str(number)))
            assert [text(subscriber.receive(LONG_S)) for _ in range(60)] == [
                str(number) for number in range(60)
            ]


def test_what_was_sent_just_before_closing_arrives(bus: Bus) -> None:
    with bus.subscriber("text/say") as subscriber:
        with bus.publisher("text/say") as publisher:
            assert publisher.wait_for_subscriber(LONG_S)
            for count in range(100):
                publisher.send(say(str(count)))
        assert [text(subscriber.receive(LONG_S)) for _ in range(100)] == [str(count) for count in range(100)]
        assert bus.runtime.topics() == []


# --- what is refused ---


def test_a_busy_port_is_one_clear_error_and_leaves_nothing_behind(bus: Bus) -> None:
    with bus.publisher("text/a", endpoint="tcp://127.0.0.1:*") as publisher:
        with pytest.raises(
            BusError, match=r"text/b: tcp://127.0.0.1:\d+ is in use by another program; choose"
        ):
            bus.publisher("text/b", endpoint=publisher.endpoint)
        assert bus.runtime.topics() == ["text/a"]


@pytest.mark.parametrize("endpoint", ["5601", "tcp://127.0.0.1", "ipc:///tmp/x", "tcp://127.0.0.1:99999", ""])
def test_a_malformed_endpoint_is_refused(bus: Bus, endpoint: str) -> None:
    with pytest.raises(BusError, match="is no endpoint; expected tcp://HOST:PORT"):
        bus.publisher("text/a", endpoint=endpoint)
    with pytest.raises(BusError, match="is no endpoint; expected tcp://HOST:PORT"):
        bus.subscriber("text/a", connect={"text/a": endpoint})


@pytest.mark.parametrize(
    "endpoint", ["tcp://*:5999", "tcp://0.0.0.0:5999", "tcp://10.1.2.3:5999", "tcp://[::]:5999"]
)
def test_leaving_the_host_in_the_clear_must_be_asked_for(bus: Bus, endpoint: str) -> None:
    with pytest.raises(BusError, match="leaves this host unencrypted; give a keys folder"):
        bus.publisher("text/a", endpoint=endpoint)
    with pytest.raises(BusError, match="leaves this host unencrypted; give a keys folder"):
        bus.subscriber("text/a", connect={"text/a": endpoint})


def test_leaving_the_host_in_the_clear_is_said_loudly(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), bus.publisher("text/a", endpoint="tcp://*:*", insecure=True):
        pass
    assert [record.message for record in caplog.records] == [
        "INSECURE: tcp://*:* is neither encrypted nor authenticated"
    ]


@pytest.mark.parametrize("pattern", ["camera", "smell/*", "camera/**", "*/front", ""])
def test_a_pattern_is_a_topic_or_the_beginning_of_one(bus: Bus, pattern: str) -> None:
    with pytest.raises(BusError, match=r"is not a topic|matches no topic"):
        bus.subscriber(pattern)


def test_subscribing_to_nothing_is_refused(bus: Bus) -> None:
    with pytest.raises(BusError, match="nothing to subscribe to"):
        bus.subscriber()


def test_a_message_that_is_not_the_topics_is_not_sent(bus: Bus) -> None:
    with bus.publisher("text/say") as publisher:
        with pytest.raises(MalformedMessageError):
            publisher.send(ClockTick(stamp_ns=1))
        assert publisher.send(say("good")).seq == 0
    with pytest.raises(BusError, match="the publisher is closed"):
        publisher.send(say("late"))


def test_bad_messages_are_counted_and_said_once_and_the_rest_runs_on(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    good = msgpack.packb({"stamp_ns": 1, "text": "good", "seq": 0, "source": "foreign#1"})
    with (
        bus.runtime.claim("text/say"),
        zmq.Context() as context,
        context.socket(zmq.XPUB) as foreign,
        bus.subscriber("text/*") as subscriber,
    ):
        foreign.set(zmq.LINGER, 0)
        foreign.bind(bus.runtime.ipc_endpoint("text/say"))
        assert foreign.poll(5000)
        for bad in ([b"text/say"], [b"text/say", b"\xc1"], [b"text/say", good, b"x"], [b"text/say"] * 9):
            foreign.send_multipart(bad)
        foreign.send_multipart([b"text/say", bytes(topics.MAX_HEADER_BYTES + 1)])
        foreign.send_multipart([b"text/say", good])
        assert text(subscriber.receive(LONG_S)) == "good"
        health = subscriber.health()["text/say"]
        assert health.dropped == {"malformed": 5}
        assert_exact(health)
        assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_bad_messages_do_not_keep_a_reader_beyond_its_time(bus: Bus) -> None:
    enough = threading.Event()

    def publish_nonsense() -> None:
        with zmq.Context() as context, context.socket(zmq.PUB) as foreign:
            foreign.set(zmq.LINGER, 0)
            foreign.bind(bus.runtime.ipc_endpoint("text/say"))
            while not enough.wait(0.005):
                foreign.send_multipart([b"text/say", b"\xc1"])

    with bus.runtime.claim("text/say"), bus.subscriber("text/say") as subscriber:
        foreign = threading.Thread(target=publish_nonsense)
        foreign.start()
        eventually(lambda: subscriber.health()["text/say"].received)
        for _ in range(2):
            assert subscriber.receive(0.1) is None
        enough.set()
        foreign.join()
        assert subscriber.health()["text/say"].received < 500


def test_after_a_message_too_large_to_buffer_the_publisher_is_heard_again(bus: Bus) -> None:
    with (
        bus.runtime.claim("text/say"),
        zmq.Context() as context,
        context.socket(zmq.XPUB) as foreign,
        bus.subscriber("text/*") as subscriber,
    ):
        foreign.set(zmq.LINGER, 0)
        foreign.bind(bus.runtime.ipc_endpoint("text/say"))
        joined = [foreign.recv(), foreign.recv()]
        assert joined[0] == b"\1text/"
        foreign.send_multipart([b"text/say", bytes(MAX_PART_BYTES + 1)])
        left = [foreign.recv(), foreign.recv()]
        left_topics = sorted(request[1:] for request in left if not request[0])
        assert left_topics == sorted(request[1:] for request in joined)
        assert [foreign.recv(), foreign.recv()] == joined
        foreign.send_multipart([b"text/say", msgpack.packb({"stamp_ns": 1, "text": "after", "seq": 9})])
        assert text(subscriber.receive(LONG_S)) == "after"
