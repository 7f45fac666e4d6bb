"""The faults of a scenario: what is broken, when, and how much. Pure."""

from collections.abc import Iterable, Mapping
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec

from perception.messages import ConditionName
from perception.units import SECOND_NS

Target = Literal["camera", "microphone", "text", "stream", "host", "fusion", "recorder"]
CAMERA_LIES: Final[tuple[ConditionName, ...]] = (
    *("frozen", "black", "blown out", "covered", "noise", "blurred", "dead channel", "torn"),
    *("jittery", "slow", "lagging"),
)
SOUND_LIES: Final[tuple[ConditionName, ...]] = (
    *("dead channel", "silent", "stuck", "clipped", "DC", "hum", "wrong rate"),
    *("jittery", "slow", "lagging"),
)


class Kind(NamedTuple):
    """A kind of fault."""

    target: Target
    """What it breaks: a stream, all streams of one remote host, the fusion or the recorder."""
    shortest_s: float
    longest_s: float
    least: float = 0.0
    most: float = 0.0
    """Range of `Fault.amount`; its unit follows from the kind."""


KINDS: Final[dict[str, Kind]] = {
    "death": Kind("stream", 0.5, 15),
    "restart": Kind("stream", 0.2, 8),  # the node ends and comes back with another publisher id
    "gap": Kind("stream", 0.02, 0.4),  # data lost in the device
    "loss": Kind("stream", 1, 10, 0.01, 0.5),  # share of messages lost on the way to the fusion
    "late": Kind("stream", 0.3, 8, 0.05, 2.0),  # seconds
    "duplicate": Kind("stream", 1, 10, 0.05, 1.0),  # share of messages
    "reorder": Kind("stream", 1, 10, 0.05, 1.0),  # share of messages
    "leap": Kind("stream", 0.2, 8, 1.5, 1e5),  # seconds ahead, refused
    "ahead": Kind("stream", 1, 10, 0.03, 0.9),  # seconds ahead, delayed until due
    "behind": Kind("stream", 1, 10, 0.05, 30.0),  # seconds
    "drift": Kind("stream", 5, 60, 50, 2000),  # ppm; the clock is set right at the end
    "malformed": Kind("microphone", 0.2, 3),  # NaN, or another size than in the header
    "rate": Kind("microphone", 1, 10),  # the device is opened with another sample rate
    "lie": Kind("stream", 2, 15, 0.0, 1.0),  # the condition with this index, as a share
    "flood": Kind("text", 0.5, 3, 20, 200),  # topics per second
    "cut": Kind("host", 0.5, 10),  # the network buffers what is sent, and delivers it at the end
    "outage": Kind("host", 0.5, 10),  # the network loses what is sent
    "host clock": Kind("host", 6, 30, 0.002, 60.0),  # seconds, by which it is set and later set right
    "suspend": Kind("fusion", 1, 60),  # fusion and streams stop, as their host sleeps
    "crash": Kind("fusion", 0.2, 3),
    "stop": Kind("fusion", 0.2, 3),
    "hang": Kind("fusion", 0.3, 6),
    "overload": Kind("fusion", 2, 20, 1.05, 6.0),  # duration of an inference in hops
    "busy": Kind("fusion", 1, 6, 5, 60),  # ms of CPU time per received message
    "recorder crash": Kind("recorder", 0.2, 5),
    "recorder hang": Kind("recorder", 0.5, 8),
    "full disk": Kind("recorder", 1, 10),
}
SLOW: Final = frozenset({"hang", "suspend", "busy"})
"""Kinds in which a fusion receives later than messages arrive."""
_LONE: Final = ("suspend", "crash", "stop", "hang")


class Fault(msgspec.Struct, frozen=True):
    """One fault of a scenario."""

    kind: str
    target: str
    """Topic, or `host`, `fusion`, `recorder`."""
    start_ns: int
    stop_ns: int
    amount: float

    def __str__(self) -> str:
        seconds = f"{self.start_ns / 1e9:.3f} s to {self.stop_ns / 1e9:.3f} s"
        return f"{self.kind} of {self.target}, {seconds}" + (f", {self.amount:g}" if self.amount else "")

    @property
    def condition(self) -> ConditionName:
        """The condition of a `lie`."""
        lies = CAMERA_LIES if self.target.startswith("camera/") else SOUND_LIES
        return lies[min(int(self.amount * len(lies)), len(lies) - 1)]


def draw(random: Random, topics: Iterable[str], seconds: float) -> tuple[Fault, ...]:
    """Return faults until `seconds`, about a third of them while another one holds."""
    topics = list(topics)
    faults: list[Fault] = []
    at_s = random.uniform(3, 6)
    while at_s < seconds - 3:
        faults.append(fault := _one(random, topics, at_s))
        end_s = fault.stop_ns / 1e9
        together = random.random() < 0.35 and fault.kind not in _LONE
        at_s = random.uniform(at_s, end_s) if together else end_s + random.expovariate(1 / 6)
    return tuple(faults)


def _one(random: Random, topics: list[str], at_s: float) -> Fault:
    name = random.choice(list(KINDS))
    kind = KINDS[name]
    if kind.target in ("fusion", "recorder", "host"):
        target = str(kind.target)
    else:
        fitting = [one for one in topics if kind.target in ("stream", one.partition("/")[0])]
        fitting = [one for one in fitting if not (name == "lie" and one.startswith("text/"))]
        target = random.choice(fitting)
    length_s = random.uniform(kind.shortest_s, kind.longest_s)
    amount = kind.least * (kind.most / kind.least) ** random.random() if kind.least else random.random()
    start_ns = round(at_s * SECOND_NS)
    amount = float(f"{amount:.4g}") if kind.most else 0.0
    return Fault(name, target, start_ns, start_ns + round(length_s * SECOND_NS), amount)


class Active:
    """The faults that hold at rising times."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = list(faults)
        edges = {edge for fault in self._faults for edge in (fault.start_ns, fault.stop_ns)}
        self._edges = sorted(edges, reverse=True)
        self._holding: Mapping[str, Fault] = {}

    def at(self, now_ns: int) -> Mapping[str, Fault]:
        """Return the faults that hold at a time by kind, of several of one kind the last."""
        edges = self._edges
        if edges and edges[-1] <= now_ns:
            while edges and edges[-1] <= now_ns:
                edges.pop()
            self._holding = {one.kind: one for one in self._faults if one.start_ns <= now_ns < one.stop_ns}
        return self._holding
