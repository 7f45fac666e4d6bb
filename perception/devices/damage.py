"""Refuses decoded pictures that depend on damaged data: damage lasts until an undamaged key frame."""

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
"""More packets than any codec delays for reordering (H.264 and HEVC: 16)."""
_REFRESHED: Final = 300
"""Pictures after which a stream without key frames (intra refresh) counts as undamaged again."""


def expose_damage(context: VideoCodecContext) -> None:
    """Configure a decoder to report damage; call it before the first packet.

    With slice threads FFmpeg conceals damage without a flag; frame threads delay frames.
    """
    context.thread_type = "NONE"
    if context.name == "mjpeg":  # otherwise it fills gaps from the previous picture and reports success
        context.options = {**context.options, "err_detect": "explode"}


def decode_jpeg(layout: Layout) -> Callable[[npt.NDArray[np.generic]], Image]:
    """Return a decoder of JPEG bytes to images in this layout; it raises ValueError for a damaged one."""
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
    """Refuses damaged pictures and those predicted from them, until the next undamaged key frame.

    Decoders conceal gaps with parts of earlier pictures and flag at most the first concealed picture; the
    following ones are predicted from it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(corrupt=0, after_damage=0)  # other threads read it: no new keys
        """`corrupt`: damaged packets and pictures; `after_damage`: pictures that depend on them."""
        self._lasting = self._suspect = False
        self._refused = 0
        self._packets: deque[int | None] = deque(maxlen=_REORDERED)
        """Times of the damaged packets."""
        self._key_pts: int | None = None

    def failed(self) -> None:
        """Count a packet that could not be decoded."""
        self.counts["corrupt"] += 1
        self._begin()

    def note(self, packet: "Packet[Any]") -> None:
        """Check the flags of a packet before it is decoded."""
        # FFmpeg's parsers return a packet once the next has begun: the flag may belong to the next one.
        if packet.is_corrupt or self._suspect:
            self._packets.append(packet.pts)
            self.failed()
        self._suspect = packet.is_corrupt

    def admits(self, frame: VideoFrame) -> bool:
        """Return whether a picture depends on undamaged data only; call it in decoding order."""
        known = frame.pts is not None and frame.pts in self._packets
        if frame.is_corrupt or known:
            self.counts["corrupt"] += not known  # a damaged packet was counted already
            # Pictures shown before a key frame but sent after it lack their reference after a seek.
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
