"""The clock of another host: what it reads by its script, and the real estimate of it. Pure.

Bursts of requests go to that host as a reader sends them; the answers take random times on both ways. The
real `RemoteClock` and `Correction` map the stamps of its messages to this host's clock.
"""

from collections.abc import Sequence
from random import Random
from typing import Final

from msgspec import structs

from perception.clock.remote import Correction, Probe, RemoteClock
from perception.messages import Header, Message, corrected
from perception.simulate.faults import Active, Fault
from perception.simulate.scenario import START_NS, Scenario
from perception.units import MILLISECOND_NS, SECOND_NS

BURST: Final = 8
_SPACING_NS: Final = 10 * MILLISECOND_NS
_PAUSE_NS: Final = SECOND_NS
_HURRY_NS: Final = 150 * MILLISECOND_NS
"""Between bursts at the start, and after one that contradicts the line."""
_FIRST_BURSTS: Final = 5
_ANSWER_NS: Final = 50_000
_UNREACHABLE: Final = frozenset({"cut", "outage", "suspend"})


class HostClock:
    """The clock of the remote host of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._offset_ns = scenario.host_offset_ns
        self._drift = scenario.host_ppm * 1e-6
        self._steps = Active(fault for fault in scenario.faults if fault.kind == "host clock")

    def ahead_ns(self, elapsed_ns: int) -> int:
        """Return remote minus local time; times must not fall."""
        fault = self._steps.at(elapsed_ns).get("host clock")
        return self._offset_ns + round(elapsed_ns * self._drift) + (step_ns(fault) if fault else 0)


def step_ns(fault: Fault) -> int:
    """Return by how much a host's clock is set: forward or back, by the start of the fault."""
    return round(fault.amount * SECOND_NS) * (1 if fault.start_ns % 2 else -1)


class Estimated:
    """What a reader here knows of that clock; it corrects the messages that come from there.

    Args:
        scenario: with the remote host.
        remote: estimates its clock.
    """

    def __init__(self, scenario: Scenario, remote: RemoteClock) -> None:
        self._clock = HostClock(scenario)
        self._faults = Active(fault for fault in scenario.faults if fault.kind in _UNREACHABLE)
        self._random = Random(f"{scenario.seed} host")
        self._remote = remote
        self._correction = Correction()
        self._bursts = 0

    def ask(self, now_ns: int) -> int:
        """Send a burst; return the time of the next one."""
        before = self._remote.estimate
        if not self._faults.at(now_ns - START_NS):
            self._bursts += 1
            self._remote.add(self._answers(now_ns))
            if (estimate := self._remote.estimate) is not None and estimate is not before:
                self._correction.update(estimate)
        hurry = self._remote.suspect or self._bursts < _FIRST_BURSTS
        return now_ns + (_HURRY_NS if hurry else _PAUSE_NS)

    def correct(self, message: Message[Header]) -> Message[Header] | None:
        """Return a message with its times on this host's clock, None before the first answer."""
        stamp_ns = message.header.stamp_ns
        local_ns = self._correction.to_local_ns(stamp_ns)
        if local_ns is None:
            return None
        return structs.replace(message, header=corrected(message.header, local_ns - stamp_ns))

    def _answers(self, now_ns: int) -> Sequence[Probe]:
        """Return the answers to a burst that ends now: most wait on the way, in either direction."""
        probes = []
        for number in range(BURST):
            there_ns, back_ns = (
                round(self._random.expovariate(1 / MILLISECOND_NS) + MILLISECOND_NS / 5) for _ in range(2)
            )
            sent_ns = now_ns - (BURST - number) * _SPACING_NS
            arrived_ns = sent_ns + there_ns
            ahead_ns = self._clock.ahead_ns(arrived_ns - START_NS)
            received_ns = arrived_ns + ahead_ns
            answered_ns = received_ns + _ANSWER_NS
            returned_ns = arrived_ns + _ANSWER_NS + back_ns
            probes.append(Probe(sent_ns, received_ns, answered_ns, returned_ns))
        return probes
