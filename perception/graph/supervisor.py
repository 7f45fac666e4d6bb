"""The supervisor: which processes a profile needs, and keeping them running.

What to start and what to do about a process that ended is decided by pure functions (`plan`,
`RestartPolicy`); `Supervisor` carries it out. Nodes are started by name, never imported.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Self

from perception.bus.host import private_directory, same_file
from perception.errors import DeviceError, MissingPackageError, PerceptionError, ProfileError
from perception.errors.credentials import without_credentials
from perception.graph.lines import Lines
from perception.graph.restart import LASTING, RestartPolicy, Verdict
from perception.profile import OVERRIDES_VARIABLE, Profile, source_kind

ORIGIN_VARIABLE: Final = "PERCEPTION_ORIGIN_NS"
"""Host time at which all scripted and file devices of one launch start playing."""
_STOP_SIGNALS: Final = ((0.0, signal.SIGTERM), (4.0, signal.SIGKILL))
"""Seconds after the wish to stop, and the signal sent to whatever still runs then.

Not SIGINT: a node that has not come to handling it yet would print a traceback.
"""
_STOP_LIMIT_S: Final = 5.0
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
    loading: str = ""
    """What it does until it says that it works, if that takes long enough to be shown."""
    given_up: frozenset[int] = frozenset()
    """Exit codes with which it stays down while the others run on."""


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

    def capture(kind: str, name: str, source: int | str) -> Node:
        # a device may be plugged in again, a file that cannot be read stays as it is
        is_file = kind == "text" or source_kind(source) == "file"
        given_up = {MissingPackageError.exit_code} | ({DeviceError.exit_code} if is_file else set())
        return Node(
            f"{kind}-{name}",
            command(kind, f"--name={name}"),
            shared | {"OMP_NUM_THREADS": "1"},
            terminal=kind == "text" and source == "terminal",
            given_up=frozenset(given_up),
        )

    # first what takes longest: torch loads while all others start
    nodes = []
    if profile.fusion:
        nodes.append(Node("fusion", command("fusion"), shared, capture=False, loading="loading models"))
    nodes += [Node("recorder", command("recorder"), shared, capture=False)] if profile.recording else []
    nodes += [capture("camera", name, camera.source) for name, camera in profile.camera.items()]
    nodes += [capture("microphone", name, one.source) for name, one in profile.microphone.items()]
    nodes += [capture("text", name, text.source) for name, text in profile.text.items()]
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
    """Of the last process that ended."""
    works_since_s: float | None = None
    """When its process first said that it works."""
    publisher: str = ""
    """Who said so: each process publishes under an id of its own."""
    publisher_before: str = ""

    def worked_s(self, now_s: float) -> float | None:
        """Return how long its process has worked, None if it never said so."""
        return None if self.works_since_s is None else now_s - self.works_since_s


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
        self._lines = Lines(_MAX_WAITING_LINES)
        self._readers: list[threading.Thread] = []
        self._failed_late = 0
        """Exit code of a node that failed while it was stopped."""

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
        return self._lines.take()

    def works(self, name: str, publisher: str) -> None:
        """Note that a node says it works; `publisher` is the id under which its process publishes."""
        for running in self._running:
            if running.node.name == name and running.process and publisher != running.publisher_before:
                running.publisher = publisher
                running.works_since_s = running.works_since_s or time.monotonic()

    def status(self) -> dict[str, str]:
        """Return each node's status in words."""
        return {running.node.name: _status(running) for running in self._running}

    def pids(self) -> dict[str, int]:
        """Return the process id of each node that runs."""
        return {running.node.name: running.process.pid for running in self._running if running.process}

    def crashes(self, name: str) -> int:
        """Return how often in a row a node has crashed without having worked well in between."""
        return sum(each.policy.backoff.failures for each in self._running if each.node.name == name)

    def failing(self) -> int:
        """Return the exit code of a node that crashed and has not worked well since, 0 if there is none."""
        now_s = time.monotonic()
        return next(
            (each.exit_code for each in self._running if each.policy.failing(each.worked_s(now_s))),
            self._failed_late,
        )

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
            code = running.process.poll() if running.process else 0
            if code in LASTING - running.node.given_up:  # found out just now
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

    def _judge(self, running: _Running, code: int) -> None:
        now_s = time.monotonic()
        _signal(running, signal.SIGKILL)
        running.process, running.exit_code = None, code if code >= 0 else 128 - code
        worked_s, running.works_since_s = running.worked_s(now_s), None
        running.publisher_before = running.publisher
        verdict, delay_s = running.policy.decide(running.exit_code, worked_s or 0.0, running.node.given_up)
        if verdict is Verdict.RESTART:
            running.due_s = now_s + delay_s
            self._log(running.node.name, f"ended with {_cause(code)}; restarts in {delay_s:g} s")
        elif verdict is Verdict.GIVE_UP:
            self._log(
                running.node.name,
                f"ended with {_cause(code)}, which a restart cannot repair; the others run on",
            )
        elif verdict is Verdict.STOP_ALL:
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
        loading = running.node.loading if running.works_since_s is None else ""
        return f"{loading}, {time.monotonic() - running.started_s:.0f} s" if loading else "running"
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
