"""Readers of all speeds: tasks, busy ones, stopped ones, lossless ones."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from msgspec import structs

from perception import topics
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.messages import CameraFrame, ClockTick, Health
from tests.bus import Bus, assert_exact, say, text
from tests.waiting import LONG_S, eventually

# --- async ---


def test_async_for_gives_the_same_messages_without_a_thread_each(bus: Bus) -> None:
    async def read(subscriber: Subscriber, publisher: Publisher) -> list[str]:
        texts: list[str] = []
        threads = threading.active_count()
        asyncio.get_running_loop().call_later(0.05, publisher.send, say("later"))
        async for message in subscriber:
            texts.append(text(message))
            assert threading.active_count() == threads
            if len(texts) == 3:
                subscriber.close()
        return texts

    with bus.publisher("text/say") as publisher, bus.subscriber("text/say") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        publisher.send(say("one"))
        publisher.send(say("two"))
        assert asyncio.run(read(subscriber, publisher)) == ["one", "two", "later"]


def test_two_tasks_share_one_subscriber_and_a_cancelled_one_loses_nothing(bus: Bus) -> None:
    async def first(subscriber: Subscriber) -> str:
        return text(await anext(aiter(subscriber)))

    async def main(subscriber: Subscriber, publisher: Publisher) -> set[str]:
        cancelled = asyncio.create_task(first(subscriber))
        await asyncio.sleep(0)
        cancelled.cancel()
        tasks = [asyncio.create_task(first(subscriber)) for _ in range(2)]
        await asyncio.sleep(0)
        publisher.send(say("one"))
        publisher.send(say("two"))
        return set(await asyncio.wait_for(asyncio.gather(*tasks), 5))

    with bus.publisher("text/say") as publisher, bus.subscriber("text/say") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        assert asyncio.run(main(subscriber, publisher)) == {"one", "two"}


# --- slow readers ---


def test_a_slow_reader_of_a_fast_camera_gets_fresh_frames_and_exact_accounts(bus: Bus) -> None:
    image = np.zeros((480, 640), np.uint8)
    frame = CameraFrame(stamp_ns=1, width=640, height=480, encoding="mono8")
    behind = []
    with bus.publisher("camera/a") as publisher, bus.subscriber("camera/a") as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        stop = threading.Event()

        def capture() -> None:
            while not stop.wait(0.002):
                publisher.send(frame, image)

        camera = threading.Thread(target=capture)
        camera.start()
        for busy_until in range(15, 315, 15):
            eventually(partial(has_sent, publisher, busy_until))
            newest = publisher.published - 1
            message = subscriber.receive(LONG_S)
            assert message is not None
            behind.append(newest - message.header.seq)
        stop.set()
        camera.join()
        eventually(partial(accounts_for, subscriber, "camera/a", publisher.published))
        health = subscriber.health()["camera/a"]
        assert health.consumed == 20
        assert health.dropped["superseded"] > 100
        assert_exact(health)
        assert median(behind) <= 1  # of the 15 that arrived meanwhile


def has_sent(publisher: Publisher, count: int) -> bool:
    return publisher.published >= count


def accounts_for(subscriber: Subscriber, topic: str, sent: int) -> bool:
    health = subscriber.health()[topic]
    return health.received + health.lost == sent


def test_a_stopped_reader_blocks_neither_the_publisher_nor_other_readers(bus: Bus) -> None:
    code = """
import sys, time
from pathlib import Path
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
base = Path(sys.argv[1])
with Subscriber("camera/a", runtime=Runtime(base=base), clock=HostClock(base).now_ns) as subscriber:
    for message in subscriber:
        health = subscriber.health()["camera/a"]
        print(end="up\\n" if health.consumed == 1 else "", flush=True)
        if message.header.exposure_ns == 1:
            print(health.received, health.lost, sum(health.dropped.values()), health.consumed)
            break
"""
    image = np.zeros((1080, 1920, 3), np.uint8)
    frame = CameraFrame(stamp_ns=1, width=1920, height=1080, encoding="bgr8")
    command = [sys.executable, "-c", code, str(bus.runtime.base)]
    with (
        bus.publisher("camera/a") as publisher,
        bus.subscriber("camera/a") as healthy,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopped,
    ):
        eventually(lambda: publisher.subscribers == 2)
        publisher.send(frame, image)
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == "up\n"
        stopped.send_signal(signal.SIGSTOP)
        took_s = []
        for count in range(1, 60):
            began = time.monotonic()
            publisher.send(frame, image)
            took_s.append(time.monotonic() - began)
            eventually(partial(accounts_for, healthy, "camera/a", count + 1))
        assert median(took_s) < 0.5  # one by one they also wait for a busy machine
        assert healthy.health()["camera/a"].lost == 0
        stopped.send_signal(signal.SIGCONT)
        last = structs.replace(frame, exposure_ns=1)

        def finished() -> bool:
            publisher.send(last, image)
            return stopped.poll() is not None

        eventually(finished)
        received, lost, dropped, consumed = map(int, stopped.stdout.read().split())
        assert lost + dropped > 40
        assert received == dropped + consumed
        assert received + lost <= publisher.published


READER = """
import asyncio, sys, time
from pathlib import Path
from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
base = Path(sys.argv[1])
subscriber = Subscriber("health/a", runtime=Runtime(base=base), clock=HostClock(base).now_ns)
def take(message):
    print(message.header.seq, flush=True)
    if message.header.reason == "busy":
        while not subscriber.health()["health/a"].queued:
            time.sleep(0.001)
        print("one waits", flush=True)
        input()
"""
SYNC_READER = f"{READER}\nfor message in subscriber: take(message)"
ASYNC_READER = f"""{READER}
async def main():
    async for message in subscriber: take(message)
asyncio.run(main())
"""


@pytest.mark.parametrize("code", [SYNC_READER, ASYNC_READER], ids=["for", "async for"])
@pytest.mark.parametrize("doing", ["nothing", "busy"])
def test_a_reader_that_was_stopped_goes_on_with_the_newest(bus: Bus, code: str, doing: str) -> None:
    command = [sys.executable, "-c", code, str(bus.runtime.base)]
    pipe = subprocess.PIPE
    with (
        bus.publisher("health/a") as publisher,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as reader,
    ):
        assert publisher.wait_for_subscriber(LONG_S)
        assert reader.stdout is not None
        assert reader.stdin is not None
        threads = f"/proc/{reader.pid}/task"
        newest, taken = [], []
        for _ in range(5):  # which thread of the reader continues first is random
            newest += [f"{publisher.published}\n"]
            publisher.send(Health(stamp_ns=1, node="a", reason=doing))
            taken += [reader.stdout.readline()]
            if doing == "busy":  # an old message waits in the reader's inbox
                publisher.send(Health(stamp_ns=1, node="a"))
                assert reader.stdout.readline() == "one waits\n"
            reader.send_signal(signal.SIGSTOP)
            eventually(lambda: all(state_of(file) == "T" for file in Path(threads).glob("*/stat")))
            for _ in range(100):
                publisher.send(Health(stamp_ns=1, node="a"))
            time.sleep(0.15)  # messages behind one younger than 0.5 ms are not read
            reader.stdin.write("\n" * (doing == "busy"))
            reader.stdin.flush()
            reader.send_signal(signal.SIGCONT)
            newest += [f"{publisher.published - 1}\n"]
            taken += [reader.stdout.readline()]
            if taken != newest:
                break
        reader.kill()
        assert taken == newest


def state_of(thread: Path) -> str:
    return thread.read_text().rpartition(") ")[2][0]


def test_who_always_has_a_message_still_finds_new_topics(bus: Bus) -> None:
    with bus.publisher("text/a") as busy, bus.subscriber("text/*") as subscriber:
        assert busy.wait_for_subscriber(LONG_S)
        with bus.publisher("text/b") as late:

            def found() -> bool:
                busy.send(say("again"))
                late.send(say("at last"))
                return text(subscriber.receive(LONG_S)) == "at last"

            eventually(found)


def test_a_recorder_may_queue_what_a_display_skips(bus: Bus) -> None:
    rows = {"state": replace(topics.TOPICS["state"], policy="queue", depth=64)}
    rows |= {"clock": replace(topics.TOPICS["clock"], policy="latest", depth=1)}
    with bus.publisher("clock/a") as publisher, bus.subscriber("clock/a", policies=rows) as subscriber:
        assert publisher.wait_for_subscriber(LONG_S)
        for _ in range(50):
            publisher.send(ClockTick(stamp_ns=1))
        eventually(partial(accounts_for, subscriber, "clock/a", 50))
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert message.header.seq == 49
