"""Video files as cameras, through PyAV."""

import threading
from collections.abc import Generator

from av.video.frame import VideoFrame

from perception.devices.device import CapturedFrame
from perception.devices.media import Track
from perception.devices.pixels import FilmPixels, Layout
from perception.profile import CameraConfig
from perception.units import Clock


class FileSource:
    """A video file, played as if live from `origin_ns` on."""

    def __init__(
        self, path: str, config: CameraConfig, *, clock: Clock, origin_ns: int, stop: threading.Event
    ) -> None:
        self._clock = clock
        self._origin_ns = origin_ns
        self._stop = stop
        start_s = max(clock() - origin_ns, 0) / 1e9
        self._track: Track[VideoFrame] = Track(path, "video", loop=config.loop, start_s=start_s)
        self._pixels = FilmPixels(Layout.of(config), self._track.pixel_aspect)
        self._frames = self._play()
        # Decode the first frame here, so that a damaged file is refused at the start.
        self._next_frame: tuple[int, VideoFrame] | None = next(self._frames, None)
        self._path = path

    @property
    def facts(self) -> dict[str, str | float]:
        """Device source, and size of the frames before they are resized."""
        return {"source": self._path, "stamps": "media", **self._pixels.facts}

    @property
    def corrupt(self) -> int:
        """Number of packets that could not be decoded and of frames that are damaged or depend on damage."""
        return self._track.corrupt

    @property
    def counts(self) -> dict[str, int]:
        """The same by name."""
        return {"corrupt": self.corrupt}

    def read(self) -> CapturedFrame | None:
        """Return the next frame when it is due; EOFError at the end of the file."""
        due = self._next_frame or next(self._frames, None)
        if due is None:
            raise EOFError("end of file")
        self._next_frame = due
        stamp_ns, frame = due
        wait_s = (stamp_ns - self._clock()) / 1e9
        if wait_s > 0 and self._stop.wait(wait_s):
            return None
        self._next_frame = None
        return CapturedFrame(self._pixels(frame), stamp_ns)

    def close(self) -> None:
        """Close the file."""
        self._frames.close()

    def _play(self) -> Generator[tuple[int, VideoFrame], None, None]:
        for lap_s, frames in self._track.laps():
            for seconds, frame in frames:
                yield self._origin_ns + round((lap_s + seconds) * 1e9), frame
