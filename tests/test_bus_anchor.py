"""One host has one clock: over several runtime directories, set wall clocks, suspension, containers."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perception.bus.anchor import STEP_NS, Anchor, boot_ns
from perception.bus.host import HostClock
from tests.waiting import LONG_S

YEARS_1970 = -40 * 365 * 86_400 * 1_000_000_000
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
NOW = """
import sys
from pathlib import Path
from perception.bus.host import HostClock
clock = HostClock(Path(sys.argv[1]), Path(sys.argv[2]))
import time
print(clock.anchor_ns, clock.now_ns(), clock.to_host_ns(time.monotonic_ns()))
"""


class Folders:
    """Two runtime directories of one user, and the file that both share."""

    def __init__(self, tmp: Path) -> None:
        self.service, self.shell, self.shared = tmp / "service", tmp / "shell", tmp / "perception.clock"
        self.service.mkdir()
        self.shell.mkdir()

    def anchor(self, directory: Path, wall_ns: int = 0) -> Anchor:
        return Anchor(directory, self.shared, lambda: wall_ns)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_all_runtime_directories_of_a_user_have_one_clock(folders: Folders) -> None:
    service = folders.anchor(folders.service, 1_000)
    assert folders.anchor(folders.shell, STEP_NS * 50).ns == service.ns == 1_000


def test_the_anchor_stays_while_it_is_used_and_follows_the_wall_clock_afterwards(folders: Folders) -> None:
    """A host without a clock battery starts in 1970; NTP sets its clock while a graph runs."""
    graph = folders.anchor(folders.service, YEARS_1970)
    assert folders.anchor(folders.service, 0).ns == YEARS_1970
    assert folders.anchor(folders.shell, 0).ns == YEARS_1970
    del graph
    assert folders.anchor(folders.shell, 0).ns == 0
    assert folders.anchor(folders.service, STEP_NS).ns == 0, "what a busy machine measures is no step"


def test_processes_that_exchange_messages_agree_where_the_files_differ(folders: Folders) -> None:
    """A container has the mounted runtime directory, and a /dev/shm of its own."""
    container = Anchor(folders.service, folders.shared.with_name("inside"), lambda: 1_000)
    shell = folders.anchor(folders.shell, STEP_NS * 50)
    assert shell.ns == STEP_NS * 50
    assert folders.anchor(folders.service, STEP_NS * 99).ns == container.ns == 1_000
    assert folders.anchor(folders.shell, STEP_NS * 99).ns == shell.ns


@pytest.mark.parametrize("removed", ["runtime directory", "shared file", "both"])
def test_what_a_cleaner_removes_is_written_again(folders: Folders, removed: str) -> None:
    graph = folders.anchor(folders.service, 1_000)
    if removed != "shared file":
        (folders.service / ".clock").unlink()
    if removed != "runtime directory":
        folders.shared.unlink()
    graph.restore()
    graph.restore()
    assert folders.anchor(folders.service, STEP_NS * 50).ns == 1_000
    assert folders.anchor(folders.shell, STEP_NS * 50).ns == 1_000
    assert sorted(os.listdir(folders.shared.parent)) == ["perception.clock", "service", "shell"]


def test_another_clock_written_meanwhile_is_reported(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    graph = folders.anchor(folders.service, 1_000)
    (folders.service / ".clock").unlink()
    folders.shared.unlink()
    other = folders.anchor(folders.service, STEP_NS * 50)
    graph.restore()
    assert (graph.ns, other.ns) == (1_000, STEP_NS * 50)
    assert "was replaced: processes started now read another host clock" in caplog.records[0].message
    records = len(caplog.records)
    graph.restore()
    assert len(caplog.records) == records


def test_a_file_that_is_not_the_users_is_not_read(folders: Folders, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    Anchor(folders.shell, theirs, lambda: 5 * STEP_NS)
    folders.shared.symlink_to(theirs)
    assert folders.anchor(folders.service, 0).ns == 0
    folders.shared.unlink()
    if os.getuid() == 0:  # only root can make a file of another user
        shutil.copy(theirs, folders.shared)
        os.chown(folders.shared, 1, 1)
        assert folders.anchor(folders.service, 0).ns == 0


def test_without_a_common_file_the_runtime_directory_alone_holds_the_clock(folders: Folders) -> None:
    nowhere = folders.shared / "missing" / "file"
    first = Anchor(folders.service, nowhere, lambda: 1_000)
    assert Anchor(folders.service, nowhere, lambda: STEP_NS * 50).ns == first.ns


def read(folders: Folders, prefix: list[str], environment: dict[str, str] | None = None) -> list[int]:
    """Return anchor, host time, and the host time of a monotonic stamp taken now, as a process reads them."""
    command = [*prefix, sys.executable, "-c", NOW, str(folders.service), str(folders.shared)]
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        check=True,
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )
    return list(map(int, done.stdout.split()))


def in_time_namespace(*offsets: str) -> list[str]:
    prefix = ["unshare", "-T", *offsets, "-f"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot make time namespaces")
    return prefix


@pytest.mark.parametrize(
    "offsets",
    [("--boottime", "500", "--monotonic", "30"), ("--monotonic", "86400")],
    ids=["container that was moved here", "clocks differ as after a suspension"],
)
def test_time_namespaces_and_suspension_do_not_move_the_clock(
    folders: Folders, offsets: tuple[str, ...]
) -> None:
    clock = HostClock(folders.service, folders.shared)
    before = clock.now_ns()
    anchor_ns, now_ns, mapped_ns = read(folders, in_time_namespace(*offsets))
    after = clock.now_ns()
    assert anchor_ns == clock.anchor_ns
    assert before <= now_ns <= mapped_ns <= after
    assert abs(clock.anchor_ns + boot_ns() - time.time_ns()) < 1_000_000_000


def test_a_process_with_a_faked_clock_is_another_host(folders: Folders) -> None:
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed")
    clock = HostClock(folders.shell, folders.shared)
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+30s x1.0001"}
    anchor_ns, now_ns, _ = read(folders, [], faked)
    assert anchor_ns != clock.anchor_ns
    assert 25e9 < now_ns - clock.now_ns() < 31e9
