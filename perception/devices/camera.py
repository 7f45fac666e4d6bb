"""Cameras: V4L2 devices through OpenCV, video files and network streams through PyAV."""

import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.frame import VideoFrame

from perception.devices.device import CapturedFrame, Device
from perception.devices.grabber import FrameSource, Grabber
from perception.devices.media import Track, cause, is_file_name, open_container, without_password
from perception.errors import DeviceError
from perception.profile import CameraConfig, ScriptConfig

Clock = Callable[[], int]
Image = npt.NDArray[np.uint8]
_MAX_DRIVER_AGE_NS: Final = 1_000_000_000
_LIVE_OPTIONS: Final = {
    # Without these FFmpeg gathers frames to guess the rate, and hands them out late.
    "fflags": "nobuffer",
    "flags": "low_delay",
    "fpsprobesize": "0",
    "analyzeduration": "500000",
    "rtsp_transport": "tcp",
}


def open_camera(
    config: CameraConfig, script: ScriptConfig, *, clock: Clock, origin_ns: int
) -> Device[CapturedFrame]:
    """Open the camera a profile names.

    Args:
        config: its section of the profile.
        script: what a scripted camera plays.
        clock: host time in ns.
        origin_ns: host time at which a script or file starts.

    Raises:
        DeviceError: there is no such device, file or stream.
    """
    source = config.source
    if source == "scripted":
        from perception.devices.scripted import open_scripted_camera

        return open_scripted_camera(config, script, clock=clock, origin_ns=origin_ns)

    def open_source(stop: threading.Event) -> FrameSource:
        if isinstance(source, int) or source.startswith("/dev/"):
            return DeviceSource(source, config, clock=clock)
        if "://" in source:
            return StreamSource(source, config, clock=clock)
        if is_file_name(source):
            return FileSource(source, config, clock=clock, origin_ns=origin_ns, stop=stop)
        raise DeviceError(f"camera '{source}': not a device index, /dev path, file or URL; {_found()}")

    return Grabber(open_source, rate_hz=config.rate_hz)


class DeviceSource:
    """A camera of this machine. By a path under /dev/v4l/by-id it is found again wherever it reappears."""

    corrupt = 0

    def __init__(
        self,
        source: int | str,
        config: CameraConfig,
        *,
        clock: Clock,
        monotonic: Clock = time.monotonic_ns,
    ) -> None:
        self._name = str(source)
        self._size = (config.width, config.height)
        self._clock = clock
        self._monotonic = monotonic
        self._capture = _open_device(source)
        # Most cameras reach their rate at full size only as MJPEG; those without it keep their format.
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
        self._capture.set(cv2.CAP_PROP_FPS, config.rate_hz)
        self.facts: dict[str, str | float] = {
            "source": self._name,
            "width": self._capture.get(cv2.CAP_PROP_FRAME_WIDTH),
            "height": self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT),
            "rate_hz": self._capture.get(cv2.CAP_PROP_FPS),
        }

    def read(self) -> CapturedFrame:
        """Return the next frame; DeviceError if the device stopped delivering."""
        grabbed = self._capture.grab()
        host_ns, monotonic_ns = self._clock(), self._monotonic()
        stamp_ns = driver_stamp_ns(self._capture.get(cv2.CAP_PROP_POS_MSEC), monotonic_ns, host_ns)
        decoded, image = self._capture.retrieve() if grabbed else (False, None)
        if not decoded or image is None:
            raise DeviceError(f"{self._name}: stopped delivering frames")
        self.facts["stamps"] = "arrival" if stamp_ns is None else "driver"
        return CapturedFrame(_fit(image, self._size), host_ns if stamp_ns is None else stamp_ns)

    def close(self) -> None:
        """Release the device."""
        self._capture.release()


def driver_stamp_ns(position_ms: float, monotonic_ns: int, host_ns: int) -> int | None:
    """Map a driver's buffer time, if it is one on CLOCK_MONOTONIC, to the host clock.

    Backends that know no buffer time give the position in a file, zero or -1 instead, and some drivers
    stamp with the wall clock: a time not within the last second is none of ours.

    Args:
        position_ms: CAP_PROP_POS_MSEC of the frame.
        monotonic_ns: CLOCK_MONOTONIC, read together with
        host_ns: the host clock.
    """
    age_ns = monotonic_ns - round(position_ms * 1e6)
    return host_ns - age_ns if 0 <= age_ns <= _MAX_DRIVER_AGE_NS else None


def _open_device(source: int | str) -> cv2.VideoCapture:
    # OpenCV would wait ten seconds for a frame, and writes its own complaints to the terminal.
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
        raise DeviceError(f"camera {source}: is no camera, or another program is using it; {_found()}")
    return capture


def _found() -> str:
    by_id = sorted(str(path) for path in Path("/dev/v4l/by-id").glob("*"))
    names = by_id or sorted(str(path) for path in Path("/dev").glob("video[0-9]*"))
    return f"found: {', '.join(names)}" if names else "no camera is connected to this machine"


class FileSource:
    """A video file, played as if it were live from `origin_ns` on."""

    def __init__(
        self, path: str, config: CameraConfig, *, clock: Clock, origin_ns: int, stop: threading.Event
    ) -> None:
        self._size = (config.width, config.height)
        self._clock = clock
        self._origin_ns = origin_ns
        self._stop = stop
        start_s = max(clock() - origin_ns, 0) / 1e9
        self._track: Track[VideoFrame] = Track(path, "video", loop=config.loop, start_s=start_s)
        self._frames = self._play()
        # Decoded already here, so that a damaged file is refused at the start.
        self._ahead: tuple[int, VideoFrame] | None = next(self._frames, None)
        self.facts: dict[str, str | float] = {"source": path, "stamps": "media"}

    @property
    def corrupt(self) -> int:
        """Packets that could not be decoded so far."""
        return self._track.corrupt

    def read(self) -> CapturedFrame | None:
        """Return the next frame when it is due; EOFError when there is none."""
        due = self._ahead or next(self._frames, None)
        if due is None:
            raise EOFError("end of file")
        self._ahead = due
        stamp_ns, frame = due
        wait_s = (stamp_ns - self._clock()) / 1e9
        if wait_s > 0 and self._stop.wait(wait_s):
            return None
        self._ahead = None
        return CapturedFrame(_to_image(frame, self._size), stamp_ns)

    def close(self) -> None:
        """Close the file."""
        self._frames.close()

    def _play(self) -> Generator[tuple[int, VideoFrame], None, None]:
        for lap_s, frames in self._track.laps():
            for seconds, frame in frames:
                yield self._origin_ns + round((lap_s + seconds) * 1e9), frame


class StreamSource:
    """An HTTP MJPEG, RTSP or other network stream; a frame's stamp is the arrival of its packet."""

    def __init__(self, url: str, config: CameraConfig, *, clock: Clock) -> None:
        self._size = (config.width, config.height)
        self._clock = clock
        self._name = without_password(url)
        self._container = open_container(url, _LIVE_OPTIONS)
        if not self._container.streams.video:
            self._container.close()
            raise DeviceError(f"{self._name}: carries no video")
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE"  # frame threads would hold frames back
        self._packets = self._container.demux(stream)
        self.corrupt = 0
        self.facts: dict[str, str | float] = {
            "source": self._name,
            "format": f"{self._container.format.name}/{stream.codec_context.name}",
            "stamps": "arrival",
        }

    def read(self) -> CapturedFrame | None:
        """Return the next frame, None if a packet held none; DeviceError if the stream ended or stalled."""
        try:
            packet = next(self._packets)
        except (FFmpegError, OSError) as error:
            raise DeviceError(f"{self._name}: stopped delivering: {cause(error)}") from error
        except StopIteration:
            raise DeviceError(f"{self._name}: ended by its server") from None
        arrival_ns = self._clock()
        try:
            frames = packet.decode()
        except FFmpegError:
            self.corrupt += 1
            return None
        if not frames:
            return None
        frame = frames[-1]
        assert isinstance(frame, VideoFrame)
        if frame.is_corrupt:
            self.corrupt += 1
            return None
        return CapturedFrame(_to_image(frame, self._size), arrival_ns)

    def close(self) -> None:
        """Hang up."""
        self._container.close()


def _to_image(frame: VideoFrame, size: tuple[int, int]) -> Image:
    """Return a decoded frame as BGR of the given (width, height), the way up it was filmed."""
    turns = round(frame.rotation / 90) % 4
    if not turns:
        return frame.reformat(size[0], size[1], "bgr24").to_ndarray().astype(np.uint8, copy=False)
    return _fit(np.rot90(frame.to_ndarray(format="bgr24"), turns), size)


def _fit(image: npt.NDArray[np.generic], size: tuple[int, int]) -> Image:
    if image.shape[1::-1] != size:
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image, np.uint8)
