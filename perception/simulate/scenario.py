"""A scenario: streams, fusion and faults, all of which follow from one seed. Pure."""

from collections.abc import Iterable
from random import Random
from typing import Final, Literal, Self

import msgspec
from msgspec import structs

from perception.profile import EncoderConfig, FusionConfig, HeadConfig, InputConfig
from perception.simulate.faults import Fault, draw
from perception.topics import kind_of, name_of
from perception.units import MILLISECOND_NS

START_NS: Final = 1_700_000_000_000_000_000
"""Host time at which every scenario begins."""
Mode = Literal["light", "file", "engine"]
"""light: a stand-in engine and a recording in memory; file: a session file; engine: also the real engine."""
SECONDS: Final[dict[Mode, float]] = {"light": 600.0, "file": 60.0, "engine": 40.0}
MESSAGES_HZ: Final = 25.0
"""Scenarios with more messages and windows per second are shorter, so that all take about as long."""
_MODES: Final = 24
_MODE_OF: Final[dict[int, Mode]] = {2: "file", 5: "engine", 14: "file"}
"""By seed modulo _MODES: the others are light."""
_ENCODER_OF: Final = {"camera": "motion", "microphone": "level", "text": "tfidf"}
_OPTIONS: Final = {"text": {"intents": {"come": ["come here"], "stop": ["stop now"]}}}


class Stream(msgspec.Struct, frozen=True):
    """One scripted stream."""

    topic: str
    period_ns: int
    """Between frames; the duration of a block; the mean time between commands."""
    latency_ns: int
    jitter_ns: int
    remote: bool
    """Whether it comes from another host."""
    rate_hz: int = 0
    """Of a microphone."""
    ppm: float = 0.0
    """Of a microphone's crystal."""

    @property
    def kind(self) -> str:
        """camera, microphone or text."""
        return kind_of(self.topic)


class Scenario(msgspec.Struct, frozen=True):
    """One simulated graph and what happens to it."""

    seed: int
    mode: Mode
    seconds: float
    streams: tuple[Stream, ...]
    fusion: FusionConfig
    inference: float
    """Duration of an inference in hops while nothing overloads it."""
    faults: tuple[Fault, ...]
    host_offset_ns: int = 0
    """Clock of the remote host minus that of this one, at the start."""
    host_ppm: float = 0.0
    """Rate of the remote host's clock."""
    estimated: bool = False
    """Whether the remote host's clock is estimated and its stamps are corrected; else it is exact."""

    @classmethod
    def of(cls, seed: int, seconds: float | None = None, mode: Mode | None = None) -> Self:
        """Return the scenario of a seed; faults begin after three seconds."""
        random = Random(seed)
        mode = mode or _MODE_OF.get(seed % _MODES, "light")
        streams = tuple(_streams(random, mode))
        fusion = _fusion(random, streams, mode)
        if seconds is None:
            seconds = SECONDS[mode] * _share(streams, fusion)
        inference = random.uniform(0.05, 0.6)
        faults = draw(random, (stream.topic for stream in streams), seconds)
        offset_ns, ppm = round(random.uniform(-30, 30) * 1e9), random.uniform(-100, 100)
        estimated = random.random() < 0.5 and any(stream.remote for stream in streams)
        if not estimated:
            faults = tuple(fault for fault in faults if fault.kind != "host clock")
            offset_ns, ppm = 0, 0.0
        return cls(
            seed, mode, seconds, streams, fusion, inference, faults, offset_ns, ppm, estimated=estimated
        )

    def only(self, numbers: Iterable[int]) -> Self:
        """Return the scenario with some of its faults, by their position."""
        return structs.replace(self, faults=tuple(self.faults[number] for number in sorted(numbers)))

    def faults_of(self, stream: Stream) -> tuple[Fault, ...]:
        """Return the faults that concern a stream."""
        return tuple(
            fault
            for fault in self.faults
            if fault.target == stream.topic
            or (fault.target == "host" and stream.remote)
            or fault.kind == "suspend"
        )

    def faults_at(self, target: str) -> tuple[Fault, ...]:
        """Return the faults of the fusion or of the recorder."""
        return tuple(fault for fault in self.faults if fault.target == target)


def _share(streams: Iterable[Stream], fusion: FusionConfig) -> float:
    """Return which share of the usual time a scenario lasts; a window costs as much as two messages."""
    messages_hz = sum(1e9 / stream.period_ns for stream in streams) + 2000 / fusion.hop_ms
    return min(1.5, MESSAGES_HZ / messages_hz)


def _streams(random: Random, mode: Mode) -> Iterable[Stream]:
    """Most rates are low, since a message costs the same at any rate."""
    for name in ("front", "rear", "wrist")[: random.choice((*[1] * 8, 2, 3))]:
        rate_hz = random.choice((*[10] * 8, 12, 12, 15, 15, 20, 25, 30, 60))
        yield _stream(random, f"camera/{name}", 1e9 / rate_hz)
    for name in ("main", "arm")[: random.choice((1, 1, 1, 1, 1, 1, 1, 2))]:
        block_ms = random.choice((10, 20, 50, 64, *[100] * 4, *[200] * 10))
        rate_hz = 1000 if mode == "light" else random.choice((8000, 16_000, 44_100, 48_000))
        ppm = random.uniform(-300, 300)
        yield _stream(random, f"microphone/{name}", block_ms * MILLISECOND_NS, rate_hz=rate_hz, ppm=ppm)
    yield _stream(random, "text/terminal", random.uniform(2, 20) * 1e9)


def _stream(random: Random, topic: str, period_ns: float, *, rate_hz: int = 0, ppm: float = 0.0) -> Stream:
    return Stream(
        topic,
        round(period_ns),
        latency_ns=round(random.uniform(0.5, 20) * MILLISECOND_NS),
        jitter_ns=round(random.uniform(0.1, 10) * MILLISECOND_NS),
        remote=random.random() < 0.4,
        rate_hz=rate_hz,
        ppm=ppm,
    )


def _fusion(random: Random, streams: Iterable[Stream], mode: Mode) -> FusionConfig:
    """Return a fusion of these streams that waits long enough for each of them."""
    streams = list(streams)
    delays = [s.latency_ns + s.jitter_ns + (s.kind == "microphone") * s.period_ns for s in streams]
    inputs = {
        s.topic.replace("/", "_"): InputConfig(topic="text/*" if s.kind == "text" else s.topic)
        for s in streams
    }
    encoders = {
        name_of(s.topic): EncoderConfig(
            input=s.topic.replace("/", "_"), kind=_ENCODER_OF[s.kind], options=_OPTIONS.get(s.kind, {})
        )
        for s in streams
        if mode == "engine" or s.kind == "microphone"  # the others are not run: no time to import them
    }
    return FusionConfig(
        hop_ms=random.choice((50, 100, 100, *[200] * 3, *[250] * 4, *[500] * 6)),
        lateness_ms=round(max(delays) / MILLISECOND_NS * random.uniform(1.1, 2) + 20),
        alignment=random.choice(("low-latency", "low-latency", "reproducible")),
        threads=1,
        inputs=inputs,
        encoders=encoders,
        head=HeadConfig(classes=("a", "b", "c")),
    )
