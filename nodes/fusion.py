"""Runs the fusion of a profile: `python -P -m perception.nodes.fusion PROFILE`."""

import gc
import logging
import threading
from typing import Final

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.fusion.core import FusionCore
from perception.graph.fusion_loop import FusionLoop, Outputs
from perception.graph.judging import Judging
from perception.profile import Profile

from .node import main

_LOG: Final = logging.getLogger(__name__)


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Build and warm up the models, then run the fusion loop until stopped."""
    config = profile.required_fusion()
    runtime, clock = Runtime(profile.domain), HostClock().now_ns
    core = FusionCore(config)
    topics = [item.topic for item in config.inputs.values()]

    def publisher(topic: str, endpoint: str | None = None) -> Publisher:
        return Publisher(
            topic,
            source=name,
            runtime=runtime,
            clock=clock,
            endpoint=endpoint,
            insecure=profile.insecure,
            keys=profile.keys,
        )

    with (
        publisher(f"state/{config.name}", config.endpoint) as state,
        publisher(f"clock/{name}") as ticks,
        publisher(f"journal/{name}") as journal,
        publisher(f"health/{name}") as health,
        publisher(f"head/{name}") as head,
    ):
        # torch takes seconds to import; meanwhile a recorder finds the outputs
        from perception.fusion.build import build_engine, use_threads
        from perception.fusion.compute import Compute

        use_threads(config.threads)
        engine = build_engine(config, clock=clock)
        engine.warm_up()
        gc.freeze()  # models are permanent: a full collection would scan them for a tenth of a second
        _LOG.info("ready on %s: %s", engine.device, ", ".join(engine.encoders))
        with Subscriber(
            *topics,
            f"control/{name}",
            runtime=runtime,
            clock=clock,
            connect=profile.connect,
            insecure=profile.insecure,
            keys=profile.keys,
        ) as inbox:
            compute = Compute(engine, state.send, clock)
            compute.start()
            outputs = Outputs(state, ticks, journal, health, head)
            judging = Judging({f"camera/{key}": item.signal for key, item in profile.camera.items()})
            FusionLoop(core, compute, inbox, outputs, clock, judging).run(stopped)


if __name__ == "__main__":
    main("fusion", run, named=False)
