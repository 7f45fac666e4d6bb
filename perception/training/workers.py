"""Work in several new processes of this interpreter.

- No process is forked: a fork copies locks that other threads, such as those of torch, hold at that time, and
  no thread releases them in the copy.
- No process runs `__main__` again, as `multiprocessing` does: a script needs no guard, a notebook no script.
- Each process leads a process session of its own: Ctrl-C reaches only this process, which ends the workers.
- If this process dies, each worker ends at its next step.
- `spread` is called from one thread; workers answer through one socket each, which only that thread reads.
"""

import os
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, Literal, TypeVar

from perception.errors import PerceptionError

Item = TypeVar("Item")
Result = TypeVar("Result")
Step = Callable[[], object]
Work = Callable[[Item, Step], Result]
MOST: Final = 4
"""Default limit: each worker holds its own models, 1 GB for ResNet, VGGish and BERT."""
_END_S: Final = 5.0
"""A worker whose step takes longer is killed."""
_Answer = tuple[Literal["step", "done", "failed", "unknown"], Any]


def workers_for(cores: int, threads: int) -> int:
    """Return how many workers with so many torch threads use all cores, at least 1, at most MOST."""
    return max(1, min(MOST, cores // threads))


def spread(
    work: Work[Item, Result],
    items: Sequence[Item],
    workers: int,
    *,
    on_step: Step = lambda: None,
    on_done: Callable[[Item], object] = lambda item: None,
    name: Callable[[Item], str] = str,
) -> list[Result]:
    """Return the result of `work` for each item, in order; with one worker or one item, in this process.

    Args:
        work: a function that another process can import, or a partial of it; it calls its second argument at
            each step.
        items: picklable; items that another process cannot load, such as of a class of a notebook, stay
            in this process.
        workers: how many processes; at most one per item is started.
        on_step: called for each step of each worker.
        on_done: called for each item that is done, in any order.
        name: of an item, for errors.

    Raises:
        PerceptionError: a worker was killed. Errors of `work` are raised too.
    """
    share: _Share[Item, Result] = _Share(items, on_step, on_done, name)
    if min(workers, len(items)) > 1:
        with _started(work, min(workers, len(items))) as processes:
            share.among(processes)
    return share.rest(work)


class _Worker:
    """One process, and the number of its item."""

    def __init__(self, work: Work[Any, Any]) -> None:
        own, other = socket.socketpair()
        path = [entry or os.getcwd() for entry in sys.path]
        code = f"import sys; sys.path[:] = {path}; from {__name__} import serve; serve({other.fileno()})"
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        self.connection = Connection(own.detach())
        self.number = -1
        self.begun = False
        """Whether it has reached a step; until then it imports, and has written nothing."""
        self.send(work)

    def send(self, value: Any) -> None:
        """Send a picklable value; that a worker has died is detected in `answer`."""
        with suppress(ConnectionError):
            self.connection.send(value)

    def answer(self) -> _Answer | None:
        """Return its next answer; None if it has died."""
        try:
            answer: _Answer = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        self.begun = True
        return answer


@contextmanager
def _started(work: Work[Any, Any], count: int) -> Iterator[list[_Worker]]:
    started: list[_Worker] = []
    try:
        for _ in range(count):
            started.append(_Worker(work))
        yield started
    finally:
        for worker in started:
            worker.connection.close()  # it exits at its next step, after it has removed a half-written file
            if not worker.begun:
                worker.process.kill()
        deadline_s = time.monotonic() + _END_S
        for worker in started:
            try:
                worker.process.wait(max(deadline_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


class _Share(Generic[Item, Result]):
    """Items that are due, and results."""

    def __init__(
        self,
        items: Sequence[Item],
        on_step: Step,
        on_done: Callable[[Item], object],
        name: Callable[[Item], str],
    ) -> None:
        self._items, self._on_step, self._on_done, self._name = items, on_step, on_done, name
        self._due = deque(range(len(items)))
        self._left: list[int] = []
        """Numbers of items that no worker can load."""
        self._results: dict[int, Result] = {}

    def among(self, workers: Sequence[_Worker]) -> None:
        """Send items to the workers until none is due and all have answered."""
        busy = {worker.connection: worker for worker in workers if self._give(worker)}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                match worker.answer():
                    case ("step", _):
                        self._on_step()
                        continue
                    case ("done", result):
                        self._note(worker.number, result)
                    case ("unknown", _):
                        self._left.append(worker.number)
                    case ("failed", error):
                        raise error
                    case _:
                        raise self._killed(worker)
                if not self._give(worker):
                    del busy[worker.connection]

    def rest(self, work: Work[Item, Result]) -> list[Result]:
        """Work on the remaining items in this process; return all results."""
        for number in sorted([*self._left, *self._due]):
            self._note(number, work(self._items[number], self._on_step))
        return [self._results[number] for number in range(len(self._items))]

    def _give(self, worker: _Worker) -> bool:
        while self._due:
            worker.number = self._due.popleft()
            try:
                worker.send(self._items[worker.number])
            except Exception:  # it does not pickle: a class can raise any error
                self._left.append(worker.number)
                continue
            return True
        return False

    def _note(self, number: int, result: Result) -> None:
        self._results[number] = result
        self._on_done(self._items[number])

    def _killed(self, worker: _Worker) -> PerceptionError:
        worker.process.wait()
        code = worker.process.returncode
        how = f"signal {-code}, perhaps out of memory" if code < 0 else f"exit code {code}"
        item = self._name(self._items[worker.number])
        return PerceptionError(f"{item}: the process that worked on it ended by {how}; try --workers 1")


def serve(descriptor: int) -> None:
    """Run a worker: work for the process at the other end of a socket until that end is closed."""
    parent = Connection(descriptor)
    with suppress(EOFError, ConnectionError):
        work = parent.recv()
        while True:
            parent.send(_answer(parent, work))


def _answer(parent: Connection, work: Work[Any, Any]) -> _Answer:
    try:
        item = parent.recv()
    except (EOFError, ConnectionError):
        raise
    except Exception:  # an import can raise any error
        return "unknown", None
    try:
        return "done", work(item, lambda: parent.send(("step", None)))
    except PerceptionError as error:
        return "failed", error
    except Exception:
        return "failed", RuntimeError(traceback.format_exc())
