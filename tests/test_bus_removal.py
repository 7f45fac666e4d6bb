"""The runtime directory, or a part of it, is removed while a graph runs."""

import logging
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from perception.bus.host import HostClock, Runtime
from perception.bus.keeper import Keeper
from perception.errors import BusError, PerceptionError
from perception.graph.domain_lock import DomainLock
from tests.bus import Bus, say, text
from tests.lane import FRAME, CameraBus, filled, shared
from tests.test_cli import command
from tests.test_up import SCRIPTED, publisher_of, up
from tests.waiting import LONG_S, eventually


def remove(folder: Path) -> None:
    """Remove a folder by one rename, because others write into it meanwhile."""
    gone = folder.with_name(f"{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def found_again(bus: Bus, *topics: str) -> None:
    eventually(lambda: all(bus.runtime.socket_path(topic).is_socket() for topic in topics))
    eventually(lambda: bus.runtime.topics() == sorted(topics))


@pytest.mark.parametrize("what", ["all", "domain"])
@pytest.mark.parametrize("pattern", ["text/say", "text/*"])
def test_publishers_bind_again_and_whoever_comes_finds_them(bus: Bus, what: str, pattern: str) -> None:
    with bus.publisher("text/say") as publisher, bus.subscriber("text/*") as before:
        assert publisher.wait_for_subscriber(LONG_S)
        remove(bus.runtime.base if what == "all" else bus.runtime.directory)
        found_again(bus, "text/say")
        with bus.subscriber(pattern) as after:
            eventually(lambda: publisher.subscribers == 2)
            publisher.send(say("hello"))
            assert text(before.receive(LONG_S)) == text(after.receive(LONG_S)) == "hello"
        with pytest.raises(BusError, match=f"already published by process {os.getpid()}"):
            bus.publisher("text/say")
    assert bus.runtime.topics() == []


def test_a_single_socket_file_comes_back(bus: Bus) -> None:
    with bus.publisher("text/say") as publisher:
        bus.runtime.socket_path("text/say").unlink()
        found_again(bus, "text/say")
        with bus.subscriber("text/say") as subscriber:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(say("hello"))
            assert text(subscriber.receive(LONG_S)) == "hello"


@pytest.mark.parametrize("pattern", ["camera/a", "camera/*"])
def test_readers_are_found_by_a_publisher_that_starts_afterwards(tmp_path: Path, pattern: str) -> None:
    bus = CameraBus(Path(short := os.environ["PERCEPTION_RUNTIME_DIR"]))
    assert len(short) < 60
    with bus.subscriber(pattern) as subscriber:
        remove(bus.runtime.base)
        eventually(lambda: list(bus.runtime.base.glob(".*.reader")))
        with bus.publisher() as publisher:
            assert publisher.wait_for_subscriber(LONG_S)
            publisher.send(FRAME, filled(1))
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert shared(message.payload)  # by the lane, as before


def test_a_topic_taken_meanwhile_is_said(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    with bus.publisher("text/say"):
        remove(bus.runtime.directory)
        with bus.runtime.claim("text/say"):
            eventually(lambda: caplog.records)
            assert "its files were removed, and process" in caplog.records[0].message
        found_again(bus, "text/say")


def test_the_clock_stays_the_one_that_runs(bus: Bus) -> None:
    (bus.runtime.base / ".clock").write_text(f"42 {Path('/proc/sys/kernel/random/boot_id').read_text()}")
    with bus.publisher("text/say"), bus.publisher("text/other"):
        assert bus.runtime.clock.anchor_ns == 42
        remove(bus.runtime.base)
        eventually((bus.runtime.base / ".clock").exists)
        assert HostClock(bus.runtime.base).anchor_ns == 42
        eventually(lambda: [file.name for file in bus.runtime.base.glob(".clock*")] == [".clock"])


def test_a_domain_stays_locked(bus: Bus) -> None:
    path = bus.runtime.base / ".lab.up.lock"
    with DomainLock(path, "lab") as lock, bus.runtime.keeper.keeping(lock.restore):
        number = lock.fileno()
        remove(bus.runtime.base)
        eventually(lambda: path.exists() and path.read_text())
        assert lock.fileno() == number, "nodes inherit this descriptor"
        with pytest.raises(PerceptionError, match=f"domain 'lab' is already up .process {os.getpid()}."):
            DomainLock(path, "lab")
    assert not path.exists()


def test_what_cannot_be_put_back_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) != 3:
            raise BusError("the disk is full")

    with caplog.at_level(logging.WARNING), Keeper().keeping(fail):
        eventually(lambda: len(calls) > 3)
    assert [record.message for record in caplog.records] == ["the disk is full"]


def test_nothing_is_put_back_once_its_owner_has_gone_on() -> None:
    started, closed, late = threading.Event(), threading.Event(), []

    def slow() -> None:
        started.set()
        closed.wait(0.2)
        late.append(closed.is_set())

    with Keeper().keeping(slow):
        assert started.wait(LONG_S)
    closed.set()
    assert late == [False]


def test_nothing_is_looked_after_once_all_is_closed(bus: Bus) -> None:
    def keepers() -> int:
        return sum(thread.name == "bus keeper" for thread in threading.enumerate())

    with bus.publisher("text/a"):
        with bus.publisher("text/b"):
            assert keepers() == 1
        assert keepers() == 1
    eventually(lambda: keepers() == 0)


def test_a_whole_graph_survives_and_is_not_started_twice(tmp_path: Path, runtime_directory: Path) -> None:
    """Found by processes with and without a login's environment; a restarted node is found too."""
    file = tmp_path / "graph.toml"
    file.write_text(SCRIPTED)
    with up(file) as graph:
        node = publisher_of("text/script")
        eventually(Runtime("test").socket_path("label/truth").exists)  # the last that it binds
        remove(runtime_directory)
        eventually(lambda: "text/script" in Runtime("test").topics())
        eventually((runtime_directory / ".test.up.lock").exists)
        with up(file) as second:
            _, error = second.communicate(timeout=LONG_S)
        assert second.returncode == 1
        assert f"domain 'test' is already up (process {graph.pid})" in error
        os.kill(node, signal.SIGKILL)
        publisher_of("text/script", other_than=node)
        echo = command("echo", "text/script", "--domain", "test", "--count", "1")
        assert "text/script" in echo.communicate(timeout=LONG_S)[0]
        assert echo.returncode == 0


def test_a_graph_without_a_login_is_found_by_a_shell_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERCEPTION_RUNTIME_DIR")
    domain = f"t{os.getpid()}"
    file = tmp_path / "graph.toml"
    file.write_text(SCRIPTED)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with up(file, "--domain", domain) as service:
        eventually(lambda: "health/text-script" in Runtime(domain).topics())
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        nodes = command("nodes", "--domain", domain)
        assert "text-script" in nodes.communicate(timeout=LONG_S)[0]
        with up(file, "--domain", domain) as second:
            _, error = second.communicate(timeout=LONG_S)
        assert (second.returncode, f"(process {service.pid})" in error) == (1, True)
