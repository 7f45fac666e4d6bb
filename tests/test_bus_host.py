"""Processes of one host share a clock, and a topic has one publisher at a time."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perception.bus.host import HostClock, Runtime, base_directory
from perception.errors import BusError
from tests.waiting import LONG_S


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        yield Path(folder)


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONG_S).stdout


CLAIM_AND_DIE = """
import os, sys
from pathlib import Path
from perception.bus.host import Runtime
claim = Runtime(base=Path(sys.argv[1])).claim("camera/front")
claim.path.touch()
os._exit(9)
"""


# --- the clock ---


def test_every_process_of_the_host_reads_the_same_clock(base: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from perception.bus.host import HostClock
print(HostClock(Path(sys.argv[1])).anchor_ns)
"""
    assert int(python(code, base)) == HostClock(base).anchor_ns == HostClock(base).anchor_ns


def test_the_clock_reads_as_unix_time_and_only_moves_forward(base: Path) -> None:
    clock = HostClock(base)
    assert abs(clock.now_ns() - time.time_ns()) < 1_000_000_000
    readings = [clock.now_ns() for _ in range(1000)]
    assert readings == sorted(readings)


def test_a_monotonic_stamp_of_a_driver_maps_to_the_same_time(base: Path) -> None:
    clock = HostClock(base)
    before, stamp, after = clock.now_ns(), clock.to_host_ns(time.monotonic_ns()), clock.now_ns()
    assert before <= stamp <= after


@pytest.mark.parametrize("kept", ["17 another-boot\n", "17", "", "\0\0\0"])
def test_an_anchor_of_another_boot_or_a_torn_one_is_taken_anew(base: Path, kept: str) -> None:
    (base / ".clock").write_text(kept)
    assert abs(HostClock(base).now_ns() - time.time_ns()) < 1_000_000_000
    assert HostClock(base).anchor_ns == HostClock(base).anchor_ns


# --- the runtime directory ---


def test_the_base_is_private_and_made_on_demand(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTION_RUNTIME_DIR", str(base / "run"))
    assert base_directory() == base / "run"
    assert base_directory().stat().st_mode & 0o777 == 0o700


USUAL = Path(f"/tmp/perception-{os.getuid()}")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", "HOME": "/root", "TMPDIR": "/var/tmp"},
        {"XDG_RUNTIME_DIR": "/tmp/nowhere", "TMPDIR": "/nowhere"},
        {"PERCEPTION_RUNTIME_DIR": ""},
    ],
    ids=["cron", "login shell", "sudo -E", "empty"],
)
def test_one_user_has_one_base_whoever_starts_a_process(environment: dict[str, str]) -> None:
    code = "from perception.bus.host import base_directory; print(base_directory())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{USUAL}\n", "")


def test_a_base_too_long_for_sockets_falls_back_and_says_so(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PERCEPTION_RUNTIME_DIR", str(base / ("x" * 60)))
    assert base_directory() == base_directory() == USUAL
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"is longer than 60 bytes, too long for the paths of sockets; using {USUAL}" in record.message
    assert not (base / ("x" * 60)).exists()


def test_a_base_that_depends_on_the_working_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTION_RUNTIME_DIR", "run")
    with pytest.raises(BusError, match="PERCEPTION_RUNTIME_DIR=run is not an absolute path"):
        base_directory()


def test_a_base_open_to_others_is_refused(base: Path) -> None:
    base.chmod(0o755)
    with pytest.raises(BusError, match="open to other users; run: chmod 700"):
        Runtime(base=base)


def test_a_base_that_is_a_link_is_refused(base: Path) -> None:
    (base / "link").symlink_to("/")
    with pytest.raises(BusError, match="is not a directory of this user"):
        Runtime(base=base / "link")


def test_the_domain_comes_from_the_environment_unless_given(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEPTION_DOMAIN", "robot")
    assert Runtime(base=base).directory == base / "robot"
    assert Runtime("lab", base).directory == base / "lab"
    monkeypatch.delenv("PERCEPTION_DOMAIN")
    assert Runtime(base=base).directory == base / "default"


@pytest.mark.parametrize("domain", ["", "../up", "a/b", "x" * 33, ".clock"])
def test_a_domain_is_a_plain_name(base: Path, domain: str) -> None:
    with pytest.raises(BusError, match="is not a domain"):
        Runtime(domain, base)


def test_the_endpoint_is_a_file_of_the_topics_name(base: Path) -> None:
    assert Runtime("lab", base).ipc_endpoint("camera/front") == f"ipc://{base}/lab/camera/front"


def test_a_path_too_long_for_a_socket_is_one_clear_error(base: Path) -> None:
    deep = Runtime("d" * 32, base / ("x" * 40))
    with pytest.raises(BusError, match="longer than the 107 bytes of a unix socket path; shorten the topic"):
        deep.ipc_endpoint("camera/" + "c" * 57)


# --- one publisher per topic ---


def test_a_second_claim_is_refused_and_names_the_holder(base: Path) -> None:
    runtime = Runtime(base=base)
    already = rf"camera/front is already published by process {os.getpid()}; stop"
    with (
        runtime.claim("camera/front"),
        runtime.claim("camera/back"),
        pytest.raises(BusError, match=already),
    ):
        runtime.claim("camera/front")
    runtime.claim("camera/front").release()


def test_releasing_removes_the_files_and_may_be_repeated(base: Path) -> None:
    runtime = Runtime(base=base)
    claim = runtime.claim("camera/front")
    claim.path.touch()
    claim.release()
    claim.release()
    assert list((runtime.directory / "camera").iterdir()) == []


def test_what_a_killed_publisher_left_is_not_live_and_can_be_claimed(base: Path) -> None:
    runtime = Runtime(base=base)
    with pytest.raises(subprocess.CalledProcessError):
        python(CLAIM_AND_DIE, base)
    assert (runtime.directory / "camera" / "front").exists()
    assert runtime.topics() == []
    runtime.claim("camera/front").release()


def test_only_live_topics_are_listed(base: Path) -> None:
    runtime = Runtime(base=base)
    claims = [runtime.claim(topic) for topic in ("state/fused", "camera/front", "camera/rig/left")]
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(runtime.directory / "camera" / "dead"))
    (runtime.directory / "notes.txt").touch()
    assert runtime.topics() == ["camera/front", "camera/rig/left", "state/fused"]
    assert Runtime("other", base).topics() == []
    for claim in claims:
        claim.release()


def test_sweeping_removes_what_the_dead_left_and_spares_the_living(base: Path) -> None:
    runtime = Runtime(base=base)
    with pytest.raises(subprocess.CalledProcessError):
        python(CLAIM_AND_DIE, base)
    living = runtime.claim("state/fused")
    living.path.touch()
    runtime.sweep()
    assert sorted(path.name for path in runtime.directory.rglob("*")) == [".fused.lock", "fused", "state"]
    living.release()
    runtime.sweep()
    assert not runtime.directory.exists()
    runtime.sweep()


def test_a_topic_cannot_lie_below_another(base: Path) -> None:
    runtime = Runtime(base=base)
    below = runtime.claim("camera/rig/left")
    with pytest.raises(BusError, match="cannot publish camera/rig: topics are published below camera/rig/"):
        runtime.claim("camera/rig")
    below.release()
    above = runtime.claim("camera/front")
    above.path.touch()
    with pytest.raises(BusError, match="cannot claim camera/front/left"):
        runtime.claim("camera/front/left")
    above.release()
