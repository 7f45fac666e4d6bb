"""The clock of another host: offset and drift from bursts of time requests, and the times it maps to.

Pure: all times are arguments, in ns. `local` is the host clock here, `remote` the one there; the offset is
remote minus local.

An answer to a request carries four stamps (RFC 5905): sent here, received there, answered there, received
here. A queue on one way shifts the offset by half of its delay, and only the round trip shows it. So of each
burst only the fastest answer is used, of all bursts of the last minute the faster half, and a line through
those, weighted by how little they waited, gives offset and drift. The true offset is never farther from a
measured one than half of that round trip: two bursts that the line contradicts beyond that prove a step.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

SPAN_NS: Final = 60_000_000_000
"""Bursts older than this are dropped: a crystal keeps its rate within 0.1 ppm for a minute."""
_MAX_BURSTS: Final = 256
_NOISE_NS: Final = 10_000.0
"""Error of the offset where nothing waited: two threads must wake on each side."""
_DRIFT_PPM: Final = 100.0
"""Error of a poor crystal; it holds the line of the first seconds."""
_KNOWN_DRIFT_PPM: Final = 2.0
"""Error of the drift from before a step: the step of a clock does not change its crystal."""
_KNOWN_AFTER_NS: Final = 20_000_000_000
"""Bursts over this time measure the drift to better than `_KNOWN_DRIFT_PPM`."""
_WANDER_PPM: Final = 0.5
"""By how much the rate of a crystal that warms up may change within a minute."""
_STEP_MARGIN_NS: Final = 100_000.0
_STEP_BURSTS: Final = 2
"""Bursts in a row that must contradict the line. One may be of a host that was suspended within it."""
_SLEW: Final = 0.01
_SLEW_TIME_NS: Final = 1_000_000_000.0
_MAX_PIECES: Final = 8


class Probe(NamedTuple):
    """One answered time request."""

    sent_ns: int
    """When the request was sent; local."""
    received_ns: int
    """When the request arrived; remote."""
    answered_ns: int
    """When the answer was sent; remote."""
    returned_ns: int
    """When the answer arrived; local."""

    @property
    def at_ns(self) -> int:
        """Local time in the middle."""
        return (self.sent_ns + self.returned_ns) // 2

    @property
    def offset_ns(self) -> int:
        """Remote minus local, if both ways took the same time."""
        return (self.received_ns - self.sent_ns + self.answered_ns - self.returned_ns) // 2

    @property
    def round_trip_ns(self) -> int:
        """Time on both ways, without the time in the other host."""
        return self.returned_ns - self.sent_ns - (self.answered_ns - self.received_ns)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The clock of another host, as known at one time."""

    at_ns: int
    """Local time of the newest burst."""
    offset_ns: int
    """Remote minus local at that time."""
    drift: float
    """Rate there / rate here - 1: positive if the other clock runs fast."""
    round_trip_ns: int
    """Of the fastest burst in use."""
    residual_ns: float
    """Weighted root mean square of the measured offsets about the line."""
    bound_ns: int
    """The true offset was no farther from the estimate than this, however long each way took."""
    drift_error: float
    """Three standard errors of the drift, and what a crystal may wander."""
    bursts: int
    """Number in use."""
    steps: int
    """How often the other clock stepped, or this one."""

    @property
    def drift_ppm(self) -> float:
        """Drift in parts per million."""
        return self.drift * 1e6

    def offset_at(self, local_ns: int) -> int:
        """Return remote minus local at a local time."""
        return self.offset_ns + round((local_ns - self.at_ns) * self.drift)

    def bound_at(self, local_ns: int) -> int:
        """Return the bound of the offset at a local time: it grows while no request is answered."""
        return self.bound_ns + round(abs(local_ns - self.at_ns) * self.drift_error)

    def to_remote_ns(self, local_ns: int) -> int:
        """Return the remote time at a local time."""
        return local_ns + self.offset_at(local_ns)

    def to_local_ns(self, remote_ns: int) -> int:
        """Return the local time at a remote time."""
        return self.at_ns + round((remote_ns - self.at_ns - self.offset_ns) / (1 + self.drift))


class RemoteClock:
    """Estimates offset and drift of one other host. Not thread-safe; `estimate` is an immutable snapshot."""

    def __init__(self) -> None:
        self.estimate: Estimate | None = None
        """None before the first burst."""
        self._bursts: deque[Probe] = deque(maxlen=_MAX_BURSTS)
        self._against: list[Probe] = []
        """Newest bursts, in a row, that contradict the line."""
        self._steps = 0
        self._prior = (0.0, _DRIFT_PPM * 1e-6)
        """Drift and its standard error without the bursts."""

    @property
    def suspect(self) -> bool:
        """Whether the newest burst contradicts the line: send the next one at once."""
        return bool(self._against)

    def add(self, burst: Sequence[Probe]) -> None:
        """Add the answers of one burst of requests; an empty one changes nothing."""
        probes = [probe for probe in burst if probe.round_trip_ns >= 0]
        if not probes:
            return
        best = min(probes, key=lambda probe: probe.round_trip_ns)
        if self._bursts and best.at_ns <= self._bursts[-1].at_ns:
            return
        if self._contradicts(best):
            self._against.append(best)
            if len(self._against) < _STEP_BURSTS:
                return
            self._restart()
        else:
            self._against.clear()
            self._bursts.append(best)
        while self._bursts[0].at_ns < best.at_ns - SPAN_NS:
            self._bursts.popleft()
        self._fit()

    def _contradicts(self, probe: Probe) -> bool:
        """Return whether no asymmetry of the two ways explains the distance from the line."""
        known = self.estimate
        if known is None:
            return False
        limit_ns = probe.round_trip_ns / 2 + known.bound_at(probe.at_ns) + _STEP_MARGIN_NS
        return abs(probe.offset_ns - known.offset_at(probe.at_ns)) > limit_ns

    @property
    def _bursts_ns(self) -> int:
        return self._bursts[-1].at_ns - self._bursts[0].at_ns

    def _restart(self) -> None:
        if self.estimate is not None and self._bursts_ns >= _KNOWN_AFTER_NS:
            self._prior = (self.estimate.drift, _KNOWN_DRIFT_PPM * 1e-6)
        self._steps += 1
        self._bursts.clear()
        self._bursts.extend(self._against)
        self._against.clear()

    def _fit(self) -> None:
        """Fit the line: weighted least squares with the prior drift as one more measurement."""
        newest = self._bursts[-1]
        trips = sorted(probe.round_trip_ns for probe in self._bursts)
        fastest_ns, median_ns = trips[0], trips[len(trips) // 2]
        used = [probe for probe in self._bursts if probe.round_trip_ns <= median_ns]
        rows = [
            (
                (probe.at_ns - newest.at_ns) / 1e9,
                probe.offset_ns - newest.offset_ns,
                _weight(probe, fastest_ns),
            )
            for probe in used
        ]
        total = sum(weight for *_, weight in rows)
        mean_s = sum(weight * seconds for seconds, _, weight in rows) / total
        mean_ns = sum(weight * offset for _, offset, weight in rows) / total
        drift, error = self._prior
        precision = 1 / (error * 1e9) ** 2  # of the slope, in ns per second
        square = sum(weight * (seconds - mean_s) ** 2 for seconds, _, weight in rows)
        product = sum(weight * (seconds - mean_s) * (offset - mean_ns) for seconds, offset, weight in rows)
        slope = (product + precision * drift * 1e9) / (square + precision)
        offset_ns = mean_ns - slope * mean_s
        squares = sum(
            weight * (offset - offset_ns - slope * seconds) ** 2 for seconds, offset, weight in rows
        )
        best = min(used, key=lambda probe: probe.round_trip_ns)
        best_s = (best.at_ns - newest.at_ns) / 1e9
        miss_ns = abs(best.offset_ns - newest.offset_ns - offset_ns - slope * best_s)
        slope_error = 3 * (square + precision) ** -0.5 + _WANDER_PPM * 1e3
        self.estimate = Estimate(
            at_ns=newest.at_ns,
            offset_ns=newest.offset_ns + round(offset_ns),
            drift=slope / 1e9,
            round_trip_ns=fastest_ns,
            residual_ns=(squares / total) ** 0.5,
            bound_ns=round(fastest_ns / 2 + miss_ns + slope_error * abs(best_s)),
            drift_error=slope_error / 1e9,
            bursts=len(used),
            steps=self._steps,
        )


def _weight(probe: Probe, fastest_ns: int) -> float:
    """Return 1 / variance: half of the time that an answer waited is the size of its error."""
    return 1 / (_NOISE_NS + (probe.round_trip_ns - fastest_ns) / 2) ** 2


class _Piece(NamedTuple):
    """From a remote time on: the estimate, and what is left of the difference to the piece before."""

    from_ns: int
    estimate: Estimate
    rest_ns: float
    slew_ns: float

    def to_local_ns(self, remote_ns: int) -> int:
        left = 1.0 - min(max((remote_ns - self.from_ns) / self.slew_ns, 0.0), 1.0)
        return self.estimate.to_local_ns(remote_ns) + round(self.rest_ns * left)


class Correction:
    """Maps stamps of another host to this host's clock, so that their order stays.

    A new estimate takes effect from the remote time of its burst on, by slewing at most 1 %: a later stamp
    never becomes earlier than an earlier one, and stamps that arrive late are mapped as those before them.
    After a step the new estimate takes effect at once.
    """

    def __init__(self) -> None:
        self._pieces: tuple[_Piece, ...] = ()
        """Newest last. Replaced as a whole: another thread may read it."""

    def update(self, estimate: Estimate) -> None:
        """Use an estimate for stamps later than its newest burst."""
        from_ns, rest_ns = estimate.to_remote_ns(estimate.at_ns), 0.0
        before = self._pieces[1 - _MAX_PIECES :]
        if before and before[-1].estimate.steps == estimate.steps:
            from_ns = max(from_ns, before[-1].from_ns)
            rest_ns = float(before[-1].to_local_ns(from_ns) - estimate.to_local_ns(from_ns))
        else:
            before = ()
        piece = _Piece(from_ns, estimate, rest_ns, max(_SLEW_TIME_NS, abs(rest_ns) / _SLEW))
        self._pieces = (*before, piece)

    def to_local_ns(self, remote_ns: int) -> int | None:
        """Return the local time of a remote stamp; None before the first estimate."""
        pieces = self._pieces
        if not pieces:
            return None
        later = (piece for piece in reversed(pieces) if piece.from_ns <= remote_ns)
        return next(later, pieces[0]).to_local_ns(remote_ns)
