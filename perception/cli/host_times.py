"""The clocks of other hosts in words. Pure."""

from typing import Final

from perception.messages import HostTime

UNKNOWN: Final = "not known: its time service does not answer"
_OLD_MS: Final = 10_000.0


def words(known: HostTime) -> str:
    """Return offset, error bound, drift and round trip of a clock; since when, if it no longer answers."""
    if known.offset_ms is None:
        return UNKNOWN
    silent = f", no answer for {known.age_ms / 1e3:.0f} s" if known.age_ms > _OLD_MS else ""
    steps = f", set {known.steps} times" if known.steps else ""
    return (
        f"{known.offset_ms:+.2f} ms ±{known.bound_ms:.2f}, {known.drift_ppm:+.1f} ppm, "
        f"round trip {known.round_trip_ms:.2f} ms{steps}{silent}"
    )
