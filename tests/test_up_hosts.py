"""One profile on two hosts: each starts its nodes, readers of the other get everything on their own clock."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.cli.connect import source_of
from perception.errors import PerceptionError
from perception.messages import AudioBlock, Header, Health, Message
from perception.profile import load
from perception.session.file.reader import Session
from tests.test_up import up
from tests.waiting import LONG_S, eventually

PROFILE = """
domain = "test"
[microphone.desk]
source = "scripted"
[text.operator]
source = "scripted"
[host.robot]
address = "127.0.0.1"
port = {robot}
nodes = ["microphone-desk"]
[host.desk]
address = "127.0.0.1"
port = {desk}
nodes = ["text-operator"]
"""


def free_ports(count: int) -> int:
    """The first of some ports that nobody has now."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    first = free_ports(20)
    file = tmp_path / "graph.toml"
    file.write_text(PROFILE.format(robot=first, desk=first + 10))
    return file


@pytest.fixture
def here() -> Iterator[Runtime]:
    """The runtime directory of the other host: nothing of the graph is in it."""
    with tempfile.TemporaryDirectory(prefix="far") as folder:
        yield Runtime("test", Path(folder))


def received(subscriber: Subscriber, *kinds: type[Header]) -> dict[str, Message[Header]]:
    """The newest message of each topic, once one of each kind has come."""
    found: dict[str, Message[Header]] = {}
    deadline_s = time.monotonic() + LONG_S
    while not set(kinds) <= {type(one.header) for one in found.values()}:
        assert time.monotonic() < deadline_s, sorted(found)
        if message := subscriber.receive(1.0):
            found[message.topic] = message
    return found


def test_a_host_serves_its_nodes_to_the_others(profile: Path, here: Runtime) -> None:
    graph = load(profile, ("here=desk",))
    ahead = threading.Event()

    def clock() -> int:
        return HostClock(here.base).now_ns() + (30_000_000_000 if ahead.is_set() else 0)

    with (
        up(profile, "--host", "robot"),
        Subscriber("*", runtime=here, clock=clock, hosts=graph.other_hosts()) as subscriber,
    ):
        found = received(subscriber, AudioBlock, Health)
        assert (
            {"microphone/desk"}
            <= found.keys()
            <= {
                "microphone/desk",
                "health/microphone-desk",
                "health/clock-robot",
            }
        )
        sound = found["microphone/desk"]
        assert abs(sound.received_ns - sound.header.stamp_ns) < LONG_S * 1e9
        ahead.set()  # this host's clock is set: the other one has stepped
        eventually(lambda: subscriber.host_times()["robot"].steps == 1)
        offset_ms = subscriber.host_times()["robot"].offset_ms
        assert offset_ms is not None
        assert 29_000 < abs(offset_ms) < 31_000


def perception(here: Runtime, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on the other host."""
    return subprocess.run(
        [sys.executable, "-m", "perception", *arguments],
        env=os.environ | {"PERCEPTION_RUNTIME_DIR": str(here.base)},
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )


def test_who_has_the_address_reads_a_host_without_a_profile(
    profile: Path, here: Runtime, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{load(profile).host['robot'].port}"
    with up(profile, "--host", "robot"):
        eventually(lambda: "health/clock-robot" in Runtime("test").topics())
        listed = perception(here, "nodes", "--connect", address)
        assert listed.returncode == 0, listed.stderr
        rows = [line.split()[0] for line in listed.stdout.splitlines()[1:] if line.strip()]
        assert [row for row in rows if row.partition("-")[0] in ("clock", "microphone", "supervisor")] == [
            *("clock-robot", "microphone-desk", "supervisor-robot")
        ]
        echoed = perception(here, "echo", "microphone/*", "--count", "2", "--connect", f"tcp://{address}")
        assert (echoed.returncode, len(echoed.stdout.splitlines())) == (0, 2), echoed.stderr
        out = tmp_path / "far.mcap"
        recorded = perception(here, "record", "--out", str(out), "--seconds", "1", "--connect", address)
        assert recorded.returncode == 0, recorded.stderr
        with Session(out) as session:
            assert "microphone/desk" in session.counts
        refused = perception(here, "echo", "camera/*", "--connect", address)
        assert refused.returncode == 1
        assert (
            f"{address} serves no topic that matches camera/*; it serves health/clock-robot" in refused.stderr
        )


def test_keys_are_for_another_host() -> None:
    for folder, insecure in (("folder", False), (None, True)):
        with pytest.raises(PerceptionError, match="are for another host: name it by --connect HOST"):
            source_of(("*",), None, None, folder, insecure=insecure)
