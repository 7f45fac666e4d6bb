"""Video files and network streams as cameras, through PyAV."""

import threading
from collections.abc import Callable, Generator
from typing import Final

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

from perception.credentials import without_credentials
from perception.devices.camera import Image, fit
from perception.devices.device import CapturedFrame
from perception.devices.media import Track, cause, open_container
from perception.errors import DeviceError
from perception.profile import CameraConfig

Clock = Callable[[], int]
_LIVE_OPTIONS: Final = {
    # Without these FFmpeg gathers frames to guess the rate, and hands them out late.
    "fflags": "nobuffer",
    "flags": "low_delay",
    "fpsprobesize": "0",
    "analyzeduration": "500000",
    "rtsp_transport": "tcp",
}


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
        self._name = without_credentials(url)
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
    return fit(np.rot90(frame.to_ndarray(format="bgr24"), turns), size)
