"""Receives the states, the health and the frames of a graph in a thread, and returns what arrived when.

Threads: the witness's own thread appends to `states`, `health` and `frames`; other threads read them. Times
are of `time.monotonic`, in seconds.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.messages import PROCESS, SUPERVISOR, CameraFrame, FusedState, Health
from perception.topics import TOPICS

_EVERY: Final = {
    kind: replace(TOPICS[kind], policy="queue", depth=4096) for kind in ("state", "health", "camera")
}
_STEP_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Seen:
    """A state, and when it was received."""

    at_s: float
    received_ns: int
    state: FusedState


class Witness:
    """Reads `state/*`, `health/*` and `camera/front` of a domain until closed."""

    def __init__(self, domain: str) -> None:
        self.states: list[Seen] = []
        self.health: list[tuple[float, Health]] = []
        self.frames: list[tuple[float, int]] = []
        """(time, seq) of each frame."""
        self._end = threading.Event()
        self._subscriber = Subscriber(
            *("state/*", "health/*", "camera/front"),
            runtime=Runtime(domain),
            clock=HostClock().now_ns,
            policies=_EVERY,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._end.set()
        self._thread.join()
        self._subscriber.close()

    def lost(self) -> int:
        """Return how many messages did not reach the witness."""
        counts = self._subscriber.health()
        return sum(
            one.lost + sum(one.dropped.values()) for name, one in counts.items() if name[:6] == "state/"
        )

    def since(self, at_s: float) -> list[Seen]:
        """Return the states received since then."""
        count = 0
        for seen in reversed(self.states):
            if seen.at_s < at_s:
                break
            count += 1
        return self.states[len(self.states) - count :]

    def newest(self, node: str) -> Health | None:
        """Return the last health message of a node."""
        return next((one for _, one in reversed(self.health) if one.node == node), None)

    def pid(self, node: str) -> int:
        """Return the process id of a node, 0 if it has not reported."""
        health = self.newest(node)
        return int(health.device.get(PROCESS, 0)) if health else 0

    def processes(self) -> dict[str, str]:
        """Return the status of each process, as the supervisor reports it."""
        health = self.newest(SUPERVISOR)
        return {} if health is None else {k: str(v) for k, v in health.device.items() if k != PROCESS}

    def nodes(self) -> list[str]:
        """Return the nodes of the graph without the supervisor."""
        return sorted({one.node for _, one in self.health[-200:]} - {SUPERVISOR})

    def wait(self, happened: Callable[[], object], timeout_s: float) -> float | None:
        """Return after how many seconds it happened, None if it did not in time."""
        begun_s = time.monotonic()
        while (took_s := time.monotonic() - begun_s) < timeout_s:
            if happened():
                return took_s
            time.sleep(_STEP_S)
        return None

    def _run(self) -> None:
        while not self._end.is_set():
            message = self._subscriber.receive(0.2)
            if message is None:
                continue
            now_s = time.monotonic()
            if isinstance(message.header, FusedState):
                self.states.append(Seen(now_s, message.received_ns, message.header))
            elif isinstance(message.header, Health):
                self.health.append((now_s, message.header))
            elif isinstance(message.header, CameraFrame):
                self.frames.append((now_s, message.header.seq))
