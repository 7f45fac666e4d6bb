"""A mailbox between the thread that fills it and the threads and tasks that wait for it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from perception.bus.mailbox import Mailbox
from perception.messages import Header, InputHealth, Message

_OUTDATED_S: Final = 0.1
"""Twice the time between two looks at the socket: after it, this process has been stopped or starved."""
_LOOK_AGAIN_S: Final = 0.002


class Inbox:
    """A mailbox that one thread fills, and that any number of threads and tasks wait for."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self.lock = threading.RLock()
        """Held by who takes in several messages at once, so that the first of them is not handed out."""
        self._changed = threading.Condition(self.lock)
        self._futures: set[asyncio.Future[None]] = set()
        self.closed = False
        self._end = threading.Event()
        self.waiting = 0
        """Threads in `wait`."""
        self.looked_s = time.monotonic()
        """When all that waited at the socket was last taken in, by `time.monotonic`."""

    @property
    def filled(self) -> bool:
        """Whether a message waits."""
        return len(self._mailbox) > 0

    def outdated(self, now_s: float) -> bool:
        """Return whether what waits here may be old, because nobody has looked at the socket for long."""
        return now_s - self.looked_s > _OUTDATED_S

    def put(self, message: Message[Header]) -> None:
        """Take in a message and wake who waits."""
        with self.lock:
            self._mailbox.put(message)
            if self.waiting or self._futures:
                self._wake()

    def pass_on(self, message: Message[Header]) -> Message[Header] | None:
        """Take in a message and return the next one, None if it is of no use or the inbox is closed."""
        with self.lock:
            if self.closed:
                return None
            return self._mailbox.pass_on(message)

    def refuse(self, topic: str, reason: str = "malformed") -> None:
        """Count a message that cannot be used."""
        with self.lock:
            self._mailbox.refuse(topic, reason)

    def expect(self, topic: str) -> None:
        """Keep an account of `topic`, even if nothing arrives."""
        with self.lock:
            self._mailbox.expect(topic)

    def close(self) -> None:
        """Let everyone who waits, now or later, get None."""
        with self.lock:
            self.closed = True
            self._end.set()
            self._wake()

    def rest(self, timeout_s: float) -> None:
        """Wait, at most until the inbox is closed."""
        self._end.wait(timeout_s)

    def take(self) -> Message[Header] | None:
        """Return the next message, None if none is there or the inbox is closed."""
        with self.lock:
            return None if self.closed else self._mailbox.take()

    def wait(self, timeout_s: float | None, vain: Callable[[], bool]) -> None:
        """Wait until a message comes, the inbox is closed, `wake` is called or time is up.

        Returns at once if waiting is in `vain`, which is judged when nothing can come in between, and who
        changes it from then on sees that somebody waits.
        """
        with self._changed:
            if len(self._mailbox) or self.closed:
                return
            self.waiting += 1
            try:
                if not vain():
                    self._changed.wait(timeout_s)
            finally:
                self.waiting -= 1

    def wake(self) -> None:
        """Wake who waits, if anybody does."""
        if self.waiting:
            with self._changed:
                self._changed.notify_all()

    async def take_async(self) -> Message[Header] | None:
        """Return the next message without blocking the event loop, None once closed."""
        while True:
            while self.outdated(time.monotonic()) and not self.closed:
                await asyncio.sleep(_LOOK_AGAIN_S)
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
        """Return the accounts by topic; ages are measured at `now_ns`."""
        with self.lock:
            return self._mailbox.health(now_ns)

    def _wake(self) -> None:
        self._changed.notify_all()
        for future in self._futures:
            with contextlib.suppress(RuntimeError):  # its loop has ended meanwhile
                future.get_loop().call_soon_threadsafe(_resolve, future)
        self._futures.clear()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
