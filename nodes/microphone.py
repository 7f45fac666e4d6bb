"""Publishes one microphone of a profile: `python -P -m perception.nodes.microphone PROFILE --name desk`."""

import threading

from perception.devices.device import CapturedBlock
from perception.devices.microphone import open_microphone
from perception.devices.signal import BlockCheck
from perception.devices.wire import block_message
from perception.profile import Profile

from .capture import CaptureNode
from .node import main


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Publish blocks until the microphone ends or the node is stopped."""
    with CaptureNode("microphone", name, profile, stopped) as node:
        config = node.section(profile.microphone)
        check = BlockCheck()
        with open_microphone(
            config, profile.script, clock=node.clock, origin_ns=node.origin_ns
        ) as microphone:
            blocks = node.publisher(f"microphone/{name}", config.endpoint)

            def publish(block: CapturedBlock) -> None:
                check.update(block)
                blocks.send(*block_message(block, config))

            node.run(microphone, publish, check)


if __name__ == "__main__":
    main("microphone", run)
