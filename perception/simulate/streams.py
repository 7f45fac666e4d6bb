"""Scripted streams: what their nodes publish under faults, and when it arrives. Pure.

A stream is an iterator of deliveries in order of arrival. Payloads are small and shared: the simulator is
about time, order and loss.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from random import Random
from typing import Final

import numpy as np
from msgspec import structs

from perception.messages import AudioBlock, CameraFrame, Header, Message, TextCommand
from perception.simulate.faults import Active
from perception.simulate.hosts import HostClock
from perception.simulate.scenario import START_NS, Scenario, Stream
from perception.units import SECOND_NS

Delivery = tuple[int, Message[Header], int, bool]
"""Time of arrival; message; how many copies reach the fusion; whether it reaches the recorder."""
Sent = Iterator[tuple[int, Message[Header]]]
WIDTH, HEIGHT = 16, 12
VARIANTS: Final = 16
"""Different payloads of a stream, used in turn."""
_SILENT: Final = frozenset({"death", "restart", "suspend"})
_COMMANDS: Final = ("come here", "stop", "come here now", "look at me")


def deliveries(scenario: Scenario, stream: Stream) -> Iterator[Delivery]:
    """Yield what a stream delivers, without end."""
    publish: dict[str, Callable[[Stream, Active, Random], Sent]] = {
        "camera": _frames,
        "microphone": _blocks,
        "text": _commands,
    }
    faults = scenario.faults_of(stream)
    random = Random(f"{scenario.seed} {stream.topic}")
    sent = publish[stream.kind](stream, Active(faults), random)
    if scenario.estimated and stream.remote:
        sent = _on_remote_clock(sent, HostClock(scenario))
    return _linked(stream, sent, Active(faults), random)


class _Publisher:
    """Numbers messages; a restart gives it another id."""

    def __init__(self, topic: str) -> None:
        self._name = topic.replace("/", "-")
        self._incarnation = 0
        self._down = False
        self.start()

    def start(self) -> None:
        self.source = f"{self._name}#{self._incarnation:08x}"
        self._incarnation += 1
        self.seq = 0

    def ended(self, down: bool) -> bool:
        """Record whether the process is down; return whether it has just been started again."""
        again = self._down and not down
        self._down = down
        if again:
            self.start()
        return again

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq - 1


def _frames(stream: Stream, active: Active, random: Random) -> Sent:
    publisher, payloads = _Publisher(stream.topic), _pictures()
    for number in count():
        elapsed_ns = number * stream.period_ns
        faults = active.at(elapsed_ns)
        condition = "ok"
        at_ns = stamp_ns = START_NS + elapsed_ns
        if faults:
            publisher.ended("restart" in faults)
            if not _SILENT.isdisjoint(faults) or "gap" in faults:
                continue
            stamp_ns += _offset_ns(active, elapsed_ns)
            condition = faults["lie"].condition if "lie" in faults else "ok"
        else:
            publisher.ended(False)
        yield (
            at_ns,
            Message(
                stream.topic,
                CameraFrame(
                    seq=publisher.next_seq(),
                    stamp_ns=stamp_ns,
                    sent_ns=at_ns,
                    source=publisher.source,
                    width=WIDTH,
                    height=HEIGHT,
                    encoding="mono8",
                    condition=condition,
                ),
                payloads[number % VARIANTS],
            ),
        )


def _blocks(stream: Stream, active: Active, random: Random) -> Sent:
    publisher = _Publisher(stream.topic)
    rate_hz, index, lost = stream.rate_hz, 0, 0
    period_ns = stream.period_ns / (1 + stream.ppm * 1e-6)
    for number in count():
        elapsed_ns = round(number * period_ns)
        at_ns = START_NS + round((number + 1) * period_ns)
        stamp_ns, condition = START_NS + elapsed_ns, "ok"
        faults = active.at(elapsed_ns)
        if publisher.ended("restart" in faults):
            index = lost = 0
        if rate_hz != (opened_hz := stream.rate_hz * (2 if "rate" in faults else 1)):
            rate_hz, index, lost = opened_hz, 0, 0
        samples = stream.period_ns * rate_hz // SECOND_NS
        index += samples
        if faults:
            if not _SILENT.isdisjoint(faults) or "gap" in faults:
                lost += samples
                continue
            stamp_ns += _offset_ns(active, elapsed_ns)
            condition = faults["lie"].condition if "lie" in faults else "ok"
        form = "f32" if "malformed" in faults else "s16"
        yield (
            at_ns,
            Message(
                stream.topic,
                AudioBlock(
                    seq=publisher.next_seq(),
                    stamp_ns=stamp_ns,
                    sent_ns=at_ns,
                    source=publisher.source,
                    sample_index=index - samples,
                    samples=samples,
                    rate_hz=rate_hz,
                    format=form,  # type: ignore[arg-type]
                    gap=lost,
                    condition=condition,
                ),
                _nan(samples) if form == "f32" else _sounds(samples)[number % VARIANTS],
            ),
        )
        lost = 0


def _commands(stream: Stream, active: Active, random: Random) -> Sent:
    """Yield commands at random times; in a flood also those of a stranger, each on a topic of its own."""
    publisher, stranger = _Publisher(stream.topic), _Publisher("stranger")
    elapsed_ns = 0
    while True:
        flood = active.at(elapsed_ns).get("flood")
        gap_ns = SECOND_NS / flood.amount if flood else random.expovariate(1 / stream.period_ns)
        elapsed_ns += max(1, min(round(gap_ns), SECOND_NS))
        if not flood and gap_ns > SECOND_NS and random.random() > SECOND_NS / gap_ns:
            continue
        faults = active.at(elapsed_ns)
        publisher.ended("restart" in faults)
        if not _SILENT.isdisjoint(faults):
            continue
        by = stranger if flood else publisher
        at_ns, seq = START_NS + elapsed_ns, by.next_seq()
        topic = f"text/flood{seq}" if flood else stream.topic
        header = TextCommand(
            seq=0 if flood else seq,
            stamp_ns=at_ns + _offset_ns(active, elapsed_ns),
            sent_ns=at_ns,
            source=by.source,
            text=_COMMANDS[seq % len(_COMMANDS)],
            language="en",
        )
        yield at_ns, Message(topic, header)


def _on_remote_clock(sent: Sent, clock: HostClock) -> Sent:
    """Stamp messages by the clock of the remote host."""
    for at_ns, message in sent:
        header, ahead_ns = message.header, clock.ahead_ns(at_ns - START_NS)
        times = {"stamp_ns": header.stamp_ns + ahead_ns, "sent_ns": at_ns + ahead_ns}
        yield at_ns, structs.replace(message, header=structs.replace(header, **times))


def _offset_ns(active: Active, elapsed_ns: int) -> int:
    """Return how far the clock of a stream is ahead of its host's."""
    faults, offset_ns = active.at(elapsed_ns), 0.0
    for kind, sign in (("leap", SECOND_NS), ("ahead", SECOND_NS), ("behind", -SECOND_NS)):
        if kind in faults:
            offset_ns += sign * faults[kind].amount
    if "drift" in faults:
        offset_ns += (elapsed_ns - faults["drift"].start_ns) * faults["drift"].amount * 1e-6
    return round(offset_ns)


def _linked(stream: Stream, sent: Sent, active: Active, random: Random) -> Iterator[Delivery]:
    """Deliver what was sent, in order unless it is reordered, with latency and the faults of the network."""
    arrived_ns, kept = 0, None
    latency_ns, jitter_ns, draw = stream.latency_ns, stream.jitter_ns, random.random
    for at_ns, message in sent:
        arrives_ns, copies = at_ns + latency_ns + round(jitter_ns * draw()), 1
        if faults := active.at(at_ns - START_NS):
            if "late" in faults:
                arrives_ns += round(faults["late"].amount * SECOND_NS)
            if "cut" in faults:
                arrives_ns = START_NS + faults["cut"].stop_ns + latency_ns
            if "duplicate" in faults and draw() < faults["duplicate"].amount:
                copies = 2
            if "outage" in faults or ("loss" in faults and draw() < faults["loss"].amount):
                copies = 0
        arrived_ns = max(arrived_ns, arrives_ns)
        if kept is None and "reorder" in faults and draw() < faults["reorder"].amount:
            kept = message, copies
            yield arrived_ns, message, 0, True
            continue
        yield arrived_ns, message, copies, True
        if kept is not None:
            yield arrived_ns, *kept, False
            kept = None


@cache
def _pictures() -> tuple[bytes, ...]:
    random = np.random.default_rng(1)
    return tuple(random.integers(0, 256, WIDTH * HEIGHT, np.uint8).tobytes() for _ in range(VARIANTS))


@cache
def _sounds(samples: int) -> tuple[bytes, ...]:
    random = np.random.default_rng(samples)
    return tuple(random.integers(-3000, 3000, samples, np.int16).tobytes() for _ in range(VARIANTS))


@cache
def _nan(samples: int) -> bytes:
    return np.full(samples, np.nan, np.float32).tobytes()
