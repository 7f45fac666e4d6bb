"""The loop of a capture process: from its device to the bus, and `Health` once a second.

Threads: the main thread calls every method and owns every field. A device may have its own threads behind
`read` and `report`; a publisher's files are restored by the keeper's thread under the publisher's lock.

Order: publishers are bound first, then the device is imported and opened, so that readers have found the
publishers before the first message. `opened` opens it in a thread of its own: a driver may block. `run` waits
until 0.3 s after the last bind. An item that cannot be published is refused and counted; the loop continues.
On exit all publishers are closed.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, TypeVar

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Conversion, Publisher
from perception.errors import MalformedMessageError, ProfileError
from perception.errors.credentials import cleaned, without_credentials
from perception.messages import PROCESS, ConditionName, Health
from perception.profile import Profile
from perception.units import SECOND_NS

if TYPE_CHECKING:
    from perception.devices.device import Device, DeviceReport

_HEALTH_NS: Final = SECOND_NS
_CHANGE_NS: Final = SECOND_NS // 10
"""A device that is lost or back is reported this soon."""
_READ_S: Final = 0.1
_DAMAGED: Final = ("corrupt", "after_damage")
"""Counts of damaged items that a device refused."""
_SETTLE_NS: Final = 300_000_000
"""After this time all readers have found a publisher: a recorder receives the first message too."""
ORIGIN_VARIABLE: Final = "PERCEPTION_ORIGIN_NS"
"""Host time at which all scripted and file devices of one graph start to play."""
_START_DELAY_NS: Final = 500_000_000  # a file is opened before its beginning is due
_LOG: Final = logging.getLogger("perception")
ItemT = TypeVar("ItemT")
JudgedT = TypeVar("JudgedT", contravariant=True)
SectionT = TypeVar("SectionT")


class Judge(Protocol[JudgedT]):
    """Judges a device's stream: `perception.devices.signal.timing.DeviceJudge`."""

    @property
    def condition(self) -> ConditionName:
        """The most serious that holds."""

    @property
    def reason(self) -> str:
        """Why; empty if nothing is wrong."""

    @property
    def facts(self) -> dict[str, str | float]:
        """What was measured."""

    @property
    def gone(self) -> bool:
        """Whether nothing arrives."""

    def update(self, item: JudgedT, arrival_ns: int) -> None:
        """Judge an item."""

    def idle(self, now_ns: int, reconnecting: str = "") -> None:
        """Judge that nothing was read."""


class CaptureLoop:
    """One capture process: its profile, clock and publishers.

    Args:
        kind: `camera`, `microphone` or `text`.
        name: of the device's section in the profile.
        profile: the profile, loaded.
        stopped: set when the process has to end.
    """

    def __init__(self, kind: str, name: str, profile: Profile, stopped: threading.Event) -> None:
        self.kind = kind
        self.name = name
        self.profile = profile
        self.clock = HostClock().now_ns
        origin = os.environ.get(ORIGIN_VARIABLE, "")
        self.origin_ns = int(origin) if origin.isdecimal() else self.clock() + _START_DELAY_NS
        self._runtime = Runtime(profile.domain)
        self._publishers: list[Publisher] = []
        self._bound_ns = 0
        """Host time of the last bind."""
        self._counts: Counter[str] = Counter()
        self._damaged = 0
        """Count of damaged items just after the last good one."""
        self._stopped = stopped
        self._status = "ok"
        self._health_output = self.publisher(f"health/{kind}-{name}")

    def section(self, sections: Mapping[str, SectionT]) -> SectionT:
        """Return the profile's section of this device; ProfileError if there is none."""
        if self.name not in sections:
            names = ", ".join(sections) or "none"
            raise ProfileError(f"{self.kind}.{self.name}: no such section; the profile has {names}")
        return sections[self.name]

    def begins_ns(self) -> int:
        """Return the host time from which an open device can deliver."""
        return max(self.clock(), self.origin_ns, self._bound_ns + _SETTLE_NS)

    def publisher(
        self, topic: str, endpoint: str | None = None, remote: Conversion | None = None
    ) -> Publisher:
        """Return a publisher that the loop closes on exit; arguments as of `Publisher`."""
        publisher = Publisher(
            topic,
            source=f"{self.kind}-{self.name}",
            runtime=self._runtime,
            clock=self.clock,
            endpoint=endpoint or self.profile.endpoint_of(topic),
            insecure=self.profile.insecure,
            keys=self.profile.keys,
            remote=remote,
        )
        self._publishers.append(publisher)
        self._bound_ns = self.clock()
        return publisher

    def opened(self, open_device: "Callable[[], Device[ItemT]]") -> "Device[ItemT]":
        """Return the open device; while its driver blocks, publish `lost` with the reason once a second.

        Raises what `open_device` raises; SystemExit if the node is stopped before it returns.
        """
        opening: Future[Device[ItemT]] = Future()
        threading.Thread(target=_open, args=(open_device, opening), name="open", daemon=True).start()
        began_ns = self.clock()
        while not self._stopped.is_set():
            try:
                return opening.result(_HEALTH_NS / SECOND_NS)
            except TimeoutError:
                if opening.done():
                    raise  # of the device
                taken_s = (self.clock() - began_ns) / SECOND_NS
                self._send_health("lost", f"the device has not opened for {taken_s:.0f} s")
        raise SystemExit(0)

    def run(
        self, device: "Device[ItemT]", publish: Callable[[ItemT], None], judge: Judge[ItemT] | None = None
    ) -> None:
        """Publish what the device delivers until it ends or the node is stopped.

        Args:
            device: the source, opened.
            publish: sends one item; on MalformedMessageError the item is refused and counted.
            judge: for a device that always delivers: judges each item before it is published.
        """
        self._stopped.wait(max(0, self._bound_ns + _SETTLE_NS - self.clock()) / 1e9)
        received_ns = counted_ns = reported_ns = 0  # report at once: the device is open
        ended = ""
        while not (ended or self._stopped.is_set()):
            try:
                item = device.read(_READ_S)
            except EOFError as end:
                item, ended = None, str(end) or "ended"
            now_ns = self.clock()
            if item is not None:
                received_ns = now_ns
                self._publish(item, publish, judge)
            elif judge is not None:
                report = device.report()
                if received_ns != counted_ns:
                    counted_ns, self._damaged = received_ns, _damaged(report)
                judge.idle(now_ns, report.reason if report.status == "lost" else "")
            changed = judge is not None and judge.gone != (self._status == "lost")
            if now_ns - reported_ns >= (_CHANGE_NS if changed else _HEALTH_NS) or ended:
                reported_ns = now_ns
                self._report(device.report(), judge, ended)
        if ended:
            _LOG.info("%s-%s: %s", self.kind, self.name, ended)
        else:
            self._report(device.report(), judge, "stopped")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for publisher in self._publishers:
            publisher.close()

    def _publish(self, item: ItemT, publish: Callable[[ItemT], None], judge: Judge[ItemT] | None) -> None:
        try:
            if judge is not None:
                judge.update(item, self.clock())
            publish(item)
        except MalformedMessageError as error:
            if not self._counts["refused"]:
                _LOG.warning("%s-%s: refused: %s", self.kind, self.name, error)
            self._counts["refused"] += 1

    def _report(self, report: "DeviceReport", judge: Judge[ItemT] | None, ended: str) -> None:
        status, reason = report.status, report.reason
        if status == "ok" and judge is not None and judge.reason:
            status, reason = "lost" if judge.gone else "degraded", judge.reason
            if judge.gone and (damaged := _damaged(report) - self._damaged):
                reason = f"the device delivers damaged data: {damaged} items in a row were refused"
        facts = report.facts | (judge.facts if judge else {})
        condition = judge.condition if judge else ""
        self._send_health(status, reason, ended, counts=report.counts, facts=facts, condition=condition)

    def _send_health(
        self,
        status: Literal["ok", "degraded", "lost"],
        reason: str,
        ended: str = "",
        *,
        counts: Mapping[str, int] = {},
        facts: Mapping[str, str | float] = {},
        condition: str = "",
    ) -> None:
        if status != self._status:
            _LOG.warning("%s-%s: %s", self.kind, self.name, f"{status}: {reason}" if reason else status)
            self._status = status
        health = Health(
            stamp_ns=self.clock(),
            node=f"{self.kind}-{self.name}",
            status=status,
            reason=without_credentials(reason or ended),
            outputs={output.topic: output.published for output in self._publishers[1:]},
            counts={**counts, **self._counts},
            device={PROCESS: os.getpid()} | cleaned(dict(facts)),
            condition=condition,
        )
        self._health_output.send(health)


def _open(open_device: "Callable[[], Device[ItemT]]", opening: "Future[Device[ItemT]]") -> None:
    """Thread body: open a device and pass on what comes of it."""
    try:
        opening.set_result(open_device())
    except BaseException as error:
        opening.set_exception(error)


def _damaged(report: "DeviceReport") -> int:
    return sum(report.counts.get(reason, 0) for reason in _DAMAGED)
