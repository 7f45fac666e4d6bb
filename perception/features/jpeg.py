"""The structure of JPEG pictures: their end in a stream of bytes, and the size in their header.

Pure, and nothing is decoded: a walk from marker to marker costs a hundredth of decoding. Markers are those of
ITU-T T.81, table B.1.
"""

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

MAX_PIXELS: Final = 8192 * 8192
"""More than any profile can request; decoded it takes 200 MB."""
MAX_BYTES: Final = 64 << 20
_PIXELS_PER_BYTE: Final = 8 * 64
"""A block of 8 x 8 pixels takes at least one bit: a header that claims more pixels is an attack."""

_BASELINE, _EXTENDED, _START, _END, _SCAN, _INTERVAL = 0xC0, 0xC1, 0xD8, 0xD9, 0xDA, 0xDD
_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FOLLOWS_SCAN: Final = frozenset((0xC4, _SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)))
_FIRST: Final = b"\xff\xd8\xff"
_IN_SCAN: Final = np.isin(np.arange(256), (0x00, *range(0xD0, 0xD8), 0xFF))
"""What may follow 0xFF in coded data: a stuffed zero, a restart, a filling 0xFF."""
_TEXT: Final = re.compile(rb"[\t\r\n -~]*")
_PADDING: Final = b"\x00\xff"


def claimed_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return the (width, height) in a JPEG's header, in pixels.

    Raises:
        ValueError: it is no JPEG, or it claims more pixels than its bytes can contain.
    """
    for marker, at, end in _segments(data):
        if marker in _FRAME and end - at >= 9:
            height, width = (int.from_bytes(data[place : place + 2], "big") for place in (at + 5, at + 7))
            allowed = min(MAX_PIXELS, len(data) * _PIXELS_PER_BYTE)
            if width * height > allowed:
                claim = f"claims to be {width} x {height}, allowed are {allowed} pixels"
                raise ValueError(f"JPEG of {len(data)} bytes {claim}")
            return width, height
    raise ValueError(f"payload of {len(data)} bytes is no JPEG")


def check_restarts(data: bytes) -> None:
    """Check the restart markers of a picture in one scan: decoders skip to the next one without an error.

    Raises:
        ValueError: some are missing, or their numbers do not follow each other.
    """
    frame, interval, coded = b"", 0, len(data)
    for marker, at, end in _segments(data):
        if marker in (_BASELINE, _EXTENDED):
            frame = data[at:end]
        elif marker == _INTERVAL:
            interval = int.from_bytes(data[at + 4 : at + 6], "big")
        elif marker == _SCAN:
            coded = end
            if frame[9:10] != data[at + 4 : at + 5]:  # one of several scans
                frame = b""
    if not (frame and interval):
        return
    bytes_ = np.frombuffer(data, np.uint8)[coded:]
    places = np.flatnonzero(bytes_[:-1] == 0xFF)
    numbers = bytes_[places + 1]
    restarts = numbers[(numbers >= 0xD0) & (numbers <= 0xD7)] & 7
    wanted = -(-_units(frame) // interval) - 1
    if restarts.size != wanted or not np.array_equal(restarts, np.arange(wanted) & 7):
        raise ValueError(f"JPEG of {len(data)} bytes lacks restart markers")


def _units(frame: bytes) -> int:
    """Return how many coded units, each a block or more of every component, the picture of a header has."""
    height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (5, 7))
    samplings = frame[11 : 10 + 3 * frame[9] : 3]
    if len(samplings) == 1:
        return -(-width // 8) * -(-height // 8)
    across, down = max(one >> 4 for one in samplings), max(one & 15 for one in samplings)
    return -(-width // (8 * max(across, 1))) * -(-height // (8 * max(down, 1)))


def _segments(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments before the first scan."""
    at = 2 if bytes(data[:2]) == b"\xff\xd8" else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # filled up
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at, end
        if data[at + 1] in (_SCAN, _START, _END):
            return
        at = end


def _marker_end(buffer: bytearray, at: int) -> int:
    """Return where the next marker in coded data ends, 0 if there is none yet."""
    coded = np.frombuffer(buffer, np.uint8)[at:]
    places = np.flatnonzero(coded[:-1] == 0xFF)
    markers = places[~_IN_SCAN[coded[places + 1]]]
    return at + int(markers[0]) + 2 if markers.size else 0


class JpegSplitter:
    """Cuts whole JPEG pictures out of a stream of bytes with any bytes between them.

    Boundaries, types and lengths that a server announces are ignored: browsers accept cameras that send wrong
    ones. A picture starts at its start marker and ends at its end marker; an incomplete one is counted.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        """How far the buffer was parsed; 0 while it does not start with a picture."""
        self._scanning = False
        """Whether that position is inside coded data, not between segments."""
        self._unknown = self._counted = False
        """Whether bytes that are no text were skipped since the last picture; whether they were counted."""
        self.pictures = 0
        self.corrupt = 0
        """Pictures that were cut short or broken, and runs of bytes that are neither picture nor text."""

    def feed(self, data: bytes) -> list[bytes]:
        """Add the next bytes; return the pictures that they complete."""
        self._buffer += data
        whole: list[bytes] = []
        while self._scan(whole) if self._scanning else self._segment() if self._at else self._begin():
            if len(self._buffer) > MAX_BYTES:
                self._broken()
        return whole

    def end(self) -> None:
        """Count a picture that is incomplete at the end of the stream; start another stream."""
        self.corrupt += bool(self._at)
        self._restart(len(self._buffer))

    def _begin(self) -> bool:
        start = self._buffer.find(_FIRST)
        passed = self._buffer[: start if start >= 0 else max(len(self._buffer) - len(_FIRST) + 1, 0)]
        self._unknown |= not _TEXT.fullmatch(passed.strip(_PADDING))
        del self._buffer[: len(passed)]
        if start < 0:
            return False
        self.corrupt += self._unknown and not self._counted
        self._unknown = self._counted = False
        self._at = 2
        return True

    def _segment(self) -> bool:
        buffer, at = self._buffer, self._at
        if len(buffer) < at + 4:
            return False
        marker, length = buffer[at + 1], int.from_bytes(buffer[at + 2 : at + 4], "big")
        if buffer[at] == marker == 0xFF:  # filled up
            self._at += 1
        elif buffer[at] == 0xFF and marker == _START:
            self._cut(at)
        elif buffer[at] != 0xFF or marker < 0xC0 or marker == _END or length < 2:
            self._broken()
        elif len(buffer) < at + 2 + length:
            return False
        else:
            self._at = at + 2 + length
            self._scanning = marker == _SCAN
        return True

    def _scan(self, whole: list[bytes]) -> bool:
        end = _marker_end(self._buffer, self._at)
        if not end:
            self._at = max(self._at, len(self._buffer) - 1)
            return False
        marker = self._buffer[end - 1]
        if marker == _END:
            whole.append(bytes(self._buffer[:end]))
            self.pictures += 1
            self._restart(end)
        elif marker == _START:
            self._cut(end - 2)
        elif marker in _FOLLOWS_SCAN:
            self._at, self._scanning = end - 2, False
        else:
            self._broken()
        return True

    def _cut(self, at: int) -> None:
        """Count the picture as cut short and start with the one at `at`."""
        self.corrupt += 1
        self._restart(at)

    def _broken(self) -> None:
        """Count the picture as broken and search for the next start marker."""
        self.corrupt += 1
        self._counted = True
        self._restart(len(_FIRST))

    def _restart(self, at: int) -> None:
        del self._buffer[:at]
        self._at, self._scanning = 0, False
