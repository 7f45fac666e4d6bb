"""Publishes one microphone of a profile: `python -P -m perception.nodes.microphone PROFILE --name desk`."""

import threading
from typing import TYPE_CHECKING

from perception.graph.capture_loop import CaptureLoop
from perception.profile import Profile

from .node import main

if TYPE_CHECKING:
    from perception.devices.device import CapturedBlock, Device


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Publish blocks until the microphone ends or the node is stopped."""
    with CaptureLoop("microphone", name, profile, stopped) as loop:
        config = loop.section(profile.microphone)
        blocks = loop.publisher(f"microphone/{name}", config.endpoint)
        # numpy and PortAudio load while readers find the publisher
        from perception.devices.microphone import open_microphone, signal_limits
        from perception.devices.signal.blocks import BlockJudge
        from perception.devices.signal.timing import DeviceJudge, StreamJudge
        from perception.devices.wire import block_message

        def opened() -> "Device[CapturedBlock]":
            return open_microphone(config, profile.script, clock=loop.clock, origin_ns=loop.origin_ns)

        with loop.opened(opened) as microphone:
            limits = signal_limits(config)
            timing = StreamJudge(limits, 1000 / config.block_ms, loop.begins_ns())
            judge = DeviceJudge(BlockJudge(limits, config.rate_hz), timing)

            def publish(block: "CapturedBlock") -> None:
                blocks.send(*block_message(block, config, judge.condition))

            loop.run(microphone, publish, judge)


if __name__ == "__main__":
    main("microphone", run)
