"""Records the messages of the graph: `python -P -m perception.nodes.recorder PROFILE`."""

import logging
import os
import threading
from datetime import datetime
from typing import Final

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.errors import SessionError
from perception.messages import PROCESS, SUPERVISOR, Health
from perception.profile import Profile, RecorderConfig
from perception.session.recorder import EVERY_MESSAGE, Recorder, describe, record

from .node import main

_LOG: Final = logging.getLogger(__name__)
_LINGER_S: Final = 1.5  # SIGKILL comes 4 s after the first signal; a busy machine needs part of that
_ABOUT_RUNS: Final = ("health/recorder", f"health/{SUPERVISOR}")
"""Published in every run: a recording of them alone contains nothing."""


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Record until stopped, and 1.5 s longer: the last messages of the other nodes."""
    config = profile.recording or RecorderConfig()
    runtime, clock = Runtime(profile.domain), HostClock()
    out = config.file(profile.domain, datetime.now())
    metadata = describe(profile, clock.anchor_ns)
    with (
        Recorder(out, config, metadata) as recorder,
        Publisher(
            f"health/{name}",
            source=name,
            runtime=runtime,
            clock=clock.now_ns,
            endpoint=profile.endpoint_of(f"health/{name}"),
            insecure=profile.insecure,
            keys=profile.keys,
        ) as health,
        Subscriber(
            *config.topics,
            runtime=runtime,
            clock=clock.now_ns,
            connect=profile.connect,
            hosts=profile.other_hosts(),
            policies=EVERY_MESSAGE,
            insecure=profile.insecure,
            keys=profile.keys,
        ) as subscriber,
    ):
        _LOG.info("recording to %s", recorder.path)

        def report() -> None:
            health.send(
                Health(
                    stamp_ns=clock.now_ns(),
                    node=name,
                    status="degraded" if recorder.full else "ok",
                    reason=recorder.full,
                    inputs=subscriber.health(),
                    outputs={health.topic: health.published},
                    counts=recorder.counts,
                    device={PROCESS: os.getpid()},
                    hosts=subscriber.host_times(),
                )
            )

        record(
            subscriber,
            recorder,
            clock=clock.now_ns,
            stopped=stopped.is_set,
            linger_s=_LINGER_S,
            report=report,
        )
        _LOG.info("recorded %d messages to %s", recorder.counts["messages"], recorder.path)
        if recorder.full:
            raise SessionError(f"recording stopped: {recorder.full}")
        others = (one.consumed for topic, one in subscriber.health().items() if topic not in _ABOUT_RUNS)
        if not any(others):
            raise SessionError(
                f"{recorder.path}: nothing was recorded: no node published {', '.join(config.topics)}"
            )


if __name__ == "__main__":
    main("recorder", run, named=False)
