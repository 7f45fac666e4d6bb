"""Answers other hosts: `python -P -m perception.nodes.clock PROFILE --set here=HOST`.

Each host of a graph has one. It does nothing else, so that a request for the time waits for nothing.
"""

import os
import threading
import time
from typing import Final

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.time_service import TimeServer
from perception.errors import ProfileError
from perception.messages import PROCESS, Health
from perception.profile import Profile
from perception.profile.hosts import clock_node

from .node import main

_SERVE_S: Final = 0.1
_HEALTH_S: Final = 1.0


def run(profile: Profile, _: str, stopped: threading.Event) -> None:
    """Answer requests until the node is stopped; publish `Health` once a second."""
    if profile.here is None:
        raise ProfileError("here: a clock node runs on a host of the profile; start it by --host NAME")
    host, name, clock = profile.host[profile.here], clock_node(profile.here), HostClock().now_ns
    topic = f"health/{name}"
    with (
        TimeServer(
            host.bound(host.port),
            clock=clock,
            ports=profile.ports(profile.here),
            insecure=profile.insecure,
            keys=profile.keys,
        ) as server,
        Publisher(
            topic,
            source=name,
            runtime=Runtime(profile.domain),
            clock=clock,
            endpoint=profile.endpoint_of(topic),
            insecure=profile.insecure,
            keys=profile.keys,
        ) as health,
    ):
        due_s = 0.0
        while not stopped.is_set():
            server.serve(_SERVE_S)
            if (now_s := time.monotonic()) >= due_s:
                due_s = now_s + _HEALTH_S
                facts: dict[str, str | float] = {PROCESS: os.getpid(), "endpoint": server.endpoint}
                counts = dict(server.counts)
                outputs = {topic: health.published}
                health.send(Health(stamp_ns=clock(), node=name, counts=counts, device=facts, outputs=outputs))


if __name__ == "__main__":
    main("clock", run, named=False)
