"""The supervisor: which processes a profile needs, and keeping them running.

What to do about a process that ended is decided by pure functions (`plan`, `RestartPolicy`); `Supervisor`
carries it out. Nodes are started by name, never imported.
"""

import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Final, Self

from perception.bus.host import private_directory, same_file
from perception.credentials import without_credentials
from perception.errors import PerceptionError, ProfileError, SessionError, WeightsError
from perception.profile import OVERRIDES_VARIABLE, Profile

ORIGIN_VARIABLE: Final = "PERCEPTION_ORIGIN_NS"
"""Host time at which all scripted and file devices of one launch start playing."""
_STOP_SIGNALS: Final = ((0.0, signal.SIGTERM), (4.0, signal.SIGKILL))
"""Seconds after the wish to stop, and the signal sent to whatever still runs then.

Not SIGINT: a node that has not come to handling it yet would print a traceback.
"""
_STOP_LIMIT_S: Final = 5.0
_LASTING: Final = (ProfileError.exit_code, WeightsError.exit_code, SessionError.exit_code)
"""Exit codes of what no restart can mend."""
_MAX_LINE_BYTES: Final = 4096
_MAX_WAITING_LINES: Final = 2000


@dataclass(frozen=True, slots=True)
class Node:
    """One process to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set on top of the launcher's own."""
    capture: bool = True
    """Whether it feeds the graph: when all that do have finished, the run is over."""
    terminal: bool = False
    """Whether it reads the terminal: then it keeps the launcher's stdin and process group."""


def plan(
    profile: Profile, profile_name: str, overrides: Sequence[str] = (), *, origin_ns: int
) -> tuple[Node, ...]:
    """Return the nodes of a profile.

    Args:
        profile: the profile as loaded, overrides applied.
        profile_name: path or shipped name by which each node loads it again.
        overrides: `dotted.key=value`, passed on to each node: by its environment if one holds credentials.
        origin_ns: host time at which scripted and file devices start playing, the same for all.

    Raises:
        ProfileError: it has no nodes, or two want the terminal. `graph.check` asks what else may be wrong.
    """
    secret = any(without_credentials(override) != override for override in overrides)
    options = tuple(part for override in overrides for part in ("--set", override) if not secret)
    shared = {ORIGIN_VARIABLE: str(origin_ns), "PYTHONUNBUFFERED": "1"}
    shared |= {OVERRIDES_VARIABLE: json.dumps(overrides)} if secret else {}

    def command(kind: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", f"perception.nodes.{kind}", profile_name, *arguments, *options)

    def capture(kind: str, name: str, terminal: bool = False) -> Node:
        environment = shared | {"OMP_NUM_THREADS": "1"}
        return Node(f"{kind}-{name}", command(kind, "--name", name), environment, terminal=terminal)

    # first what takes longest: torch loads while all others start
    nodes = [Node("fusion", command("fusion"), shared, capture=False)] if profile.fusion else []
    nodes += [Node("recorder", command("recorder"), shared, capture=False)] if profile.recording else []
    nodes += [capture("camera", name) for name in profile.camera]
    nodes += [capture("microphone", name) for name in profile.microphone]
    nodes += [capture("text", name, text.source == "terminal") for name, text in profile.text.items()]
    if profile.replay:
        nodes.append(Node("replayer", command("replayer"), shared | {"OMP_NUM_THREADS": "1"}))
    if all(node.name == "recorder" for node in nodes):
        raise ProfileError(
            f"{profile_name}: nothing to start; declare a camera, microphone, text, replay or fusion"
        )
    if sum(node.terminal for node in nodes) > 1:
        readers = ", ".join(node.name for node in nodes if node.terminal)
        raise ProfileError(f"{profile_name}: only one text source can read the terminal, not {readers}")
    return tuple(nodes)


class Verdict(Enum):
    """What becomes of a node whose process ended."""

    FINISHED = "finished"
    RESTART = "restart"
    STOP_ALL = "stop all"


@dataclass(slots=True)
class RestartPolicy:
    """Restarts a node after a delay that doubles with each crash, and starts over once it ran well.

    A profile, weights or a session that are wrong stay wrong: those stop the whole run.
    """

    first_s: float = 0.5
    longest_s: float = 10.0
    healthy_s: float = 10.0
    _crashes: int = 0

    def decide(self, exit_code: int, ran_s: float) -> tuple[Verdict, float]:
        """Return the verdict on a process that ran for `ran_s`, and the delay before a restart in seconds."""
        if exit_code == 0:
            return Verdict.FINISHED, 0.0
        if exit_code in _LASTING:
            return Verdict.STOP_ALL, 0.0
        if ran_s >= self.healthy_s:
            self._crashes = 0
        delay_s = min(self.first_s * 2.0**self._crashes, self.longest_s)
        self._crashes = min(self._crashes + 1, 32)
        return Verdict.RESTART, delay_s


class DomainLock:
    """Held by a launcher and inherited by its nodes: one graph per domain, orphans included."""

    def __init__(self, path: Path, domain: str) -> None:
        """Take the lock at `path`; PerceptionError says who holds it."""
        self._path = path
        self._domain = domain
        self._file = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not same_file(path, self.fileno()):
                raise BlockingIOError
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise PerceptionError(
                f"domain '{domain}' is already up (process {holder}): stop it, or use --domain NAME"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def fileno(self) -> int:
        """Return the descriptor that nodes inherit."""
        return self._file.fileno()

    def restore(self) -> None:
        """Lock again if the file is gone, for nodes to inherit; PerceptionError if another graph has it."""
        if not same_file(self._path, self.fileno()):
            private_directory(self._path.parent)
            again = DomainLock(self._path, self._domain)
            os.dup2(again.fileno(), self.fileno(), inheritable=False)
            again._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


@dataclass(slots=True)
class _Running:
    """A node and its present process, if any."""

    node: Node
    policy: RestartPolicy
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    due_s: float | None = 0.0
    """When to start it next, None while it runs or once it has finished."""
    exit_code: int = 0
    """Of its last process; 0 while it runs."""


class Supervisor:
    """Runs nodes, restarts those that crash, collects their lines, stops them all.

    Everything happens in the caller's thread, in `poll` and `stop`; only reading the nodes' output has
    threads of its own. Use it in a `with` statement, so that no process outlives it.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        inherit: Sequence[int] = (),
        policy: Callable[[], RestartPolicy] = RestartPolicy,
    ) -> None:
        """Prepare to run `nodes`; `inherit` are file descriptors that each of them keeps open."""
        self.exit_code: int | None = None
        """Set once a node ended in a way that no restart can mend."""
        self._running = [_Running(node, policy()) for node in nodes]
        self._inherit = tuple(inherit)
        self._lines: queue.Queue[tuple[str, str]] = queue.Queue(_MAX_WAITING_LINES)
        self._lines_dropped = 0
        self._readers: list[threading.Thread] = []

    def poll(self) -> bool:
        """Start what is due and judge what ended; return whether there is anything left to wait for."""
        for running in self._running:
            if running.process and (code := running.process.poll()) is not None:
                self._judge(running, code)
            if running.due_s is not None and time.monotonic() >= running.due_s and self.exit_code is None:
                self._start(running)
        self._readers = [reader for reader in self._readers if reader.is_alive()]
        return self.exit_code is None and self._feeding()

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield what the nodes wrote since the last call, as (node, line)."""
        with suppress(queue.Empty):
            while True:
                yield self._lines.get_nowait()
        if self._lines_dropped:
            dropped, self._lines_dropped = self._lines_dropped, 0
            yield "up", f"{dropped} log lines dropped: nodes wrote faster than they could be shown"

    def status(self) -> dict[str, str]:
        """Return each node's status in words."""
        return {running.node.name: _status(running) for running in self._running}

    def pids(self) -> dict[str, int]:
        """Return the process id of each node that runs."""
        return {running.node.name: running.process.pid for running in self._running if running.process}

    def crashed(self) -> int:
        """Return the exit code of a node that is down because it crashed, 0 if there is none."""
        return next((running.exit_code for running in self._running if running.exit_code), 0)

    def stop(self) -> None:
        """Stop every process: asked first, forced after 4 s; returns within 5 s."""
        begun_s = time.monotonic()
        for after_s, number in _STOP_SIGNALS:
            for running in _wait(self._alive, begun_s + after_s):
                _signal(running, number)
        if survivors := _wait(self._alive, begun_s + _STOP_LIMIT_S):
            names = ", ".join(running.node.name for running in survivors)
            self._log("up", f"{names} did not end even when killed: stuck in the kernel")
        for running in self._running:
            _signal(running, signal.SIGKILL)
            if running.process and (code := running.process.poll()) in _LASTING:  # found out just now
                self.exit_code = self.exit_code or code
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
            (*_die_with_parent(), *node.command),
            stdin=None if node.terminal else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | node.environment,
            # A background process group that reads the terminal is stopped by the kernel (SIGTTIN).
            process_group=None if node.terminal else 0,
            pass_fds=self._inherit,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(node.name, process.stdout), daemon=True)
        reader.start()
        self._readers.append(reader)
        running.process, running.started_s, running.due_s = process, time.monotonic(), None
        running.exit_code = 0

    def _judge(self, running: _Running, code: int) -> None:
        now_s = time.monotonic()
        _signal(running, signal.SIGKILL)
        running.process, running.exit_code = None, code if code >= 0 else 128 - code
        verdict, delay_s = running.policy.decide(running.exit_code, now_s - running.started_s)
        if verdict is Verdict.RESTART:
            running.due_s = now_s + delay_s
            self._log(running.node.name, f"ended with {_cause(code)}; restarts in {delay_s:g} s")
        elif verdict is Verdict.STOP_ALL:
            self.exit_code = self.exit_code or code
            self._log(running.node.name, f"ended with {_cause(code)}, which a restart cannot mend")

    def _read(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                self._log(name, without_credentials(line.decode(errors="replace").rstrip()))

    def _log(self, name: str, line: str) -> None:
        try:
            self._lines.put_nowait((name, line))
        except queue.Full:
            self._lines_dropped += 1


def _status(running: _Running) -> str:
    if running.process:
        return "running"
    if running.due_s is None:
        return "finished" if running.exit_code == 0 else f"ended with {running.exit_code}"
    return f"ended with {running.exit_code}, restarts" if running.exit_code else "starting"


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _signal(running: _Running, number: signal.Signals) -> None:
    """Signal a node's whole process group: also what a node that has ended may have left in it."""
    if running.process is None:
        return
    with suppress(ProcessLookupError):
        if running.node.terminal:
            running.process.send_signal(number)
        else:
            os.killpg(running.process.pid, number)


def _wait(alive: Callable[[], list[_Running]], deadline_s: float) -> list[_Running]:
    """Wait until nothing is alive, but not beyond the deadline; return what still is."""
    while (left := alive()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return left


def _die_with_parent() -> tuple[str, ...]:
    """Return a command prefix that has the kernel end a node whose launcher was killed (Linux)."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()
