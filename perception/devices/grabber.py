"""Reads a camera in its own thread and keeps the newest frame, so a slow reader adds no latency.

Threads: the grabbing thread alone calls the source and `open_source`, except the first opening in `__init__`.
The thread of the capture loop calls `read`, `report` and `close`. They share `_newest`, `_counts`, `_reason`,
`_end` and the reference `_source`, all guarded by `_ready`. A source's `facts` and `counts` are read by
`report` while the grabbing thread writes them: a source never adds keys to `counts` later.

After a DeviceError the source is closed and opened again with growing delays. Any other exception, EOFError
included, ends the thread and is raised by `read` after the last frame. After `close` the source is closed.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol, Self

from perception.devices.backoff import Backoff
from perception.devices.device import CapturedFrame, DeviceReport
from perception.errors import DeviceError
from perception.units.closing import Closing

# A source with a nominal 30 Hz may run slightly faster without losing frames.
_RATE_SLACK: Final = 1.05


class FrameSource(Protocol):
    """One open camera, stream or file. Every call returns within seconds."""

    @property
    def facts(self) -> dict[str, str | float]:
        """Facts of the open source: size, rate, format."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Frames refused or left out so far, by reason."""

    def read(self) -> CapturedFrame | None:
        """Return the next frame, None if there is none yet.

        Raises:
            EOFError: end of the file.
            DeviceError: the device or stream failed.
        """

    def close(self) -> None:
        """Release it."""


class Grabber(Closing):
    """Reads a source in a thread, keeps its newest frame, and opens it again when it fails.

    Args:
        open_source: opens the source, or raises DeviceError; its argument is an event that is set on close.
        rate_hz: frames beyond this rate are left out.
        backoff: delays before a failed source is opened again.
    """

    def __init__(
        self,
        open_source: Callable[[threading.Event], FrameSource],
        *,
        rate_hz: float,
        backoff: Backoff | None = None,
    ) -> None:
        self._open = open_source
        self._stop = threading.Event()
        self._source = open_source(self._stop)
        self._backoff = backoff or Backoff()
        self._delivers_since_s: float | None = None
        """When the open source returned its first frame. Owner: the grabbing thread."""
        self._pace = RateLimit.of(rate_hz)
        self._ready = threading.Condition()
        self._newest: CapturedFrame | None = None
        self._counts: Counter[str] = Counter()
        self._reason = ""
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._grab, name="grabber", daemon=True)
        self._thread.start()

    def read(self, timeout_s: float) -> CapturedFrame | None:
        """Return the newest unread frame, None after `timeout_s`; EOFError at the end of a file."""
        with self._ready:
            self._ready.wait_for(lambda: self._newest is not None or self._end is not None, timeout_s)
            frame, self._newest = self._newest, None
            if frame is None and self._end is not None:
                raise self._end
            return frame

    def report(self) -> DeviceReport:
        """Return counts of frames left out and of failures, and the source's facts."""
        with self._ready:
            counts = self._counts + Counter(self._source.counts)
            status: Literal["ok", "lost"] = "lost" if self._reason else "ok"
            return DeviceReport(dict(counts), dict(self._source.facts), status, self._reason)

    def close(self) -> None:
        """Stop and join the thread, which closes the source."""
        self._stop.set()
        self._thread.join()

    def _grab(self) -> None:
        end: BaseException = EOFError("camera closed")
        try:
            while not self._stop.is_set():
                self._grab_one()
        except Exception as error:
            end = error
        finally:
            self._source.close()
            with self._ready:
                self._end = end
                self._ready.notify_all()

    def _grab_one(self) -> None:
        try:
            frame = self._source.read()
        except DeviceError as error:
            self._reopen(str(error))
            return
        if frame is None:
            return
        self._delivers_since_s = self._delivers_since_s or time.monotonic()
        with self._ready:
            self._reason = ""
            if not self._pace.admits(frame.stamp_ns):
                self._counts["over_rate"] += 1
                return
            self._counts["superseded"] += self._newest is not None
            self._newest = frame
            self._ready.notify_all()

    def _reopen(self, reason: str) -> None:
        self._source.close()
        with self._ready:
            self._reason = reason
            self._counts["lost"] += 1
        since_s, self._delivers_since_s = self._delivers_since_s, None
        worked_s = 0.0 if since_s is None else time.monotonic() - since_s
        while not self._stop.wait(self._backoff.failed(worked_s)):
            try:
                source = self._open(self._stop)
            except DeviceError as error:
                worked_s = 0.0
                with self._ready:
                    self._reason = str(error)
                continue
            with self._ready:
                self._counts.update(self._source.counts)
                self._source = source
                self._counts["reopened"] += 1
            return


class RateLimit:
    """Admits at most `rate_hz` items per second of their stamps, evenly; at most two at once."""

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._credit = 1.0
        self._last_ns: int | None = None

    @classmethod
    def of(cls, rate_hz: float) -> Self:
        """Return the limit for a source with this nominal rate."""
        return cls(rate_hz * _RATE_SLACK)

    def admits(self, stamp_ns: int) -> bool:
        """Return whether the item at `stamp_ns` is within the rate."""
        if self._last_ns is not None:
            earned = max(stamp_ns - self._last_ns, 0) * 1e-9 * self._rate_hz
            self._credit = min(self._credit + earned, 2.0)
        self._last_ns = stamp_ns
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
