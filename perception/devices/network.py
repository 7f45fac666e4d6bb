"""Network cameras: JPEG over HTTP in all variants that browsers show, RTSP, and everything FFmpeg reads.

Threads of `StreamSource`: the receiving thread (`_receive`) reads the feed's packets, stamps them and puts
them into the `Backlog`; it alone uses `_feed.packets`, closes the feed and updates `_sent`. The thread that
calls `read` decodes and owns all other fields; `facts` and `counts` may be read from any thread. `close` sets
`_stopped`; a thread that waits for a silent camera ends at its time limit.
"""

import errno
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, Protocol

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from perception.devices.arrival import StreamClock
from perception.devices.backlog import Arrived, Backlog
from perception.devices.damage import Damage, expose_damage
from perception.devices.device import CapturedFrame
from perception.devices.grabber import RateLimit
from perception.devices.media import cause, open_container, streams_of
from perception.devices.pixels import FilmPixels, Layout
from perception.errors import DeviceError
from perception.errors.credentials import standard_url, without_credentials
from perception.features.jpeg import JpegSplitter, check_restarts, claimed_size
from perception.profile import CameraConfig
from perception.units import SECOND_NS, Clock

STALL_S: Final = 5.0
"""A camera that sends no complete picture for this time is lost; at night some send one in three seconds."""
_POLL_S: Final = 0.1
_JOIN_S: Final = 1.0
_REORDERED: Final = 64
_SNIFFED_BYTES: Final = 1 << 16
_READ_BYTES: Final = 1 << 16
_LIVE_OPTIONS: Final = {
    # By default FFmpeg buffers frames to estimate the rate, and returns them late.
    "fflags": "nobuffer",
    "flags": "low_delay",
    "fpsprobesize": "0",
    "analyzeduration": "500000",
    "rtsp_transport": "tcp",
}
_FILM: Final = re.compile(r"\.(flv|m3u8?|mkv|mov|mp4|mpd|mpg|ts|webm)(\?.*)?$", re.IGNORECASE)
"""Files and playlists: opened directly, because some servers answer only one request."""
_JPEG_AFTER_TEXT: Final = re.compile(rb"[\t\r\n -~]*\xff\xd8\xff")
_TEXT_SO_FAR: Final = re.compile(rb"[\t\r\n -~]*\xff?\xd8?")


class Feed(Protocol):
    """The packets of a camera's video stream."""

    format: str
    context: VideoCodecContext
    aspect: float | None
    """Pixel aspect ratio, width / height; None if unknown."""

    @property
    def corrupt(self) -> int:
        """Number of incomplete or damaged pictures so far."""

    def packets(self, stopped: threading.Event) -> "Iterator[tuple[Packet[Any], int | None]]":
        """Yield (packet, its timestamp in ns or None) until the camera ends the stream."""

    def close(self) -> None:
        """Disconnect; do not call it while another thread waits for a packet."""


class JpegFeed:
    """JPEG pictures over HTTP: a stream of them, or one per request, requested at the camera's rate."""

    format = "http/mjpeg"
    aspect: float | None = None

    def __init__(self, url: str, rate_hz: float, container: InputContainer, begin: list[bytes]) -> None:
        self._url = url
        self._period_s = 1 / rate_hz
        self._container = container
        self._begin = begin
        self._splitter = JpegSplitter()
        self._refused = 0
        context = av.CodecContext.create("mjpeg", "r")
        assert isinstance(context, VideoCodecContext)
        self.context = context

    @property
    def corrupt(self) -> int:
        """Number of incomplete or damaged pictures so far."""
        return self._splitter.corrupt + self._refused

    def packets(self, stopped: threading.Event) -> "Iterator[tuple[Packet[Any], int | None]]":
        """Yield one packet per complete picture."""
        chunks = chain(self._begin, _chunks(self._container))
        single = self._begin[0].startswith(b"\xff\xd8")
        while True:
            requested_s, before = time.monotonic(), self._splitter.pictures
            for chunk in chunks:
                yield from self._whole(self._splitter.feed(chunk))
            self._splitter.end()
            if not single or self._splitter.pictures - before > 1:
                return
            if stopped.wait(max(requested_s + self._period_s - time.monotonic(), 0)):
                return
            self._container.close()
            self._container = _open_bytes(self._url)
            chunks = chain(_chunks(self._container))

    def close(self) -> None:
        """Disconnect."""
        self._container.close()

    def _whole(self, pictures: list[bytes]) -> "Iterator[tuple[Packet[Any], int | None]]":
        for picture in pictures:
            try:
                claimed_size(picture)
                check_restarts(picture)
            except ValueError:
                self._refused += 1
                continue
            packet: Packet[Any] = Packet(picture)
            packet.is_keyframe = True
            yield packet, None


class PacketFeed:
    """Any stream that FFmpeg can read."""

    corrupt = 0

    def __init__(self, url: str, name: str) -> None:
        self._container = open_container(url, _LIVE_OPTIONS)
        streams = streams_of(self._container, "video")
        if not streams:
            self._container.close()
            raise DeviceError(f"{name}: carries no video that can be decoded")
        stream = streams[0]
        assert isinstance(stream, VideoStream)
        self._stream = stream
        self.context = stream.codec_context
        self.aspect = float(stream.sample_aspect_ratio) if stream.sample_aspect_ratio else None
        self.format = f"{self._container.format.name}/{stream.codec_context.name}"

    def packets(self, stopped: threading.Event) -> "Iterator[tuple[Packet[Any], int | None]]":
        """Yield packets as they arrive."""
        base_ns = self._stream.time_base * SECOND_NS if self._stream.time_base else 0
        for packet in self._container.demux(self._stream):
            if packet.size:
                yield packet, None if packet.dts is None else round(packet.dts * base_ns)

    def close(self) -> None:
        """Disconnect."""
        self._container.close()


class StreamSource:
    """A network camera. A thread receives packets at once; late packets are dropped without decoding.

    A frame's stamp is the time its packet was sent, if the stream's timestamps show it, else the time it was
    received.
    """

    def __init__(self, url: str, config: CameraConfig, *, clock: Clock, stall_s: float = STALL_S) -> None:
        """Open the stream; DeviceError if that fails."""
        self._stall_s = stall_s
        self._name = without_credentials(url)
        self._clock = clock
        self._feed = open_feed(url, config.rate_hz)
        expose_damage(self._feed.context)
        self._pixels = FilmPixels(Layout.of(config), self._feed.aspect)
        self._pace = RateLimit.of(config.rate_hz)
        self._damage = Damage()
        self._backlog = Backlog()
        self._sent = StreamClock()
        self._stamps: deque[Arrived] = deque(maxlen=_REORDERED)
        self._counts: Counter[str] = Counter(superseded=0, over_rate=0)  # other threads read: no new keys
        self._age_ms = 0.0
        self._received_s, self._broken = time.monotonic(), 0
        """When the last packet was taken, and the number of damaged pictures at that time."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="network camera", daemon=True)
        self._thread.start()

    @property
    def facts(self) -> dict[str, str | float]:
        """Device source, format, size and age of the newest frame."""
        known = {"source": self._name, "format": self._feed.format}
        stamps = "stream" if self._sent.trusted else "arrival"
        return {**known, "stamps": stamps, "age_ms": round(self._age_ms, 1), **self._pixels.facts}

    @property
    def counts(self) -> dict[str, int]:
        """Number of damaged, late and superseded packets and pictures so far."""
        corrupt = Counter(corrupt=self._feed.corrupt)
        return self._counts + self._damage.counts + self._backlog.counts + corrupt

    def read(self) -> CapturedFrame | None:
        """Return the newest frame, None if there is none yet; DeviceError if the stream ended or stalled."""
        arrived = self._backlog.take(_POLL_S)
        now_s = time.monotonic()
        if arrived:
            self._received_s, self._broken = now_s, self._feed.corrupt
        elif now_s - self._received_s > self._stall_s:
            broken = self._feed.corrupt - self._broken
            sent = f", {broken} were damaged" if broken else ""
            raise DeviceError(f"{self._name}: sent no complete picture for {self._stall_s:g} s{sent}")
        if arrived and self._feed.context.codec.intra_only and not self._pace.admits(arrived[-1].stamp_ns):
            self._counts["over_rate"] += len(arrived)
            return None
        whole = [frame for one in arrived for frame in self._whole(one)]
        if not whole:
            return None
        frame = whole[-1]
        self._counts["superseded"] += len(whole) - 1
        sent_ns = (one.stamp_ns for one in self._stamps if one.packet.pts == frame.pts)
        stamp_ns = next(sent_ns, arrived[-1].stamp_ns)
        self._age_ms = (self._clock() - stamp_ns) / 1e6
        return CapturedFrame(self._pixels(frame), stamp_ns)

    def close(self) -> None:
        """Disconnect."""
        self._stopped.set()
        self._thread.join(_JOIN_S)  # a thread that waits for a silent camera ends at its time limit

    def _whole(self, arrived: Arrived) -> list[VideoFrame]:
        """Decode a packet; return the pictures that depend on undamaged data only."""
        self._damage.note(arrived.packet)
        if arrived.packet.pts is not None:
            self._stamps.append(arrived)
        try:
            frames = self._feed.context.decode(arrived.packet)
        except (FFmpegError, ValueError):  # ValueError: of PyAV 19, as for files
            self._damage.failed()
            return []
        return [frame for frame in frames if self._damage.admits(frame)]

    def _receive(self) -> None:
        error: Exception = DeviceError(f"{self._name}: ended by its server")
        try:
            for packet, time_ns in self._feed.packets(self._stopped):
                self._backlog.put(Arrived(packet, self._sent.stamp_ns(time_ns, self._clock())))
                if self._stopped.is_set():
                    break
        except (FFmpegError, OSError) as stopped:
            error = DeviceError(f"{self._name}: stopped delivering: {cause(stopped)}")
        except Exception as unexpected:
            error = unexpected
        finally:
            self._feed.close()
            self._backlog.end(error)


def open_feed(url: str, rate_hz: float) -> Feed:
    """Connect to a camera; DeviceError with a one-line reason if that fails."""
    url, name = standard_url(url), without_credentials(url)
    if re.match("https?://", url, re.IGNORECASE) and not _FILM.search(url):
        container = _open_bytes(url)
        begin = _begin(container, name)
        if _JPEG_AFTER_TEXT.match(b"".join(begin)):
            return JpegFeed(url, rate_hz, container, begin)
        container.close()
        if b"".join(begin).lstrip()[:1] == b"<":
            raise DeviceError(f"{name}: returns a web page, not a picture: check its path, and the login")
    return PacketFeed(url, name)


def _open_bytes(url: str) -> InputContainer:
    return open_container(url, {"raw_packet_size": str(_READ_BYTES)}, form="data", read_timeout_s=STALL_S)


def _chunks(container: InputContainer) -> Iterator[bytes]:
    try:
        for packet in container.demux():
            yield bytes(packet)
    except FFmpegError as error:
        # FFmpeg reports EIO where a server closes a response without a length
        if error.errno != errno.EIO:
            raise


def _begin(container: InputContainer, name: str) -> list[bytes]:
    """Return the first bytes, enough to decide whether they are text followed by JPEG."""
    begin: list[bytes] = []
    try:
        for chunk in _chunks(container):
            begin.append(chunk)
            data = b"".join(begin)
            if not _TEXT_SO_FAR.fullmatch(data) or len(data) > _SNIFFED_BYTES:
                break
    except (FFmpegError, OSError) as error:
        container.close()
        raise DeviceError(f"{name}: cannot be opened: {cause(error)}") from error
    return begin
