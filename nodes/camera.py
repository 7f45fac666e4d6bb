"""Publishes one camera of a profile: `python -P -m perception.nodes.camera PROFILE --name front`."""

import threading
from functools import partial
from typing import TYPE_CHECKING

from perception.bus.lane import Loan
from perception.graph.capture_loop import CaptureLoop
from perception.messages import Header, Payload
from perception.profile import CameraConfig, Profile

from .node import main

if TYPE_CHECKING:
    from perception.devices.device import CapturedFrame, Device


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Publish frames until the camera ends or the node is stopped."""
    with CaptureLoop("camera", name, profile, stopped) as loop:
        config = loop.section(profile.camera)
        compressed = profile.keys is not None and config.endpoint_jpeg and config.encoding != "jpeg"
        remote = partial(_compressed, config) if compressed else None
        frames = loop.publisher(f"camera/{name}", config.endpoint, remote)
        # OpenCV loads while readers find the publisher
        from perception.devices.camera import open_camera
        from perception.devices.signal.frames import FrameJudge
        from perception.devices.signal.timing import DeviceJudge, StreamJudge, camera_rate_hz
        from perception.devices.wire import frame_message

        def opened() -> "Device[CapturedFrame]":
            start_ns, lend = loop.origin_ns, frames.loan
            return open_camera(config, profile.script, clock=loop.clock, origin_ns=start_ns, lend=lend)

        with loop.opened(opened) as camera:
            rate_hz = camera_rate_hz(config, camera.report().facts)
            judge = DeviceJudge(
                FrameJudge(config.limits), StreamJudge(config.signal, rate_hz, loop.begins_ns())
            )

            def publish(frame: "CapturedFrame") -> None:
                header, payload = frame_message(frame, config, judge.condition)
                frames.send(header, frame.lent if isinstance(frame.lent, Loan) else payload)

            loop.run(camera, publish, judge)


def _compressed(config: CameraConfig, header: Header, payload: Payload) -> tuple[Header, Payload]:
    from perception.devices.wire import as_jpeg

    return as_jpeg(header, payload, config.jpeg_quality)


if __name__ == "__main__":
    main("camera", run)
