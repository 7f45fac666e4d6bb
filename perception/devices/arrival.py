"""Estimates when a packet of a network stream was sent, from its timestamp and the host clock. Pure."""

from typing import Final

_MEASURE_NS: Final = 4_000_000_000
_SLACK: Final = 0.02
"""Timestamps that drift more than this from the host clock come from a nominal rate, not from a clock.

A lasting delay is absorbed at the same rate: it cannot be distinguished from drift.
"""
_LEAP_NS: Final = 10_000_000_000
"""A stream that is later than this was restarted."""


class StreamClock:
    """Computes stamps of packets from the timestamps of their stream.

    The packet with the smallest delay so far is taken as delay 0; the delay of every other follows from its
    timestamp. So delays by the network, a relay or a busy host are removed. A stream whose timestamps do not
    run like a clock is stamped by arrival.
    """

    def __init__(self) -> None:
        self._began: tuple[int, int] | None = None
        self._last_ns = 0
        self._offset_ns: float = 0.0
        """Host time minus stream time of the packets with the smallest delay."""
        self._updated_ns = 0
        self.trusted = False

    def stamp_ns(self, time_ns: int | None, arrival_ns: int) -> int:
        """Return the host time in ns at which a packet was sent.

        Args:
            time_ns: its timestamp in the stream in ns, None if it has none.
            arrival_ns: host time at which it was received.
        """
        if time_ns is None:
            return arrival_ns
        delay_ns = self._delay_ns(time_ns, arrival_ns)
        if self._began is None or time_ns < self._last_ns or not 0 <= delay_ns <= _LEAP_NS:
            self._begin(time_ns, arrival_ns)
            delay_ns = 0.0
        self._last_ns = time_ns
        if not self.trusted:
            self._measure(time_ns, arrival_ns)
            return arrival_ns
        return arrival_ns - round(delay_ns)

    def _begin(self, time_ns: int, arrival_ns: int) -> None:
        self._began, self.trusted = (time_ns, arrival_ns), False
        self._offset_ns, self._updated_ns = arrival_ns - time_ns, arrival_ns

    def _delay_ns(self, time_ns: int, arrival_ns: int) -> float:
        """Return the delay relative to the packets with the smallest delay, with drift allowed."""
        allowed_ns = self._offset_ns + _SLACK * (arrival_ns - self._updated_ns)
        self._offset_ns = min(allowed_ns, arrival_ns - time_ns)
        self._updated_ns = arrival_ns
        return arrival_ns - time_ns - self._offset_ns

    def _measure(self, time_ns: int, arrival_ns: int) -> None:
        assert self._began is not None
        streamed_ns, passed_ns = time_ns - self._began[0], arrival_ns - self._began[1]
        if passed_ns < _MEASURE_NS:
            return
        self.trusted = abs(streamed_ns - passed_ns) <= _SLACK * passed_ns
        if not self.trusted:
            self._begin(time_ns, arrival_ns)
