"""Judges signals that arrive without a condition, in a thread of its own.

Threads: the receiving thread calls `judge` and `close`; `judge` never waits. The judging thread decodes and
judges, and writes the newest condition of each topic. The condition that a message gets depends on how far
the judging thread is, so the journal records it.
"""

import logging
import threading
from contextlib import suppress
from queue import Full, Queue
from typing import Final

from perception.devices.received import FRAME_PERIOD_NS, ReceivedSignals, Thresholds, is_unjudged
from perception.messages import AudioBlock, CameraFrame, Header, Message

_MAX_WAITING: Final = 512
"""Messages that may wait to be judged: a judge of sound needs every block."""
_MAX_BEFORE_FRAME: Final = 16
"""A frame is skipped if more messages wait: it would keep its slot of shared memory."""
_LOG: Final = logging.getLogger(__name__)


class Judging:
    """Conditions of the streams whose publishers do not judge them.

    Args:
        thresholds: see `ReceivedSignals`.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self._signals = ReceivedSignals(thresholds)
        """The judging thread owns it."""
        self._conditions: dict[str, str] = {}
        """By topic. The judging thread writes, the receiving thread reads: single steps, no lock."""
        self._queue: Queue[Message[Header] | None] = Queue(_MAX_WAITING)
        self._thread: threading.Thread | None = None
        """The receiving thread owns it; it starts with the first message without a condition."""
        self._offered_ns: dict[str, int] = {}
        """Stamp of the last frame that was put into the queue, by topic. The receiving thread owns it."""
        self.skipped = 0
        """Messages that were not judged because the judging thread was busy. The receiving thread writes."""

    def judge(self, message: Message[Header]) -> str:
        """Return the newest condition of the stream of a message that carries none; empty for others."""
        if not is_unjudged(message):
            return ""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
            self._thread.start()
        if self._is_due(message):
            busy = isinstance(message.header, CameraFrame) and self._queue.qsize() > _MAX_BEFORE_FRAME
            try:
                if not busy:
                    self._queue.put_nowait(message)
            except Full:
                busy = True
            self.skipped += busy
        return self._conditions.get(message.topic, "starting")

    def close(self) -> None:
        """End the judging thread; messages that wait are not judged."""
        if self._thread is not None:
            with suppress(Full):
                self._queue.put_nowait(None)

    def _is_due(self, message: Message[Header]) -> bool:
        stamp_ns = message.header.stamp_ns
        if isinstance(message.header, AudioBlock):
            return True
        if abs(stamp_ns - self._offered_ns.get(message.topic, 0)) < FRAME_PERIOD_NS:
            return False
        self._offered_ns[message.topic] = stamp_ns
        return True

    def _run(self) -> None:
        """Thread body. A judge that fails is a fault of this program: its stream stays as it was judged."""
        while (message := self._queue.get()) is not None:
            try:
                self._conditions[message.topic] = self._signals.judge(message)
            except Exception:
                _LOG.exception("%s: its signal cannot be judged", message.topic)
                self._conditions.setdefault(message.topic, "ok")
