"""Camera frames to pixels, as far as possible before a window asks for them."""

from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from perception.features.image import Image, decode_frame
from perception.messages import CameraFrame, Message

_HELD: Final = 4
"""Frames decoded and not yet asked for: more than windows can be due before they are shed."""


class FrameDecoder:
    """Decodes frames of one camera, those that are expected to be needed in a thread of its own.

    What is expected changes when a frame is decoded, never its pixels.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: OrderedDict[Hashable, Future[Image]] = OrderedDict()

    def expect(self, message: Message[CameraFrame]) -> None:
        """Begin to decode a frame that a window will take; returns at once. From any one thread."""
        if message.header.encoding != "jpeg":
            return  # raw pixels are there already
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "decode")
        self._ahead[identity(message)] = self._thread.submit(decode_frame, message.header, message.payload)
        if len(self._ahead) > _HELD:
            self._ahead.popitem(last=False)[1].cancel()

    def decode(self, message: Message[CameraFrame]) -> Image:
        """Return the frame as (height, width, 3) BGR; ValueError if it cannot be decoded."""
        begun = self._ahead.pop(identity(message), None)
        return decode_frame(message.header, message.payload) if begun is None else begun.result()


def identity(message: Message[CameraFrame]) -> Hashable:
    """Return what no other frame has."""
    return message.header.source, message.header.stamp_ns
