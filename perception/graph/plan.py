"""Which processes a profile needs: pure. Nodes are started by module name, never imported."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from perception.errors import DeviceError, MissingPackageError, ProfileError
from perception.errors.credentials import without_credentials
from perception.graph.capture_loop import ORIGIN_VARIABLE
from perception.graph.restart import PERMANENT
from perception.profile import OVERRIDES_VARIABLE, Profile, source_kind
from perception.profile.hosts import clock_node

STANDBY: Final = "-standby"
"""End of the name of a node that stands by."""
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Node:
    """One process to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    capture: bool = True
    """Whether it is an input of the graph: the run ends when all such nodes have finished."""
    terminal: bool = False
    """Whether it reads the terminal: then it keeps the supervisor's stdin and process group."""
    loading: str = ""
    """Status until it reports that it works, if that takes long."""
    after: str = ""
    """Name of the node that has to work before it is started."""
    stay_down: frozenset[int] = frozenset()
    """Exit codes after which it is not restarted while the other nodes continue."""


def plan(
    profile: Profile, profile_name: str, overrides: Sequence[str] = (), *, origin_ns: int
) -> tuple[Node, ...]:
    """Return the nodes of a profile.

    Args:
        profile: the loaded profile with overrides.
        profile_name: path or shipped name, from which each node loads it again.
        overrides: `dotted.key=value`, passed to each node; by its environment if one contains credentials.
        origin_ns: host time at which all scripted and file devices start to play.

    Raises:
        ProfileError: it has no nodes, or two text sources read the terminal. Other checks: `graph.check`.
    """
    nodes = tuple(_Commands(profile_name, overrides, origin_ns).nodes(profile.on_this_host()))
    if profile.here is not None and {"fusion", "recorder"} & {node.name for node in nodes}:
        nodes = tuple(replace(node, capture=False) for node in nodes)  # other hosts still send when these end
    if profile.here is None and profile.host:
        names = ", ".join(profile.host)
        raise ProfileError(f"{profile_name}: it describes the hosts {names}; name this one: --host NAME")
    if profile.here is None and all(node.name == "recorder" for node in nodes):
        raise ProfileError(
            f"{profile_name}: nothing to start; declare a camera, microphone, text, replay or fusion"
        )
    if sum(node.terminal for node in nodes) > 1:
        readers = ", ".join(node.name for node in nodes if node.terminal)
        raise ProfileError(f"{profile_name}: only one text source can read the terminal, not {readers}")
    return nodes


class _Commands:
    """Makes the command and environment of each node; arguments as of `plan`."""

    def __init__(self, profile_name: str, overrides: Sequence[str], origin_ns: int) -> None:
        secret = any(without_credentials(override) != override for override in overrides)
        self._profile_name = profile_name
        self._options = [] if secret else [part for override in overrides for part in ("--set", override)]
        self._shared = {ORIGIN_VARIABLE: str(origin_ns), "PYTHONUNBUFFERED": "1"}
        self._shared |= {OVERRIDES_VARIABLE: json.dumps(overrides)} if secret else {}

    def nodes(self, profile: Profile) -> list[Node]:
        """Return the nodes, the slowest first: torch loads while all others start."""
        found = []
        if profile.fusion:
            command = self._command("fusion")
            fusion = Node("fusion", command, self._shared, capture=False, loading="loading models")
            found.append(fusion)
            if profile.fusion.standby:  # it loads when the first one has, which needs all cores for that
                found.append(replace(fusion, name=f"fusion{STANDBY}", after=fusion.name, stay_down=PERMANENT))
        if profile.recording:
            command = self._command("recorder")
            found.append(Node("recorder", command, self._shared, capture=False, stay_down=PERMANENT))
        found += [self._capture("camera", name, one.source) for name, one in profile.camera.items()]
        found += [self._capture("microphone", name, one.source) for name, one in profile.microphone.items()]
        found += [self._capture("text", name, one.source) for name, one in profile.text.items()]
        if profile.here is not None:
            name = clock_node(profile.here)
            found.append(Node(name, self._command("clock"), self._shared | _ONE_THREAD, capture=False))
        if profile.replay:
            found.append(Node("replayer", self._command("replayer"), self._shared | _ONE_THREAD))
        return found

    def _capture(self, kind: str, name: str, source: int | str) -> Node:
        # a device may be connected again; a file that cannot be read stays unreadable
        is_file = kind == "text" or source_kind(source) == "file"
        stay_down = {MissingPackageError.exit_code} | ({DeviceError.exit_code} if is_file else set())
        return Node(
            f"{kind}-{name}",
            self._command(kind, f"--name={name}"),
            self._shared | _ONE_THREAD,
            terminal=kind == "text" and source == "terminal",
            stay_down=frozenset(stay_down),
        )

    def _command(self, kind: str, *arguments: str) -> tuple[str, ...]:
        module = f"perception.nodes.{kind}"
        return (sys.executable, "-P", "-m", module, self._profile_name, *arguments, *self._options)
