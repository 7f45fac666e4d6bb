"""Detect whether a media file is truncated, from its bytes, by the rule of its format.

A chunk states its length, a last page or a trailer is marked as such, packets have a fixed size. Raw streams
of H.264, HEVC and MPEG have no such mark; the truncation of a transport or program stream between two packets
is not detected.
"""

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_TAIL_BYTES: Final = 256 << 10
"""Contains the last page, packs or frames of every format below."""
_ENDLESS: Final = (0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
"""Lengths in files that were written to a pipe."""
_MOST_CHUNKS: Final = 1 << 16
_OGG_LAST: Final = 4
_TS_SIZES: Final = ((188, 0), (192, 4), (204, 0))
"""Bytes of a packet, and the offset of its sync byte."""
_TS_SYNC: Final = 0x47
_GIF_IMAGE: Final = 0x2C
_GIF_EXTENSION: Final = 0x21
_GIF_TRAILER: Final = 0x3B
_PACK: Final = b"\0\0\1\xba"
_PROGRAM_END: Final = b"\0\0\1\xb9"
_ADTS: Final = re.compile(rb"\xff[\xf0-\xf1\xf8-\xf9]", re.DOTALL)

Missing = str
"""What is missing, in words; empty if nothing is known to be missing."""


def missing(path: Path, form: str) -> Missing:
    """Return what is missing of a file, empty if nothing is known to be missing.

    Args:
        path: the file.
        form: FFmpeg's name of its format.
    """
    rule = _RULES.get(form)
    if rule is None:
        return ""
    with path.open("rb") as file:
        return rule(_FileBytes(file, file.seek(0, 2)))


class _FileBytes:
    """Bytes of a file by offset."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size

    def __call__(self, place: int, count: int) -> bytes:
        self._file.seek(place)
        return self._file.read(count)

    def tail(self) -> bytes:
        return self(max(self.size - _TAIL_BYTES, 0), _TAIL_BYTES)

    def short_of(self, stated: int) -> Missing:
        return f"{self.size} of {stated} bytes are present" if self.size < stated else ""


Rule = Callable[[_FileBytes], Missing]


def _walk(
    at: _FileBytes, begin: int, head: struct.Struct, length: Callable[[tuple[int, ...]], int]
) -> Missing:
    """Walk from chunk to chunk; `length` returns the length of one, 0 or less if it is unknown."""
    place = begin
    for _ in range(_MOST_CHUNKS):
        data = at(place, head.size)
        if len(data) < head.size:
            return ""
        step = length(head.unpack(data))
        if step <= 0:
            return ""
        place += step
        if place > at.size:
            return at.short_of(place)
    return ""


def _of_size(magic: bytes, form: str) -> Rule:
    """Return the rule of a format whose magic is followed by the length of the rest."""

    def rule(at: _FileBytes) -> Missing:
        data = at(0, 8)
        if not data.startswith(magic) or len(data) < 8:
            return ""
        stated = struct.unpack_from(form, data, 4)[0] + 8
        # some writers count the byte that pads a chunk to an even length, but do not write it
        return "" if stated - 8 in _ENDLESS or at.size >= stated - 1 else at.short_of(stated)

    return rule


def _au(at: _FileBytes) -> Missing:
    data = at(0, 12)
    if len(data) < 12 or not data.startswith(b".snd"):
        return ""
    begin, length = struct.unpack(">II", data[4:])
    return "" if length in _ENDLESS else at.short_of(begin + length)


def _caf(at: _FileBytes) -> Missing:
    return _walk(at, 8, struct.Struct(">4xq"), lambda head: 12 + head[0] if head[0] >= 0 else 0)


def _asf(at: _FileBytes) -> Missing:
    return _walk(at, 0, struct.Struct("<16xQ"), lambda head: head[0] if 24 <= head[0] < 1 << 62 else 0)


def _mp4(at: _FileBytes) -> Missing:
    def length(head: tuple[int, ...]) -> int:
        return head[2] if head[0] == 1 else head[0]

    return _walk(at, 0, struct.Struct(">IIQ"), length)


def _w64(at: _FileBytes) -> Missing:
    data = at(0, 24)
    stated = int.from_bytes(data[16:], "little")
    return at.short_of(stated) if data.startswith(b"riff") and stated not in _ENDLESS else ""


def _y4m(at: _FileBytes) -> Missing:
    head = at(0, 1 << 10).partition(b"\n")[0]
    values = {word[:1]: word[1:].decode("ascii", "replace") for word in head.split()[1:]}
    colours = re.fullmatch(r"(420|422|444|mono)(?:jpeg|mpeg2|paldv|p?(\d\d?))?", values.get(b"C", "420"))
    if colours is None or not (values.get(b"W", "").isdigit() and values.get(b"H", "").isdigit()):
        return ""
    width, height = int(values[b"W"]), int(values[b"H"])
    chroma = {"420": -(-width // 2) * -(-height // 2), "422": -(-width // 2) * height, "444": width * height}
    samples = width * height + 2 * chroma.get(colours[1], 0)
    frame = len(b"FRAME\n") + samples * (2 if colours[2] and int(colours[2]) > 8 else 1)
    return "its last picture is incomplete" if (at.size - len(head) - 1) % frame else ""


def _gif(at: _FileBytes) -> Missing:
    head = at(0, 13)
    place = 13 + _gif_colours(head[10])
    while place < at.size:
        kind = at(place, 10)
        if kind[0] == _GIF_TRAILER:
            return ""
        if kind[0] == _GIF_IMAGE and len(kind) == 10:
            place += 11 + _gif_colours(kind[9])
        elif kind[0] == _GIF_EXTENSION:
            place += 2
        else:
            return "its end is missing" if kind[0] == _GIF_IMAGE else ""
        while (block := at(place, 1)) and block[0]:
            place += 1 + block[0]
        place += 1
    return "its end is missing"


def _gif_colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _ogg(at: _FileBytes) -> Missing:
    tail = at.tail()
    page = tail.rfind(b"OggS\0")
    if page < 0 or len(tail) < page + 27:
        return "its last page is missing"
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    if page + 27 + tail[page + 26] + sum(segments) > len(tail) or len(segments) < tail[page + 26]:
        return "its last page is incomplete"
    return "" if tail[page + 5] & _OGG_LAST else "its last page is missing"


def _ts(at: _FileBytes) -> Missing:
    for size, sync in _TS_SIZES:
        starts = at(0, 5 * size)[sync::size]
        if len(starts) == 5 and set(starts) == {_TS_SYNC}:
            return "its last packet is incomplete" if at.size % size else ""
    return ""


def _mpg(at: _FileBytes) -> Missing:
    """Walk packet by packet from each of the last packs, until one leads to the end."""
    tail = at.tail()
    begin = tail.find(_PACK)
    while begin >= 0:
        *_, end = _packets(tail, begin)
        if end > len(tail):
            return "its last packet is incomplete"
        if end == len(tail):
            return ""
        begin = tail.find(_PACK, begin + 1)
    return ""


def _packets(data: bytes, place: int) -> Iterator[int]:
    """Yield the end of each packet of a program stream, up to the end or to the first invalid packet."""
    yield place
    while place < len(data):
        head = data[place : place + 14]
        if head[:4] == _PROGRAM_END:
            place += 4
        elif head[:4] == _PACK:
            mpeg2 = len(head) == 14 and head[4] >> 6 == 1
            place += 14 + (head[13] & 7) if mpeg2 else 12
        elif head[:3] == _PACK[:3] and len(head) >= 6 and head[3] > _PACK[3]:
            place += 6 + int.from_bytes(head[4:6], "big")
        else:
            place = len(data) + 1 if _PACK.startswith(head) or len(head) < 6 else place
            yield place
            return
        yield place


def _jpegs(at: _FileBytes) -> Missing:
    return "" if at.tail().rstrip(b"\0").endswith(b"\xff\xd9") else "its last picture is incomplete"


def _adts(at: _FileBytes) -> Missing:
    """Walk frame by frame from each possible frame in the tail, until one leads to the end."""
    tail = at.tail()
    for start in _ADTS.finditer(tail):
        place, count = start.start(), 0
        while len(head := tail[place : place + 6]) == 6 and _ADTS.match(head):
            place += max((head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5, 7)
            count += 1
        if (place > len(tail) and count > 1) or (0 < len(head) < 6 and count):
            return "its last frame is incomplete"
        if place == len(tail):
            return ""
    return ""


_RULES: Final[dict[str, Rule]] = {
    "wav": _of_size(b"RIFF", "<I"),
    "avi": _of_size(b"RIFF", "<I"),
    "aiff": _of_size(b"FORM", ">I"),
    "au": _au,
    "caf": _caf,
    "asf": _asf,
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
    "gif": _gif,
    "w64": _w64,
    "yuv4mpegpipe": _y4m,
    "ogg": _ogg,
    "mpegts": _ts,
    "mpeg": _mpg,
    "mjpeg": _jpegs,
    "jpeg_pipe": _jpegs,
    "aac": _adts,
}
