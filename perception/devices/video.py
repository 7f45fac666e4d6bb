"""Video files and network streams as cameras, through PyAV."""

import threading
from collections.abc import Callable, Generator
from typing import Final

from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from perception.credentials import without_credentials
from perception.devices.device import CapturedFrame
from perception.devices.media import Track, cause, open_container, streams_of
from perception.devices.pixels import FilmPixels, Layout
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
        self._clock = clock
        self._origin_ns = origin_ns
        self._stop = stop
        start_s = max(clock() - origin_ns, 0) / 1e9
        self._track: Track[VideoFrame] = Track(path, "video", loop=config.loop, start_s=start_s)
        self._pixels = FilmPixels(Layout.of(config), self._track.pixel_aspect)
        self._frames = self._play()
        # Decoded already here, so that a damaged file is refused at the start.
        self._ahead: tuple[int, VideoFrame] | None = next(self._frames, None)
        self._path = path

    @property
    def facts(self) -> dict[str, str | float]:
        """Where the frames come from, and their size before it is changed."""
        return {"source": self._path, "stamps": "media", **_size(self._pixels)}

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
        return CapturedFrame(self._pixels(frame), stamp_ns)

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
        self._clock = clock
        self._name = without_credentials(url)
        self._container = open_container(url, _LIVE_OPTIONS)
        streams = streams_of(self._container, "video")
        if not streams:
            self._container.close()
            raise DeviceError(f"{self._name}: carries no video that can be decoded")
        stream = streams[0]
        assert isinstance(stream, VideoStream)
        aspect = stream.sample_aspect_ratio
        self._pixels = FilmPixels(Layout.of(config), float(aspect) if aspect else None)
        stream.thread_type = "NONE"  # frame threads would hold frames back
        self._packets = self._container.demux(stream)
        self.corrupt = 0
        self._format = f"{self._container.format.name}/{stream.codec_context.name}"

    @property
    def facts(self) -> dict[str, str | float]:
        """Where the frames come from, how they are coded, and their size before it is changed."""
        known = {"source": self._name, "format": self._format, "stamps": "arrival"}
        return {**known, **_size(self._pixels)}

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
        return CapturedFrame(self._pixels(frame), arrival_ns)

    def close(self) -> None:
        """Hang up."""
        self._container.close()


def _size(pixels: FilmPixels) -> dict[str, str | float]:
    return {} if pixels.size is None else {"width": pixels.size[0], "height": pixels.size[1]}
