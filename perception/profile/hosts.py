"""Section `[host.NAME]`: the computers of a graph, which nodes run on each, and where each publishes.

An endpoint follows from the profile alone, so all hosts load the same file and no port is declared twice: the
time service of a host has its `port`, its topics have the next ones, in the order of `nodes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from perception.messages import SUPERVISOR
from perception.profile.endpoint import endpoint_at, is_loopback
from perception.profile.keys import Address, Interface, Name
from perception.profile.section import Section

DEFAULT_PORT: Final = 5600
_HIGHEST_PORT: Final = 65535
SUPERVISOR_HEALTH: Final = f"health/{SUPERVISOR}"
"""Every host has this topic: it is served to readers of one host, not to the other hosts."""


class HostConfig(Section):
    """`[host.NAME]`: one computer of the graph; `perception up PROFILE --host NAME` starts its nodes."""

    address: Annotated[Address, Field(description="name or address by which the other hosts reach it")]
    port: Annotated[
        int, Field(ge=1, le=_HIGHEST_PORT, description="of its time service; its topics have the next ones")
    ] = DEFAULT_PORT
    nodes: Annotated[
        tuple[Name, ...], Field(description="which nodes run there, such as camera-front or fusion")
    ] = ()
    bind: Annotated[
        Interface | None, Field(description="address to listen on; default: all, for a loopback address that")
    ] = None
    key: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            description="name of its key in the trust file of the others; default: the pair of all hosts",
        ),
    ] = None

    def endpoint(self, port: int) -> str:
        """Return what readers connect to."""
        endpoint = endpoint_at(self.address, port)
        return endpoint if self.key is None else endpoint.replace("tcp://", f"tcp://{self.key}@", 1)

    def bound(self, port: int) -> str:
        """Return what a publisher binds."""
        own = self.address if is_loopback(self.address) else "*"
        own = "127.0.0.1" if own == "localhost" else own  # ZeroMQ binds addresses only
        return endpoint_at(self.bind or own, port)


class RemoteHost(NamedTuple):
    """Another host, as a reader connects to it."""

    clock: str
    """Endpoint of its time service."""
    connect: Mapping[str, str]
    """Topic -> endpoint of its publishers."""


def clock_node(host: str) -> str:
    """Return the name of the node that answers time requests on a host."""
    return f"clock-{host}"


def ports_of(name: str, host: HostConfig, nodes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the port of each topic that a host publishes; `nodes`: all nodes -> topics of each."""
    topics = [topic for node in host.nodes for topic in nodes.get(node, ())]
    all_topics = (*topics, f"health/{clock_node(name)}", SUPERVISOR_HEALTH)
    return {topic: host.port + number for number, topic in enumerate(all_topics, start=1)}


def problems_of(hosts: Mapping[str, HostConfig], nodes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what does not fit: each node runs on one host, and no two hosts share a port.

    Arguments: by name of the host; node of the profile -> topics that it publishes.
    """
    where: dict[str, str] = {}
    spans = {}
    for name, host in hosts.items():
        for node in host.nodes:
            if node not in nodes:
                yield f"host.{name}.nodes: there is no node '{node}'; nodes are {', '.join(nodes)}"
            elif node in where:
                yield f"host.{name}.nodes: {node} runs on host.{where[node]} already"
            where.setdefault(node, name)
        last = host.port + len(ports_of(name, host, nodes))
        spans[name] = range(host.port, last + 1)
        if last > _HIGHEST_PORT:
            yield f"host.{name}.port: its topics need the ports up to {last}; the highest is {_HIGHEST_PORT}"
    if missing := [node for node in nodes if hosts and node not in where]:
        yield f"{', '.join(missing)}: on no host; add it to the nodes of a [host.NAME]"
    for (one, ports), (other, taken) in combinations(spans.items(), 2):
        alike = hosts[one].address == hosts[other].address
        if alike and max(ports.start, taken.start) < min(ports.stop, taken.stop):
            used = f"{ports.start} to {ports.stop - 1} of {hosts[one].address}"
            yield f"host.{other}.port: host.{one} has the ports {used}; choose another"
