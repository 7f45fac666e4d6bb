"""Publishes one text source of a profile: `python -P -m perception.nodes.text PROFILE --name operator`.

A scripted source also publishes the ground truth on `label/truth`.
"""

import threading

from perception.graph.capture_loop import CaptureLoop
from perception.profile import Profile

from .node import main


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Publish lines until the source ends or the node is stopped."""
    with CaptureLoop("text", name, profile, stopped) as loop:
        config = loop.section(profile.text)
        lines = loop.publisher(f"text/{name}", config.endpoint)
        truth = loop.publisher("label/truth") if config.source == "scripted" else None
        # numpy loads while readers find the publishers
        from perception.devices.device import CapturedLabel, CapturedText, Device
        from perception.devices.text import open_text
        from perception.devices.wire import label_message, text_message

        def publish(item: CapturedText | CapturedLabel) -> None:
            if isinstance(item, CapturedText):
                lines.send(text_message(item, config.language))
            elif truth is not None:
                truth.send(label_message(item))

        def opened() -> "Device[CapturedText | CapturedLabel]":
            return open_text(config, profile.script, clock=loop.clock, origin_ns=loop.origin_ns)

        with loop.opened(opened) as source:
            loop.run(source, publish)


if __name__ == "__main__":
    main("text", run)
