"""Time of a tick by stage: everything around the models, compared with the models alone.

Scripted messages arrive at their own rate, as bytes from the wire. A fusion process works in two threads;
here one thread does all of it, so that each stage can be timed. Frames are decoded in a thread of their own,
as in a fusion process.
"""

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Final

import torch

from perception.bench.rounds import Values
from perception.bus import codec
from perception.devices.scripted import messages
from perception.features.image import decode_frame
from perception.fusion.build import build_engine, use_threads
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.fusion.presence import Presence
from perception.fusion.window import Window
from perception.messages import CameraFrame, Header, Message, Payload
from perception.models.encoder import ImageInput
from perception.profile import FusionConfig, Profile, load

PROFILES: Final = ("demo", "robot")
STAGES: Final = ("receive", "cut", "read", "encode", "head", "state", "publish")
SCRIPTED: Final = ("camera.front.source=scripted", "microphone.main.source=scripted")
RANDOM: Final = "fusion.weights=random"
_TOPICS: Final = ("camera/front", "microphone/main", "text/script")
_FILL_S: Final = 1.2
"""Ticks before the first full window of the microphone are not counted."""
_COMMAND_S: Final = 3.0
"""Time of the first command of the script, approximately."""
_SAMPLE: Final = 30
"""Ticks whose models are run alone, spread over all: the time of a face detector depends on the picture."""

Call = tuple[Any, tuple[Any, ...], int]
"""A model, its arguments, and its time in nanoseconds."""
Tick = dict[str, float]
"""Microseconds by stage; `models` is all encoders and the head, `decode` the decoding of frames in advance.

`cpu` is the CPU time of the computing thread, which other load on the machine does not increase.
"""


def anywhere(name: str) -> tuple[str, ...]:
    """Return overrides: a shipped profile runs without device and download, at the same model cost."""
    return SCRIPTED if name == "demo" else (*SCRIPTED, RANDOM)


def cases(
    *, seconds: float, hz: float = 10.0, profiles: Sequence[str] = PROFILES
) -> dict[str, Callable[[], Values]]:
    """Return the measurements by name: the ticks of each profile, and its models alone on some of them."""
    found: dict[str, Callable[[], Values]] = {}
    for name in profiles:
        options = (*anywhere(name), f"fusion.hop_ms={1e3 / hz}", "fusion.device=cpu")
        bench = TickBench(load(name, options), seconds)
        found[f"{name} limit: models alone"] = bench.models_alone
        found[name] = bench.ticks
    return found


def scripted(profile: Profile, seconds: float) -> Iterator[Message[Header]]:
    """Yield messages of camera, microphone and text, beginning before the first full window."""
    play = messages(
        profile.script,
        profile.camera["front"],
        profile.microphone["main"],
        _FILL_S + seconds,
        start_s=_COMMAND_S,
        topics=_TOPICS,
    )
    return (message for message in play if message.topic in _TOPICS)


class _Timed:
    """A model that records its calls and their times."""

    def __init__(self, inner: Any, calls: list[Call]) -> None:
        self._inner = inner
        self._calls = calls

    def __call__(self, *arguments: Any) -> Any:
        begun_ns = time.perf_counter_ns()
        result = self._inner(*arguments)
        self._calls.append((self._inner, arguments, time.perf_counter_ns() - begun_ns))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class TickBench:
    """The fusion process of one profile, and messages for it."""

    def __init__(self, profile: Profile, seconds: float) -> None:
        assert profile.fusion is not None
        self._config: FusionConfig = profile.fusion
        self._wires: list[tuple[int, list[Payload]]] = [
            (message.received_ns, list(codec.encode(message.topic, message.header, message.payload)))
            for message in scripted(profile, seconds)
        ]
        self._calls: list[Call] = []
        self._times_ns: list[int] = []
        self._alone: list[list[Call]] = []
        self._every = max(1, round(seconds * 1e3 / self._config.hop_ms / _SAMPLE))
        """One of so many ticks is run alone."""
        use_threads(self._config.threads)
        engine: Any = build_engine(self._config, clock=self._clock)
        engine.warm_up()
        engine.encoders = {name: _Timed(encoder, self._calls) for name, encoder in engine.encoders.items()}
        engine.head = _Timed(engine.head, self._calls)
        self._engine: Engine = engine
        self._presence = Presence()
        gc.freeze()  # as the node does

    def ticks(self) -> Values:
        """Return medians of each stage and of their sum, in microseconds."""
        ticks = list(self._run())
        overhead = [sum(tick[name] for name in STAGES) for tick in ticks]
        return {
            "overhead_p50_us": statistics.median(overhead),
            "overhead_p99_us": statistics.quantiles(overhead, n=100, method="inclusive")[98],
            "p50_us": statistics.median(sum(tick[name] for name in (*STAGES, "models")) for tick in ticks),
            **{f"{name}_us": statistics.median(tick[name] for tick in ticks) for name in ticks[0]},
        }

    def models_alone(self) -> Values:
        """Run encoders and head on their inputs of some ticks, with nothing in between; return medians."""
        spent_us, cpu_us = zip(*self.models(), strict=True)
        return {"p50_us": statistics.median(spent_us), "cpu_us": statistics.median(cpu_us)}

    @torch.inference_mode()
    def models(self, ticks: int | None = None, *, hop_s: float = 0.0) -> Iterator[tuple[float, float]]:
        """Yield wall time and CPU time of the models alone in sampled ticks, in microseconds.

        Args:
            ticks: how many to run, repeating the sampled ones; by default each sampled tick once.
            hop_s: time from one tick to the next; after a slower tick, the next one starts at once.
        """
        if not self._alone:
            list(self._run())
        for calls in map(unshared, islice(cycle(self._alone), len(self._alone) if ticks is None else ticks)):
            begun_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
            for model, arguments, _ in calls:
                model(*arguments)
            spent_ns = time.perf_counter_ns() - begun_ns
            yield spent_ns / 1e3, (time.thread_time_ns() - cpu_ns) / 1e3
            time.sleep(max(0.0, hop_s - spent_ns / 1e9))

    def _run(self) -> Iterator[Tick]:
        core, sample = FusionCore(self._config), not self._alone
        begun_ns, first_ns = time.perf_counter_ns(), self._wires[0][0]
        received: defaultdict[str, float] = defaultdict(float)
        for due_ns, parts in self._wires:
            time.sleep(max(0, due_ns - first_ns - (time.perf_counter_ns() - begun_ns)) / 1e9)
            for window in self._receive(core, parts, received):
                tick = {**received, **self._compute(window)}
                received.clear()
                if due_ns - first_ns > _FILL_S * 1e9:
                    if sample and window.tick % self._every == 0:
                        self._alone.append(list(self._calls))
                    yield {name: tick.get(name, 0.0) for name in (*STAGES, "models", "decode", "cpu")}

    def _receive(
        self, core: FusionCore, parts: list[Payload], spent_us: defaultdict[str, float]
    ) -> list[Window]:
        """Do the work of the receiving thread for one message."""
        times_ns = [time.perf_counter_ns()]
        message = codec.decode(parts, received_ns=0)
        times_ns.append(time.perf_counter_ns())
        windows = core.push(message)
        if expected := core.expects(message):
            self._engine.expect(message)
        times_ns.append(time.perf_counter_ns())
        spent_us["receive"] += (times_ns[1] - times_ns[0]) / 1e3
        spent_us["cut"] += (times_ns[2] - times_ns[1]) / 1e3
        if expected:
            spent_us["decode"] += _decode_us(message)
        return windows

    def _compute(self, window: Window) -> Tick:
        """Do the work of the compute thread for one window."""
        self._calls.clear()
        self._times_ns.clear()
        cpu_ns = time.thread_time_ns()
        state = self._engine.run(self._presence.mark_held(window))
        computed_ns = time.perf_counter_ns()
        codec.encode(f"state/{self._config.name}", state)
        published_ns = time.perf_counter_ns()
        # the engine reads the clock when it begins, around each encoder it runs, before and after the head
        began_ns, *encoders_ns, encoded_ns, ready_ns = self._times_ns
        *encoders, head = [spent_ns for _, _, spent_ns in self._calls]
        read_ns = encoders_ns[0] if encoders_ns else encoded_ns
        spent_ns = {
            "read": read_ns - began_ns,
            "encode": encoded_ns - read_ns - sum(encoders),
            "head": ready_ns - encoded_ns - head,
            "state": computed_ns - ready_ns,
            "publish": published_ns - computed_ns,
            "models": sum(encoders) + head,
            "cpu": time.thread_time_ns() - cpu_ns,
        }
        return {name: spent / 1e3 for name, spent in spent_ns.items()}

    def _clock(self) -> int:
        self._times_ns.append(time.perf_counter_ns())
        return self._times_ns[-1]


def unshared(calls: Sequence[Call]) -> list[Call]:
    """Return the calls of a tick on fresh inputs: encoders compute again what they share."""
    fresh: dict[int, ImageInput] = {}

    def input_of(data: Any) -> Any:
        if not isinstance(data, ImageInput):
            return data
        return fresh.setdefault(id(data), ImageInput(data.image, data.previous))

    return [(model, tuple(map(input_of, arguments)), spent_ns) for model, arguments, spent_ns in calls]


def _decode_us(message: Message[Header]) -> float:
    """Return the time of the decoding thread for a frame, in microseconds."""
    assert isinstance(message.header, CameraFrame)
    begun_ns = time.perf_counter_ns()
    decode_frame(message.header, message.payload)
    return (time.perf_counter_ns() - begun_ns) / 1e3
