"""Reads a camera in its own thread and keeps the newest frame, so a slow reader adds no latency.

Threads: the grabbing thread alone calls the source and `open_source`, except the first opening in `__init__`.
The thread of the capture loop calls `read`, `report` and `close`. They share `_newest`, `_counts`, `_reason`,
`_end` and the reference `_source` of a `_Grab`, all guarded by `_ready`. A source's `facts` and `counts` are
read by `report` while the grabbing thread writes them: a source never adds keys to `counts` later.

After a DeviceError the source is closed and opened again with growing delays. Any other exception, EOFError
included, ends the thread and is raised by `read` after the last frame. After `close` the source is closed.

A driver may block in a call and never return. `Grabber.read` then abandons the `_Grab` with its thread, and
begins another one, which opens the source again. If the call returns later, its thread closes its source.
"""

import math
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
_JOIN_S: Final = 1.0
_OPENING_S: Final = 7.5
"""Opening a device may take this much longer than reading a frame."""
_MAX_BLOCKED: Final = 8
"""Threads that may be left behind in a row; each keeps what it has opened."""


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
    """Reads a source in a thread, keeps its newest frame, and opens it again when it fails or blocks.

    Args:
        open_source: opens the source, or raises DeviceError; its argument is an event that is set on close.
        rate_hz: frames beyond this rate are left out.
        backoff: delays before a failed source is opened again.
        stuck_s: longest time that a call of the source may take; infinite for one that waits for its frames.
    """

    def __init__(
        self,
        open_source: Callable[[threading.Event], FrameSource],
        *,
        rate_hz: float,
        backoff: Backoff | None = None,
        stuck_s: float = math.inf,
    ) -> None:
        self._open = open_source
        self._rate_hz = rate_hz
        self._backoff = backoff or Backoff()
        self._stuck_s = stuck_s
        self._counts: Counter[str] = Counter()
        """Of the abandoned ones."""
        self._blocked = 0
        """How many were abandoned since the last frame."""
        stop = threading.Event()
        self._grab = _Grab(open_source, stop, open_source(stop), RateLimit.of(rate_hz), self._backoff)

    def read(self, timeout_s: float) -> CapturedFrame | None:
        """Return the newest unread frame, None after `timeout_s`.

        Raises:
            EOFError: end of the file.
            DeviceError: the driver has blocked so often that only the end of this process can free it.
        """
        frame = self._grab.read(timeout_s)
        if frame is not None:
            self._blocked = 0
        elif self._grab.called_for_s() > self._stuck_s:
            self._abandon()
        return frame

    def report(self) -> DeviceReport:
        """Return counts of frames left out and of failures, and the source's facts."""
        report = self._grab.report()
        report.counts = dict(Counter(report.counts) + self._counts)
        return report

    def close(self) -> None:
        """Stop and join the thread, which closes the source; one that a driver blocks is left behind."""
        self._grab.close(_JOIN_S if self._stuck_s < math.inf else None)

    def _abandon(self) -> None:
        self._blocked += 1
        if self._blocked > _MAX_BLOCKED:
            raise DeviceError(f"the driver of the camera has blocked {self._blocked} times in a row")
        self._grab.close(0.0)
        self._counts.update(self._grab.report().counts)
        self._counts["blocked"] += 1
        reason = f"the driver has not returned for {self._stuck_s:g} s"
        pace = RateLimit.of(self._rate_hz)
        self._grab = _Grab(self._open, threading.Event(), None, pace, self._backoff, reason)


class _Grab:
    """One grabbing thread and what it shares with the thread of the capture loop.

    Args:
        open_source: opens the source again.
        stop: ends the thread; `open_source` gets it too.
        source: the open source, None if this thread has to open it.
        pace: frames beyond this rate are left out.
        backoff: delays before a failed source is opened again.
        reason: why the source has to be opened.
    """

    def __init__(
        self,
        open_source: Callable[[threading.Event], FrameSource],
        stop: threading.Event,
        source: FrameSource | None,
        pace: "RateLimit",
        backoff: Backoff,
        reason: str = "",
    ) -> None:
        self._open = open_source
        self._stop = stop
        self._source = source
        self._backoff = backoff
        self._delivers_since_s: float | None = None
        """When the open source returned its first frame. Owner: the grabbing thread."""
        self._pace = pace
        self._called_s = math.inf
        """When the present call of the source began, infinity between calls. The grabbing thread writes."""
        self._ready = threading.Condition()
        self._newest: CapturedFrame | None = None
        self._counts: Counter[str] = Counter()
        self._reason = reason
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="grabber", daemon=True)
        self._thread.start()

    def called_for_s(self) -> float:
        """Return for how long the present call of the source lasts, negative between calls."""
        return time.monotonic() - self._called_s

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
            source = self._source
            counts = self._counts + Counter({} if source is None else source.counts)
            status: Literal["ok", "lost"] = "lost" if self._reason else "ok"
            facts = {} if source is None else dict(source.facts)
            return DeviceReport(dict(counts), facts, status, self._reason)

    def close(self, timeout_s: float | None) -> None:
        """Stop the thread, which closes the source; wait for it at most that long."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        """Thread body."""
        end: BaseException = EOFError("camera closed")
        try:
            if self._source is None:
                self._open_again(0.0)
            while not self._stop.is_set() and self._source is not None:
                self._grab_one(self._source)
        except Exception as error:
            end = error
        finally:
            if self._source is not None:
                self._source.close()
            with self._ready:
                self._end = end
                self._ready.notify_all()

    def _grab_one(self, source: FrameSource) -> None:
        self._called_s = time.monotonic()
        try:
            frame = source.read()
        except DeviceError as error:
            self._reopen(source, str(error))
            return
        finally:
            self._called_s = math.inf
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

    def _reopen(self, source: FrameSource, reason: str) -> None:
        source.close()
        with self._ready:
            self._reason = reason
            self._counts["lost"] += 1
        since_s, self._delivers_since_s = self._delivers_since_s, None
        self._open_again(0.0 if since_s is None else time.monotonic() - since_s)

    def _open_again(self, worked_s: float) -> None:
        while not self._stop.wait(self._backoff.failed(worked_s)):
            self._called_s = time.monotonic() + _OPENING_S
            try:
                source = self._open(self._stop)
            except DeviceError as error:
                worked_s = 0.0
                with self._ready:
                    self._reason = str(error)
                continue
            finally:
                self._called_s = math.inf
            with self._ready:
                self._counts.update({} if self._source is None else self._source.counts)
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
