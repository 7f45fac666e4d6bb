"""Camera frames to pixels, as far as possible before a window asks for them."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from queue import SimpleQueue
from typing import Final

import msgspec

from perception.features.image import decode_frame
from perception.messages import CameraFrame, Message
from perception.units.arrays import Image

_HELD: Final = 4
"""Frames decoded and not yet asked for: more than windows can be due before they are shed."""


class _Ahead(msgspec.Struct):
    """A frame on its way through the decoder's thread. Cheaper than a future, which locks four times."""

    message: Message[CameraFrame]
    decoded: "SimpleQueue[Image | Exception]" = msgspec.field(default_factory=SimpleQueue)
    wanted: bool = True


class FrameDecoder:
    """Decodes frames of one camera, those that are expected to be needed in a thread of its own.

    What is expected changes when a frame is decoded, never its pixels.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[_Ahead | None] | None = None
        self._ahead: OrderedDict[Hashable, _Ahead] = OrderedDict()

    def expect(self, message: Message[CameraFrame]) -> None:
        """Begin to decode a frame that a window will take; returns at once. From any one thread."""
        if message.header.encoding != "jpeg":
            return  # raw pixels are there already
        if self._asked is None:
            self._asked = SimpleQueue()
            threading.Thread(target=_decode, args=(self._asked,), name="decode", daemon=True).start()
            weakref.finalize(self, self._asked.put, None)
        ahead = self._ahead[identity(message)] = _Ahead(message)
        self._asked.put(ahead)
        if len(self._ahead) > _HELD:
            self._ahead.popitem(last=False)[1].wanted = False

    def decode(self, message: Message[CameraFrame]) -> Image:
        """Return the frame as (height, width, 3) BGR; ValueError if it cannot be decoded."""
        ahead = self._ahead.pop(identity(message), None)
        if ahead is None:
            return decode_frame(message.header, message.payload)
        decoded = ahead.decoded.get()
        if isinstance(decoded, Exception):
            raise decoded
        return decoded


def identity(message: Message[CameraFrame]) -> Hashable:
    """Return what no other frame has."""
    return message.header.source, message.header.stamp_ns


def _decode(asked: "SimpleQueue[_Ahead | None]") -> None:
    """Thread body; ends with None. Whatever goes wrong is told to who asks for the frame."""
    while (ahead := asked.get()) is not None:
        if ahead.wanted:
            try:
                ahead.decoded.put(decode_frame(ahead.message.header, ahead.message.payload))
            except Exception as error:
                ahead.decoded.put(error)
        del ahead  # while it is referred to, its frame keeps a slot of shared memory
