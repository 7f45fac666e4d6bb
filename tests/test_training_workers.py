"""Worker processes: started afresh from wherever they are called, and gone when their work is."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from perception.errors import PerceptionError, SessionError
from perception.training.workers import MOST, spread, workers_for
from tests import worker_tasks
from tests.waiting import LONG_S, eventually

ROOT = Path(__file__).parents[1]


def test_results_come_in_order_with_every_step_told() -> None:
    steps: list[None] = []
    done: list[int] = []
    found = spread(
        worker_tasks.squared,
        [3, 1, 2, 4],
        2,
        on_step=lambda: steps.append(None),
        on_done=done.append,
    )
    assert [square for square, _ in found] == [9, 1, 4, 16]
    assert len(steps) == 10
    assert sorted(done) == [1, 2, 3, 4]
    processes = {process for _, process in found}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2


@pytest.mark.parametrize(("items", "workers"), [([2], 4), ([2, 3], 1), ([], 4)])
def test_one_worker_or_item_needs_no_other_process(items: list[int], workers: int) -> None:
    found = spread(worker_tasks.squared, items, workers)
    assert found == [(number * number, os.getpid()) for number in items]


@dataclass(frozen=True)
class Seven:
    """A class that other processes import from this file."""

    def __call__(self) -> int:
        return 7


def test_from_pytest_items_are_of_the_tests_own_classes() -> None:
    @dataclass(frozen=True)
    class Local:
        def __call__(self) -> int:
            return 8

    items: list[Callable[[], int]] = [Seven(), Local(), Seven()]
    found = spread(worker_tasks.called, items, 2)
    assert [value for value, _ in found] == [7, 8, 7]
    assert [process == os.getpid() for _, process in found] == [False, True, False]


SCRIPT = """
import os, sys
from dataclasses import dataclass
from perception.training.workers import spread
from tests.worker_tasks import called, squared

print("the script runs", os.getpid() == int(os.environ.get("FIRST", os.getpid())))
os.environ["FIRST"] = str(os.getpid())

@dataclass
class Own:
    value: int
    def __call__(self):
        return self.value

others = [process != os.getpid() for _, process in spread(squared, [1, 2, 3], 2)]
print(others, [value for value, _ in spread(called, [Own(4), Own(5)], 2)])
"""


@pytest.mark.parametrize("way", ["file", "stdin", "command"])
def test_a_script_needs_no_guard_and_is_not_run_again(way: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"file": [str(tmp_path / "script.py")], "stdin": [], "command": ["-c", SCRIPT]}[way]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT if way == "stdin" else "",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )
    assert (done.stdout, done.stderr) == ("the script runs True\n[True, True, True] [4, 5]\n", "")


def test_what_a_worker_refuses_keeps_its_kind() -> None:
    with pytest.raises(SessionError, match=r"^kitchen\.mcap: not an MCAP file$"):
        spread(worker_tasks.fragile, ["fine", "refuse"], 2)


def test_a_killed_worker_is_one_line_that_names_its_item() -> None:
    with pytest.raises(PerceptionError, match=r"^session die: the process .* signal 9.*; try --workers 1$"):
        spread(worker_tasks.fragile, ["fine", "die"], 2, name=lambda item: f"session {item}")


@contextmanager
def working(folder: Path) -> "Iterator[tuple[subprocess.Popen[str], list[int]]]":
    """A process in a group of its own, as a terminal has it, and its two workers at work."""
    code = f"from tests.worker_tasks import spread_endless; spread_endless({str(folder)!r})"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            eventually(lambda: len(list(folder.iterdir())) == 2)
            yield process, [int(file.name) for file in folder.iterdir()]
        finally:
            process.kill()


def test_ctrl_c_ends_all_workers_without_a_word_from_them(tmp_path: Path) -> None:
    with working(tmp_path) as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(LONG_S) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read().count("Traceback") == 1  # its own, of this bare script
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with working(tmp_path) as (process, workers):
        process.kill()
        process.wait()
        eventually(lambda: not any(map(alive, workers)))


def alive(process: int) -> bool:
    """Whether it runs: one that has ended may wait for an init that does not reap."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_are_as_many_as_keep_the_cores_busy() -> None:
    assert [workers_for(cores, 2) for cores in (1, 2, 4, 64)] == [1, 1, 2, MOST]
    assert [workers_for(cores, 1) for cores in (1, 2, 4, 64)] == [1, 2, 4, MOST]
    assert workers_for(64, 62) == 1
