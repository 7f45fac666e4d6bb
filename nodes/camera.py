"""Publishes one camera of a profile: `python -P -m perception.nodes.camera PROFILE --name front`."""

import threading
from typing import TYPE_CHECKING

from perception.bus.lane import Loan
from perception.profile import Profile

from .capture import CaptureNode
from .node import main

if TYPE_CHECKING:
    from perception.devices.device import CapturedFrame


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Publish frames until the camera ends or the node is stopped."""
    with CaptureNode("camera", name, profile, stopped) as node:
        config = node.section(profile.camera)
        frames = node.publisher(f"camera/{name}", config.endpoint)
        # OpenCV loads while readers find the publisher
        from perception.devices.camera import open_camera
        from perception.devices.signal import FrameCheck
        from perception.devices.wire import frame_message

        check = FrameCheck()

        def publish(frame: "CapturedFrame") -> None:
            check.update(frame)
            header, payload = frame_message(frame, config)
            frames.send(header, frame.lent if isinstance(frame.lent, Loan) else payload)

        with open_camera(
            config, profile.script, clock=node.clock, origin_ns=node.origin_ns, lend=frames.loan
        ) as camera:
            node.run(camera, publish, check)


if __name__ == "__main__":
    main("camera", run)
