"""Which decoded pictures rest on whole data: damage lasts until a whole key frame."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from av import CodecContext
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from perception.devices.pixels import FilmPixels, Layout
from perception.features.jpeg import check_restarts, claimed_size
from perception.units.arrays import Image

_REORDERED: Final = 64
"""More packets than any codec holds back (H.264 and HEVC: 16)."""
_REFRESHED: Final = 300
"""Pictures after which a stream without key frames, refreshed part by part, counts as whole again."""


def expose_damage(context: VideoCodecContext) -> None:
    """Set up a decoder so that it says what is damaged, before its first packet.

    With slice threads FFmpeg conceals damage and does not flag it; frame threads would hold frames back.
    """
    context.thread_type = "NONE"
    if (
        context.name == "mjpeg"
    ):  # else it fills what is missing with the picture before, and calls that success
        context.options = {**context.options, "err_detect": "explode"}


def decode_jpeg(layout: Layout) -> Callable[[npt.NDArray[np.generic]], Image]:
    """Return what decodes the bytes of JPEG pictures, laid out; it raises ValueError for a damaged one."""
    context = CodecContext.create("mjpeg", "r")
    assert isinstance(context, VideoCodecContext)
    expose_damage(context)
    pixels = FilmPixels(layout)

    def decode(data: npt.NDArray[np.generic]) -> Image:
        claimed_size(picture := data.tobytes())
        check_restarts(picture)
        try:
            frames = context.decode(Packet(picture))
        except FFmpegError as error:
            raise ValueError(f"JPEG of {len(picture)} bytes is damaged") from error
        if not frames:
            raise ValueError(f"JPEG of {len(picture)} bytes holds no picture")
        return pixels(frames[-1])

    return decode


class Damage:
    """Refuses pictures that are damaged, and those predicted from them, until the next whole key frame.

    Decoders conceal what is missing with parts of earlier pictures and flag at most the first that they
    patched; all that follow are predicted from it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(corrupt=0, after_damage=0)  # other threads read it: no new keys
        """`corrupt`: packets and pictures damaged themselves; `after_damage`: those that rest on them."""
        self._lasting = self._suspect = False
        self._refused = 0
        self._packets: deque[int | None] = deque(maxlen=_REORDERED)
        """Times of the damaged packets."""
        self._key_pts: int | None = None

    def failed(self) -> None:
        """Take note of a packet that could not be decoded."""
        self.counts["corrupt"] += 1
        self._begin()

    def note(self, packet: "Packet[Any]") -> None:
        """Take in a packet before it is decoded."""
        # FFmpeg's parsers hand out a packet once the next has begun: the flag may be meant for that one.
        if packet.is_corrupt or self._suspect:
            self._packets.append(packet.pts)
            self.failed()
        self._suspect = packet.is_corrupt

    def admits(self, frame: VideoFrame) -> bool:
        """Return whether a picture rests on whole data only; in the order in which they are decoded."""
        known = frame.pts is not None and frame.pts in self._packets
        if frame.is_corrupt or known:
            self.counts["corrupt"] += not known  # a damaged packet was counted already
            # Pictures shown before a key frame but sent after it lack what they rest on after any leap.
            if self._key_pts is None or frame.pts is None or frame.pts > self._key_pts or frame.key_frame:
                self._begin()
            return False
        if frame.key_frame:
            self._lasting, self._key_pts = False, frame.pts
        if self._lasting:
            self.counts["after_damage"] += 1
            self._refused += 1
            self._lasting = self._refused < _REFRESHED
            return False
        return True

    def _begin(self) -> None:
        self._lasting, self._refused = True, 0
