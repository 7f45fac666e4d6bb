"""Camera frames to pixels, decoded ahead of the window where possible.

Rules. Three threads meet here. The receiving thread calls `expect`, which never waits. The compute thread
calls `decode`, which waits for a frame that is being decoded. The thread `decode` of this module decodes what
was expected, in order; it starts with the first expected JPEG and ends when the `FrameDecoder` is collected.
A frame decodes to the same pixels whether or not it was expected.
"""

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

_MAX_AHEAD: Final = 4
"""Frames expected and not yet requested by `decode`: more than windows can be due before they are shed."""


class _Ahead(msgspec.Struct):
    """A frame on its way through the decoder's thread. Cheaper than a future, which locks four times."""

    message: Message[CameraFrame]
    decoded: "SimpleQueue[Image | Exception]" = msgspec.field(default_factory=SimpleQueue)
    """The decoder's thread puts, the compute thread gets."""
    wanted: bool = True
    """The receiving thread clears it; the decoder's thread reads it, at worst decodes one frame too many."""


class FrameDecoder:
    """Decodes the frames of one camera, those that are expected to be used in a thread of its own."""

    def __init__(self) -> None:
        self._expected: SimpleQueue[_Ahead | None] | None = None
        """To the decoder's thread; None ends it. The receiving thread owns it."""
        self._ahead: OrderedDict[Hashable, _Ahead] = OrderedDict()
        """The receiving thread adds and drops, the compute thread pops: single steps of a dict, no lock."""

    def expect(self, message: Message[CameraFrame]) -> None:
        """Start to decode a frame that a window will use; return at once. Receiving thread only."""
        if message.header.encoding != "jpeg":
            return  # raw pixels need no decoding
        if self._expected is None:
            self._expected = SimpleQueue()
            threading.Thread(target=_decode, args=(self._expected,), name="decode", daemon=True).start()
            weakref.finalize(self, self._expected.put, None)
        ahead = self._ahead[identity(message)] = _Ahead(message)
        self._expected.put(ahead)
        if len(self._ahead) > _MAX_AHEAD:
            self._ahead.popitem(last=False)[1].wanted = False

    def decode(self, message: Message[CameraFrame]) -> Image:
        """Return the frame as (height, width, 3) BGR; raise ValueError if it cannot be decoded."""
        ahead = self._ahead.pop(identity(message), None)
        if ahead is None:
            return decode_frame(message.header, message.payload)
        decoded = ahead.decoded.get()
        if isinstance(decoded, Exception):
            raise decoded
        return decoded


def identity(message: Message[CameraFrame]) -> Hashable:
    """Return a key that no other frame has."""
    return message.header.source, message.header.stamp_ns


def _decode(expected: "SimpleQueue[_Ahead | None]") -> None:
    """Thread body; ends with None. An error goes to the thread that calls `decode`."""
    while (ahead := expected.get()) is not None:
        if ahead.wanted:
            try:
                ahead.decoded.put(decode_frame(ahead.message.header, ahead.message.payload))
            except Exception as error:
                ahead.decoded.put(error)
        del ahead  # a reference to it keeps its frame's slot of shared memory
