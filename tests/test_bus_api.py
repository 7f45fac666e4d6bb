"""The public functions, called as by a user's program."""

import importlib
import itertools
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import perception
from perception.bus.api import SETTLE_S
from perception.messages import TextCommand, reached_ns
from tests.waiting import LONG_S

READER = """
import sys, perception
for message in perception.subscribe(sys.argv[1]):
    print(message.header.text, message.header.stamp_ns, message.topic, flush=True)
    if message.header.final:
        break
"""
ASYNC_READER = """
import asyncio, sys, perception
async def main():
    async for message in perception.subscribe(sys.argv[1]):
        print(message.header.text, message.header.stamp_ns, message.topic, flush=True)
        if message.header.final:
            break
asyncio.run(main())
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], expected: str = "") -> str:
    output, errors = process.communicate(timeout=LONG_S)
    assert (process.returncode, errors) == (0, expected)
    return output


@pytest.mark.parametrize("reader", [READER, ASYNC_READER], ids=["for", "async for"])
def test_what_one_program_publishes_another_reads(reader: str, runtime_directory: Path) -> None:
    readers = {pattern: start(reader, pattern) for pattern in ("text/say", "text/*")}
    writer = start(
        "import perception, time\n"
        "while perception.publish('text/say', text='come here', stamp_ns=42, final=False) < 2:\n"
        "    time.sleep(0.01)\n"
        "print(perception.publish('text/say', text='bye', stamp_ns=43))"
    )
    assert finish(writer) == "2\n"
    for pattern, process in readers.items():
        expected = f"no graph is up; waiting for one to read {pattern}\n"
        assert finish(process, expected).splitlines()[-1] == "bye 43 text/say"
    assert not any(path.is_socket() for path in runtime_directory.rglob("*"))


def test_only_those_are_counted_who_get_the_message() -> None:
    with perception.subscribe("text/counted") as first:
        assert perception.publish("text/counted", text="0") == 1
        with perception.subscribe("text/counted") as second:
            counts = (perception.publish("text/counted", text=str(number)) for number in itertools.count(1))
            sent = 1 + sum(1 for _ in itertools.takewhile(lambda count: count == 1, counts))
            message = second.receive(LONG_S)
            assert message is not None
            assert message.header.seq <= sent
        assert first.receive(LONG_S) is not None


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("import perception; print(perception.publish('text/say', text='hello?'))")
    assert finish(process, "text/say: nobody listens, and no graph is up\n") == "0\n"


def test_a_message_is_stamped_with_the_host_clock() -> None:
    before = perception.clock_now_ns()
    with perception.subscribe("text/stamped") as subscriber:
        assert perception.publish("text/stamped", text="now") == 1
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert isinstance(message.header, TextCommand)
        assert before <= message.header.stamp_ns <= message.header.sent_ns <= message.received_ns


def test_a_first_message_is_stamped_after_the_wait_for_its_readers() -> None:
    with perception.subscribe("text/first") as subscriber:
        before_ns = perception.clock_now_ns()
        perception.publish("text/first", text="now")
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert message.header.stamp_ns - before_ns >= SETTLE_S * 1e9
        perception.publish("text/first", text="then", stamp_ns=before_ns)
        message = subscriber.receive(LONG_S)
        assert message is not None
        assert message.header.stamp_ns == before_ns, "a given stamp is kept"


def test_stamps_of_many_threads_never_run_backwards() -> None:
    def talk() -> None:
        together.wait(LONG_S)
        for _ in range(40):
            perception.publish("text/many", text="now")

    together = threading.Barrier(5)
    talkers = [threading.Thread(target=talk) for _ in range(5)]
    before_s = sys.getswitchinterval()
    with perception.subscribe("text/many") as subscriber:
        perception.publish("text/many", text="first")
        sys.setswitchinterval(1e-6)
        try:
            for one in talkers:
                one.start()
            for one in talkers:
                one.join()
        finally:
            sys.setswitchinterval(before_s)
        received = [subscriber.receive(LONG_S) for _ in range(201)]
    headers = [one.header for one in received if one is not None]
    assert [header.seq for header in headers] == list(range(201))
    stamps = [header.stamp_ns for header in headers]
    assert stamps == sorted(stamps)
    assert stamps == [header.sent_ns for header in headers]


def test_a_domain_is_given_by_keyword_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with perception.subscribe("text/say", domain="robot") as subscriber:
        monkeypatch.setenv("PERCEPTION_DOMAIN", "robot")
        assert perception.publish("text/say", text="here") == 1
        assert subscriber.receive(LONG_S) is not None


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("publish('text/say', txt='x')", "text/say: Object missing required field `text`"),
        ("publish('text/say', text=7)", "text/say: Expected `str`, got `int` - at `$.text`"),
        ("publish('camera/a', b'x', width=2, height=2, encoding='bgr8')", "the header requires 12"),
        ("publish('nose/a', text='x')", "'nose/a' is not a topic; topics are camera/<name>"),
        ("subscribe('nose/*')", "matches no topic"),
        ("subscribe('text/*', domain='a b')", "'a b' is not a domain"),
    ],
)
def test_mistakes_are_one_clear_line(call: str, reason: str) -> None:
    process = start(
        f"import perception, sys\ntry: perception.{call}\nexcept perception.PerceptionError as e: print(e)"
    )
    output = finish(process)
    assert reason in output
    assert output.count("\n") == 1


def test_importing_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "import perception\n"
        "print(time.process_time() - began)\n"
        "perception.subscribe, perception.publish, perception.Message\n"
        "print(*{'torch', 'cv2', 'numpy', 'scipy'} & set(sys.modules))"
    )
    seconds, heavy = finish(start(code)).split("\n")[:2]
    assert float(seconds) < 0.2
    assert heavy == ""


@pytest.mark.parametrize("package", ["perception", "perception.models", "perception.session"])
def test_a_package_exports_what_it_declares(package: str) -> None:
    module = importlib.import_module(package)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    for where, name in re.findall(r"from (\S+) import \w+ as (\w+)", source):
        assert getattr(module, name) is getattr(importlib.import_module(where), name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = module.nonsense


def test_all_that_is_exported_is_there() -> None:
    for name in ("subscribe", "publish", "clock_now_ns", "Subscriber", "Message", "BusError", "DeviceError"):
        assert name in dir(perception)
        assert getattr(perception, name) is not None
    assert os.path.exists(Path(perception.__file__).with_name("py.typed"))


def test_a_block_of_sound_that_is_too_long_is_refused_with_the_limit_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"11\.0 s of sound; at most 1 s is allowed: cut it into blocks"):
        perception.publish(
            "microphone/main", bytes(2 * 88_000), sample_index=0, samples=88_000, rate_hz=8000, channels=1
        )


def test_sound_published_without_a_stamp_has_been_heard_by_then() -> None:
    domain, samples = "heard", bytes(2 * 4000)
    fields: dict[str, Any] = {"sample_index": 0, "samples": 4000, "rate_hz": 8000, "domain": domain}
    reader = perception.subscribe("microphone/main", domain=domain)
    with reader:
        perception.publish("microphone/main", samples, **fields)
        message = reader.receive(LONG_S)
    assert message is not None
    assert reached_ns(message.header) == message.header.sent_ns
