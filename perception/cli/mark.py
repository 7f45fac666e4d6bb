"""Publish labels of what happens now, by keys in a terminal; a recorder stores them."""

import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from perception.bus.api import clock_now_ns, publish
from perception.errors import PerceptionError
from perception.session.labels import Span
from perception.units import SECOND_NS

TOPIC: Final = "label/mark"
QUIT: Final = frozenset("q\x03\x04")
_KEYS: Final = "123456789"


class Marker:
    """The class that keys have chosen last. Pure."""

    def __init__(self, classes: Sequence[str], track: str) -> None:
        """Assign the keys 1 to 9 to the classes in their order; PerceptionError if there are more."""
        if len(classes) > len(_KEYS):
            raise PerceptionError(f"{len(classes)} classes, but there are only {len(_KEYS)} keys for them")
        self.keys = dict(zip(_KEYS, classes, strict=False))
        self._track = track
        self._since: tuple[int, str] | None = None

    def press(self, key: str, now_ns: int) -> Span | None:
        """Process a key; return the span that it ends. Other keys change nothing."""
        if key not in self.keys and key not in QUIT and key != " ":
            return None
        ended = None
        if self._since is not None and now_ns > self._since[0]:
            ended = Span(self._since[0], now_ns, self._since[1], self._track)
        self._since = (now_ns, self.keys[key]) if key in self.keys else None
        return ended

    @property
    def current(self) -> str:
        """The class that is being marked, empty if none."""
        return "" if self._since is None else self._since[1]


def send(span: Span, domain: str | None) -> None:
    """Publish a span on label/mark; PerceptionError if the topic has no subscriber."""
    sent = publish(TOPIC, domain=domain, stamp_ns=span.start_ns, **asdict(span))
    if not sent:
        raise PerceptionError(f"no subscriber to {TOPIC}; start a recorder, or choose --domain")


def mark_for(name: str, seconds: float, *, track: str, domain: str | None) -> None:
    """Mark one class from now for `seconds`; publish the label at its end."""
    start_ns = clock_now_ns()
    time.sleep(seconds)
    send(Span(start_ns, start_ns + round(seconds * SECOND_NS), name, track), domain)


def mark_by_keys(
    classes: Sequence[str], *, track: str, domain: str | None, show: Callable[[str], Any]
) -> None:
    """Mark by keys until `q`; publish each label at its end."""
    marker = Marker(classes, track)
    show("  ".join(f"{key} {name}" for key, name in marker.keys.items()) + "  space none  q quit")
    for key in _typed():
        ended = marker.press(key, clock_now_ns())
        if ended is not None:
            send(ended, domain)
            show(f"{ended.name}: {(ended.end_ns - ended.start_ns) / SECOND_NS:.2f} s")
        if key in QUIT:
            return


def _typed() -> Iterator[str]:
    """Yield keys as they are pressed; from a pipe, its characters. The end of the input is `q`."""
    if not sys.stdin.isatty():
        while key := sys.stdin.read(1):  # one by one: reading to the end would give all the same time
            yield key
        yield "q"
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        while True:
            yield sys.stdin.read(1) or "q"
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
