"""Looks again and again whether what a process has in the runtime directory is still there.

Somebody may remove it at any time: a cleaner of /tmp, a script, an administrator. What is connected stays so,
because the kernel holds it; but nobody new could find it.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from perception.errors import PerceptionError

_LOG: Final = logging.getLogger(__name__)
_EVERY_S: Final = 0.25
"""Shorter than the launcher waits before it restarts a node, which then finds everything."""
Task = Callable[[], None]
"""Puts something back if it is gone. PerceptionError if that cannot be done now; it is tried again."""


class Keeper:
    """Runs tasks every 0.25 s, in a thread that exists only while there are tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the tasks and the event
        self._at_work = threading.Lock()  # held while tasks run
        self._tasks: list[Task] = []
        self._end = threading.Event()
        """Ends the present thread."""
        self._complaints: set[str] = set()

    def add(self, task: Task) -> None:
        """Run the task from now on."""
        with self._lock:
            self._tasks.append(task)
            if len(self._tasks) == 1:
                self._end = threading.Event()
                threading.Thread(target=self._run, args=(self._end,), name="bus keeper", daemon=True).start()

    def remove(self, task: Task) -> None:
        """Run the task no more, but for a run that has begun; without effect if it was not added."""
        with self._lock:
            if task in self._tasks:
                self._tasks.remove(task)
            if not self._tasks:
                self._end.set()

    @contextmanager
    def keeping(self, *tasks: Task) -> Iterator[None]:
        """Run tasks meanwhile, and none of them afterwards."""
        for task in tasks:
            self.add(task)
        try:
            yield
        finally:
            for task in tasks:
                self.remove(task)
            with self._at_work:
                pass

    def _run(self, end: threading.Event) -> None:
        while not end.wait(_EVERY_S):
            with self._at_work:
                with self._lock:
                    tasks = tuple(self._tasks)
                for task in tasks:
                    self._do(task)

    def _do(self, task: Task) -> None:
        try:
            task()
        except PerceptionError as error:
            if str(error) not in self._complaints:
                self._complaints.add(str(error))
                _LOG.warning("%s", error)
