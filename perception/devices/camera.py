"""Cameras: opens the device source of a profile; cameras of this machine through OpenCV."""

import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedFrame, Device, Lend
from perception.devices.grabber import FrameSource, Grabber
from perception.devices.pixels import Layout
from perception.errors import DeviceError
from perception.profile import CameraConfig, ScriptConfig, source_kind
from perception.units import SECOND_NS, Clock
from perception.units.arrays import Image

_CONVERT: Final = cv2.CAP_PROP_CONVERT_RGB
_UNCOMPRESSED: Final = (
    *(b"YUYV", b"YUY2", b"UYVY", b"YVYU", b"NV12", b"NV21", b"YU12", b"YV12", b"422P", b"411P"),
    *(b"GREY", b"Y16 ", b"BGR3", b"RGB3", b"BA81", b"GBRG", b"GRBG", b"RGGB"),
)
"""V4L2's codes of uncompressed pixel formats."""
_STUCK_S: Final = 2.5
"""Longer than the time limit of OpenCV for a frame, see `_open_device`: then its driver blocks."""
_MAX_DRIVER_AGE_NS: Final = SECOND_NS


def open_camera(
    config: CameraConfig, script: ScriptConfig, *, clock: Clock, origin_ns: int, lend: Lend | None = None
) -> Device[CapturedFrame]:
    """Open the camera that a profile names.

    Args:
        config: its section of the profile.
        script: what a scripted camera plays.
        clock: host time in ns.
        origin_ns: host time at which a script or file starts.
        lend: returns memory for raw frames; a device's frames are written there directly.

    Raises:
        DeviceError: there is no such device, file or stream.
    """
    source, kind = config.source, source_kind(config.source)
    if kind == "scripted":
        from perception.devices.scripted import open_scripted_camera

        return open_scripted_camera(config, script, clock=clock, origin_ns=origin_ns)

    def open_source(stop: threading.Event) -> FrameSource:
        if kind == "device":
            return DeviceSource(source, config, clock=clock, lend=lend)
        if kind == "address":
            from perception.devices.network import StreamSource  # loads FFmpeg, as files do

            return StreamSource(str(source), config, clock=clock)
        if kind == "file":
            from perception.devices.video import FileSource

            return FileSource(str(source), config, clock=clock, origin_ns=origin_ns, stop=stop)
        raise DeviceError(f"camera '{source}': not a device index, /dev path, file or URL; {_found()}")

    # a file waits for the time of its frames, an address has time limits of its own
    stuck_s = max(_STUCK_S, 3 / config.rate_hz) if kind == "device" else math.inf
    return Grabber(open_source, rate_hz=config.rate_hz, stuck_s=stuck_s)


class DeviceSource:
    """A camera of this machine. A path under /dev/v4l/by-id finds it again at another port.

    One thread calls all methods: that of `Grabber`.
    """

    def __init__(
        self,
        source: int | str,
        config: CameraConfig,
        *,
        clock: Clock,
        monotonic: Clock = time.monotonic_ns,
        lend: Lend | None = None,
        open_device: Callable[..., cv2.VideoCapture] | None = None,
    ) -> None:
        self._name = str(source)
        self._layout = Layout.of(config)
        self._clock = clock
        self._monotonic = monotonic
        self._lend = lend if config.encoding != "jpeg" else None
        self._shape = (config.height, config.width, 3)[: 2 if config.encoding == "mono8" else 3]
        self._capture = (open_device or _open_device)(source)
        # Most cameras reach their full rate and size only with MJPEG; without MJPEG the format is unchanged.
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        width, height = self._layout.before((config.width, config.height))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        self._capture.set(cv2.CAP_PROP_FPS, config.rate_hz)
        self.facts: dict[str, str | float] = {
            "source": self._name,
            "width": self._capture.get(cv2.CAP_PROP_FRAME_WIDTH),
            "height": self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT),
            "rate_hz": self._capture.get(cv2.CAP_PROP_FPS),
        }
        self.counts: Counter[str] = Counter(corrupt=0)  # other threads read it: no new keys
        form = int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
        self._raw = form in _UNCOMPRESSED
        # OpenCV conceals damage of a JPEG, so its conversion is switched off. This must be the last setting.
        as_sent = form == b"MJPG" and self._capture.getBackendName() == "V4L2"
        self._decode = _decoder(self._layout) if as_sent and self._capture.set(_CONVERT, 0) else None

    def read(self) -> CapturedFrame | None:
        """Return the next frame, None if it is damaged; DeviceError if the device stopped delivering."""
        grabbed = self._capture.grab()
        host_ns, monotonic_ns = self._clock(), self._monotonic()
        stamp_ns = driver_stamp_ns(self._capture.get(cv2.CAP_PROP_POS_MSEC), monotonic_ns, host_ns)
        lent = self._lend(math.prod(self._shape)) if grabbed and self._lend is not None else None
        target = None if lent is None else np.frombuffer(lent.data, np.uint8).reshape(self._shape)
        into = _if_colour(target) if self._decode is None else None
        decoded, image = self._capture.retrieve(into) if grabbed else (False, None)
        if not decoded or image is None:
            raise DeviceError(f"{self._name}: stopped delivering frames")
        self.facts["stamps"] = "arrival" if stamp_ns is None else "driver"
        try:
            laid_out = self._decode(image) if self._decode else self._layout.of_image(image)
        except ValueError:
            self.counts["corrupt"] += 1
            return None
        if target is None:
            target = laid_out
        elif not np.shares_memory(laid_out, target):
            _write(laid_out, target)
        stamp_ns = host_ns if stamp_ns is None else stamp_ns
        return CapturedFrame(target, stamp_ns, raw=self._raw, lent=lent)

    def close(self) -> None:
        """Release the device."""
        self._capture.release()


def _decoder(layout: Layout) -> Callable[[npt.NDArray[np.generic]], Image]:
    from perception.devices.damage import decode_jpeg  # loads FFmpeg

    return decode_jpeg(layout)


def driver_stamp_ns(position_ms: float, monotonic_ns: int, host_ns: int) -> int | None:
    """Return the host time of a driver's buffer time; None if it is not on CLOCK_MONOTONIC.

    Backends without buffer times return a position in a file, 0 or -1, and some drivers stamp with the wall
    clock: a time that is not within the last second is not used.

    Args:
        position_ms: CAP_PROP_POS_MSEC of the frame.
        monotonic_ns: CLOCK_MONOTONIC, read together with
        host_ns: the host clock.
    """
    age_ns = monotonic_ns - round(position_ms * 1e6)
    return host_ns - age_ns if 0 <= age_ns <= _MAX_DRIVER_AGE_NS else None


def _open_device(source: int | str) -> cv2.VideoCapture:
    # By default OpenCV waits ten seconds for a frame and logs to the terminal.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if sys.platform != "linux" and isinstance(source, int):
        capture = cv2.VideoCapture(source)
    else:
        path = Path(f"/dev/video{source}" if isinstance(source, int) else source)
        if not path.exists():
            raise DeviceError(f"camera {path}: no such device; {_found()}")
        if not os.access(path, os.R_OK | os.W_OK):
            raise DeviceError(f"camera {path}: no permission; add your user to the group of that file")
        capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise DeviceError(f"camera {source}: not a camera, or in use by another program; {_found()}")
    return capture


def _found() -> str:
    by_id = sorted(str(path) for path in Path("/dev/v4l/by-id").glob("*"))
    names = by_id or sorted(str(path) for path in Path("/dev").glob("video[0-9]*"))
    return f"found: {', '.join(names)}" if names else "no camera is connected to this machine"


def _if_colour(target: Image | None) -> Image | None:
    return target if target is not None and target.ndim == 3 else None


def _write(image: Image, target: Image) -> None:
    """Write a BGR image to `target` of the same size, converted to grey if `target` is grey."""
    if target.ndim == 2:
        cv2.cvtColor(image, cv2.COLOR_BGR2GRAY, dst=target)
    else:
        np.copyto(target, image)
