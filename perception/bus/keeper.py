"""Checks every 0.25 s whether the files of this process in the runtime directory still exist.

A cleaner of /tmp, a script or an administrator may remove them at any time. Open connections stay, because
the kernel holds them, but new readers do not find a publisher without its files.

Threads: `add`, `remove` and `keeping` may be called from any thread, also from a task. Tasks run one after
another in the keeper's own thread, which exists only while there are tasks. A task may still be running when
`remove` returns; after `keeping` none is. So a lock held around `keeping`'s exit must not be taken by a task.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from perception.errors import PerceptionError

_LOG: Final = logging.getLogger(__name__)
_PERIOD_S: Final = 0.25
"""Shorter than a node takes to start: a restarted node finds all files."""
Task = Callable[[], None]
"""Restores a file if it is missing. On PerceptionError it is tried again at the next run."""


class Keeper:
    """Runs tasks every 0.25 s in its own thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Guards `_tasks` and `_end`; not held while tasks run."""
        self._run_lock = threading.Lock()
        """Held while tasks run."""
        self._tasks: list[Task] = []
        self._end = threading.Event()
        """Ends the current thread."""
        self._warned: set[str] = set()
        """Warnings already logged. Lock: `_run_lock`."""

    def add(self, task: Task) -> None:
        """Run the task from now on."""
        with self._lock:
            self._tasks.append(task)
            if len(self._tasks) == 1:
                self._end = threading.Event()
                threading.Thread(target=self._run, args=(self._end,), name="bus keeper", daemon=True).start()

    def remove(self, task: Task) -> None:
        """Stop running the task; a run that has begun continues. No effect if it was not added."""
        with self._lock:
            if task in self._tasks:
                self._tasks.remove(task)
            if not self._tasks:
                self._end.set()

    @contextmanager
    def keeping(self, *tasks: Task) -> Iterator[None]:
        """Run tasks while the context is open; on exit wait until none of them is running."""
        for task in tasks:
            self.add(task)
        try:
            yield
        finally:
            for task in tasks:
                self.remove(task)
            with self._run_lock:
                pass

    def _run(self, end: threading.Event) -> None:
        while not end.wait(_PERIOD_S):
            with self._run_lock:
                with self._lock:
                    tasks = tuple(self._tasks)
                for task in tasks:
                    self._do(task)

    def _do(self, task: Task) -> None:
        try:
            task()
        except PerceptionError as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                _LOG.warning("%s", error)
