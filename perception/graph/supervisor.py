"""The supervisor: starts the processes of a graph, restarts and stops them.

What to start and what to do after a process ended is decided by pure functions (`plan`, `RestartPolicy`);
`Supervisor` executes it.

Threads: the caller's thread calls every method and owns every field. For each process one daemon thread reads
its output into `Lines`, which has its own lock.

Processes: each node runs in its own process group, except one that reads the terminal. Nodes inherit the file
of `DomainLock`, so a second graph cannot start in the domain while any node runs, even after the supervisor
was killed. A node ends with its supervisor (`processes.end_with_supervisor`). `stop` sends SIGTERM to all
nodes, SIGKILL after 4 s, and returns within 5 s.

Liveness: `beat` gets every health message. A node that hangs (`liveness.Pulse`) writes where it hangs, is
killed and started again. `health` reports the status of every process, with counts of hangs and restarts.
"""

import math
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Final, Self

from perception.errors.credentials import without_credentials
from perception.graph import processes
from perception.graph.lines import Lines
from perception.graph.liveness import (
    ENDED,
    FINISHED,
    LOST,
    RUNNING,
    SILENT_S,
    Pulse,
    silence,
)
from perception.graph.plan import STANDBY, Node
from perception.graph.restart import PERMANENT, Decision, RestartPolicy
from perception.messages import PROCESS, SUPERVISOR, Health

_STOP_SIGNALS: Final = ((0.0, signal.SIGTERM), (4.0, signal.SIGKILL))
"""(Seconds after the request to stop, signal to the processes that still run).

Not SIGINT: a node that has not yet installed its handler would print a traceback.
"""
_STOP_LIMIT_S: Final = 5.0
_PAUSE_S: Final = 0.5
"""A longer time between two polls: the supervisor itself was stopped, or got no CPU time."""
_STACKS_S: Final = 0.2
"""Time for a hung node to write its stacks."""
_MAX_LINE_BYTES: Final = 4096
_MAX_WAITING_LINES: Final = 2000


@dataclass(slots=True)
class _Running:
    """A node and its current process, if any."""

    node: Node
    policy: RestartPolicy
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    due_s: float | None = 0.0
    """When to start it next; None while it runs or once it has finished."""
    exit_code: int = 0
    """Of the last process that ended."""
    works_since_s: float | None = None
    """When its process first reported that it works."""
    publisher: str = ""
    """Publisher id of that report: each process has its own."""
    publisher_before: str = ""
    """Publisher id of the previous process."""
    pulse: Pulse = field(default_factory=Pulse)
    """Signs of life of its process."""
    kill_s: float | None = None
    """When to kill its process, because it hangs."""

    def worked_s(self, now_s: float) -> float | None:
        """Return for how many seconds its process has worked, None if it has not reported so."""
        return None if self.works_since_s is None else now_s - self.works_since_s


class Supervisor:
    """Runs nodes, restarts those that crash, collects their log lines, stops them all.

    Use it in a `with` statement, so that all processes are stopped.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        inherit: Sequence[int] = (),
        policy: Callable[[], RestartPolicy] = RestartPolicy,
    ) -> None:
        """Prepare to run `nodes`; `inherit`: file descriptors that each of them inherits."""
        self.exit_code: int | None = None
        """Exit code of the first node that ended with an error that a restart cannot repair."""
        self._running = [_Running(node, policy(), due_s=math.inf if node.after else 0.0) for node in nodes]
        self._inherit = tuple(inherit)
        self._lines = Lines(_MAX_WAITING_LINES)
        self._readers: list[threading.Thread] = []
        self._counts: Counter[str] = Counter()
        """Hangs and restarts, by node."""
        self._polled_s = time.monotonic()
        self._failed_late = 0
        """Exit code of a node that failed during `stop`."""

    def poll(self) -> bool:
        """Handle ended and hung processes, start those that are due; return whether the run continues."""
        now_s = time.monotonic()
        paused_s, self._polled_s = now_s - self._polled_s, now_s
        for running in self._running:
            if paused_s > _PAUSE_S:  # nobody received signs of life
                running.pulse.pause(paused_s)
            self._kill_if_hung(running, now_s)
            if running.process and (code := running.process.poll()) is not None:
                self._handle_exit(running, code)
            if running.due_s is not None and time.monotonic() >= running.due_s and self.exit_code is None:
                self._start(running)
        self._readers = [reader for reader in self._readers if reader.is_alive()]
        return self.exit_code is None and self._feeding()

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the lines that nodes wrote since the last call, as (node, line)."""
        return self._lines.take()

    def works(self, name: str, publisher: str) -> None:
        """Record that a node reported that it works; `publisher`: publisher id of its process."""
        for running in self._running:
            if running.node.name == name and running.process and publisher != running.publisher_before:
                running.publisher = publisher
                running.works_since_s = running.works_since_s or time.monotonic()
                self._start_after(name)

    def _start_after(self, name: str) -> None:
        for running in self._running:
            if running.node.after == name and running.due_s == math.inf:
                running.due_s = time.monotonic()

    def beat(self, health: Health) -> None:
        """Record a health message: a sign of life, and unless it reports `lost` that its node works."""
        pid = health.device.get(PROCESS)
        for running in self._running:
            if (
                running.process
                and _role(running.node.name) == _role(health.node)
                and (
                    running.process.pid == pid
                    if pid is not None
                    else running.node.name == health.node and health.source != running.publisher_before
                )
            ):
                running.pulse.beat(time.monotonic())
                if health.status != "lost":
                    self.works(running.node.name, health.source)

    def health(self) -> Health:
        """Return the status of all processes, with what was restarted; the caller sets `stamp_ns`."""
        status = self.status()
        wrong = (f"{name}: {words}" for name, words in status.items() if words.startswith((LOST, ENDED)))
        reason = "; ".join(wrong)
        return Health(
            stamp_ns=0,
            node=SUPERVISOR,
            status="degraded" if reason else "ok",
            reason=reason,
            counts=dict(self._counts),
            device={PROCESS: os.getpid(), **status},
        )

    def status(self) -> dict[str, str]:
        """Return the status of each node in words."""
        return {running.node.name: _status(running) for running in self._running}

    def pids(self) -> dict[str, int]:
        """Return the process id of each node that runs."""
        return {running.node.name: running.process.pid for running in self._running if running.process}

    def crashes(self, name: str) -> int:
        """Return the number of consecutive crashes of a node."""
        return sum(each.policy.backoff.failures for each in self._running if each.node.name == name)

    def failing(self) -> int:
        """Return the exit code of a node that counts as failing (`RestartPolicy.failing`), 0 if none does."""
        now_s = time.monotonic()
        return next(
            (each.exit_code for each in self._running if each.policy.failing(each.worked_s(now_s))),
            self._failed_late,
        )

    def stop(self) -> None:
        """Stop every process: SIGTERM first, SIGKILL after 4 s; return within 5 s."""
        begun_s = time.monotonic()
        for after_s, number in _STOP_SIGNALS:
            for running in _wait(self._alive, begun_s + after_s):
                _signal(running, number)
        if survivors := _wait(self._alive, begun_s + _STOP_LIMIT_S):
            names = ", ".join(running.node.name for running in survivors)
            self._log("up", f"{names} did not end after SIGKILL: blocked in the kernel")
        for running in self._running:
            _signal(running, signal.SIGKILL)
            code = running.process.poll() if running.process else 0
            if code in PERMANENT - running.node.stay_down:  # ended before its exit was handled
                self.exit_code = self.exit_code or code
            elif code is not None and code > 0:
                self._failed_late = self._failed_late or code
        for reader in self._readers:
            reader.join(timeout=0.5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _feeding(self) -> bool:
        alive = [running for running in self._running if running.process or running.due_s is not None]
        captures = any(running.node.capture for running in self._running)
        return any(running.node.capture for running in alive) if captures else bool(alive)

    def _alive(self) -> list[_Running]:
        return [running for running in self._running if running.process and running.process.poll() is None]

    def _start(self, running: _Running) -> None:
        node = running.node
        process = subprocess.Popen(
            node.command,
            stdin=None if node.terminal else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | node.environment | {processes.SUPERVISOR_VARIABLE: str(os.getpid())},
            # A background process group that reads the terminal is stopped by the kernel (SIGTTIN).
            process_group=None if node.terminal else 0,
            pass_fds=self._inherit,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(node.name, process.stdout), daemon=True)
        reader.start()
        self._readers.append(reader)
        running.process, running.started_s, running.due_s = process, time.monotonic(), None
        running.pulse, running.kill_s = Pulse(), None

    def _kill_if_hung(self, running: _Running, now_s: float) -> None:
        """Signal a node that hangs to write its stacks, and kill it shortly after that."""
        if running.process is None or running.process.poll() is not None:
            return
        pid = running.process.pid
        if running.kill_s is not None:
            if now_s >= running.kill_s:
                _signal(running, signal.SIGKILL)
        elif running.pulse.hangs(now_s, lambda: processes.progress(pid)):
            running.kill_s = now_s + _STACKS_S
            self._counts[f"{running.node.name} hung"] += 1
            self._log(running.node.name, f"{silence(running.pulse.silent_s(now_s))}: it hangs and is killed")
            running.process.send_signal(processes.SHOW_STACKS)

    def _handle_exit(self, running: _Running, code: int) -> None:
        now_s = time.monotonic()
        _signal(running, signal.SIGKILL)
        running.process, running.exit_code = None, code if code >= 0 else 128 - code
        worked_s, running.works_since_s = running.worked_s(now_s), None
        running.publisher_before = running.publisher
        decision, delay_s = running.policy.decide(running.exit_code, worked_s or 0.0, running.node.stay_down)
        if decision is Decision.RESTART:
            running.due_s = now_s + delay_s
            self._counts[f"{running.node.name} restarted"] += 1
            self._log(running.node.name, f"ended with {_cause(code)}; restarts in {delay_s:g} s")
        elif decision is Decision.STAY_DOWN:
            self._log(
                running.node.name,
                f"ended with {_cause(code)}, which a restart cannot repair; the others run on",
            )
        elif decision is Decision.STOP_ALL:
            self.exit_code = self.exit_code or code
            self._log(running.node.name, f"ended with {_cause(code)}, which a restart cannot repair")

    def _read(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                self._log(name, without_credentials(line.decode(errors="replace").rstrip()))

    def _log(self, name: str, line: str) -> None:
        self._lines.put(name, line)


def _status(running: _Running) -> str:
    if running.process:
        if (silent_s := running.pulse.silent_s(time.monotonic())) > SILENT_S:
            return f"{LOST}: {silence(silent_s)}"
        loading = running.node.loading if running.works_since_s is None else ""
        return f"{loading}, {time.monotonic() - running.started_s:.0f} s" if loading else RUNNING
    if running.due_s is None:
        return FINISHED if running.exit_code == 0 else f"{ENDED} with {running.exit_code}"
    return f"{ENDED} with {running.exit_code}, restarts" if running.exit_code else "starting"


def _role(name: str) -> str:
    """Return the name without the mark of a standby, which changes roles with its fusion."""
    return name.removesuffix(STANDBY)


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _signal(running: _Running, number: signal.Signals) -> None:
    """Send a signal to a node's process group: also to children of a node that has ended."""
    if running.process is None:
        return
    with suppress(ProcessLookupError):
        if running.node.terminal:
            running.process.send_signal(number)
        else:
            os.killpg(running.process.pid, number)


def _wait(alive: Callable[[], list[_Running]], deadline_s: float) -> list[_Running]:
    """Wait until no process is alive, or until the deadline; return those alive."""
    while (left := alive()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return left
