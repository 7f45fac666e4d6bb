"""A mailbox with a lock, and the ways to wait for it: blocking, with a time-out, and in asyncio.

Threads: every method may be called from any thread, `take_async` from any event loop. `lock` guards the
mailbox and all fields except the two that name another rule. The holder of `Drain._socket_lock` puts
messages. `lock` is reentrant: the drain holds it over several `put`s, so that no consumer takes a message
that a later one supersedes.

After `close`, `take` and `take_async` return None, and all waits end.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from perception.bus.mailbox import Mailbox
from perception.messages import Header, InputHealth, Message

_OUTDATED_S: Final = 0.1
"""Twice the drain's poll interval: after it, the process was stopped or got no CPU time."""
_RETRY_S: Final = 0.002


class Inbox:
    """A mailbox for one filling thread and any number of waiting threads and tasks."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self.lock = threading.RLock()
        """Held while several messages are put, so that none of them is taken in between."""
        self._changed = threading.Condition(self.lock)
        self._futures: set[asyncio.Future[None]] = set()
        self.closed = False
        self._end = threading.Event()
        self.waiting = 0
        """Number of threads in `wait`. Written under `lock`, read without it as a hint."""
        self.drained_s = time.monotonic()
        """When the sockets were last read to the end, by `time.monotonic`. Written under `_socket_lock`."""

    @property
    def filled(self) -> bool:
        """Whether a message is queued."""
        return len(self._mailbox) > 0

    def outdated(self, now_s: float) -> bool:
        """Return whether queued messages may be old, because the sockets were not read for 0.1 s."""
        return now_s - self.drained_s > _OUTDATED_S

    def put(self, message: Message[Header]) -> None:
        """Add a message and wake all waits."""
        with self.lock:
            self._mailbox.put(message)
            if self.waiting or self._futures:
                self._wake()

    def put_and_take(self, message: Message[Header]) -> Message[Header] | None:
        """Add a message and return the next one; None if the inbox is closed or there is no valid message."""
        with self.lock:
            if self.closed:
                return None
            return self._mailbox.put_and_take(message)

    def refuse(self, topic: str, reason: str = "malformed") -> None:
        """Count a received message that cannot be used."""
        with self.lock:
            self._mailbox.refuse(topic, reason)

    def expect(self, topic: str) -> None:
        """Report counts of `topic` from now on, even if no message arrives."""
        with self.lock:
            self._mailbox.expect(topic)

    def close(self) -> None:
        """Close; all waits, now and later, return None."""
        with self.lock:
            self.closed = True
            self._end.set()
            self._wake()

    def sleep(self, timeout_s: float) -> None:
        """Wait for `timeout_s`, or until the inbox is closed."""
        self._end.wait(timeout_s)

    def take(self) -> Message[Header] | None:
        """Return the next message; None if none is queued or the inbox is closed."""
        with self.lock:
            return None if self.closed else self._mailbox.take()

    def wait(self, timeout_s: float | None, unless: Callable[[], bool]) -> None:
        """Wait until a message is queued, the inbox is closed, `wake` is called, or `timeout_s` has passed.

        Return at once if `unless()` is true. It is called under `lock`, after `waiting` was increased: a
        thread that makes it true later finds `waiting` > 0 and calls `wake`.
        """
        with self._changed:
            if len(self._mailbox) or self.closed:
                return
            self.waiting += 1
            try:
                if not unless():
                    self._changed.wait(timeout_s)
            finally:
                self.waiting -= 1

    def wake(self) -> None:
        """Wake all threads in `wait`."""
        if self.waiting:
            with self._changed:
                self._changed.notify_all()

    async def take_async(self) -> Message[Header] | None:
        """Return the next message without blocking the event loop; None once closed."""
        while True:
            while self.outdated(time.monotonic()) and not self.closed:
                await asyncio.sleep(_RETRY_S)
            with self.lock:
                if self.closed:
                    return None
                message = self._mailbox.take()
                if message is not None:
                    return message
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._futures.add(future)
            try:
                await future
            finally:
                with self.lock:
                    self._futures.discard(future)

    def health(self, now_ns: int) -> dict[str, InputHealth]:
        """Return the counts by topic; ages are relative to `now_ns`."""
        with self.lock:
            return self._mailbox.health(now_ns)

    def _wake(self) -> None:
        self._changed.notify_all()
        for future in self._futures:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                future.get_loop().call_soon_threadsafe(_resolve, future)
        self._futures.clear()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
