"""The size in the header of a picture, to refuse too large pictures before they are decoded.

Pure, and nothing is decoded. If a format has its size in several places, the largest counts.
"""

import re
import struct
from collections.abc import Callable
from typing import Final

from perception.features import jpeg
from perception.features.jpeg import MAX_PIXELS

Size = tuple[int, int]
_INT: Final = r"[0-9]{1,9}"
# Netpbm: https://netpbm.sourceforge.net/doc/pnm.html and pam.html.
_SPACE: Final = r"(?:\s|#[^\n]*\n)+"
_PNM: Final = re.compile(rf"P[1-6]{_SPACE}({_INT}){_SPACE}({_INT})\s".encode())
_PAM: Final = re.compile(rf"^(WIDTH|HEIGHT)\s+({_INT})\s*$".encode(), re.MULTILINE)
_PAM_HEAD: Final = 4096
# Tags of TIFF 6.0: ImageWidth, ImageLength, TileWidth, TileLength; types SHORT and LONG.
_TIFF_WIDTHS, _TIFF_HEIGHTS = (256, 322), (257, 323)
_TIFF_TYPES: Final = {3: "H", 4: "I"}
_J2K_START: Final = b"\xff\x4f\xff\x51"
"""Markers SOC and SIZ of ITU-T T.800, annex A: start of the code, alone or in a JP2 file."""
_J2K_COMPONENTS: Final = 4
_AVIF: Final = re.compile(rb"(?s).{4}ftyp.{0,128}?avi[fs]")


def claimed_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) in pixels in the header of a picture.

    An AVIF decoder may ignore it, so there the decoder needs a limit of its own as well.

    Raises:
        ValueError: it is no picture of a kind whose size is known, or it claims more than `MAX_PIXELS`.
    """
    for magic, kind, read in _KINDS:
        if magic.match(data):
            try:
                width, height = read(data)
            except (struct.error, IndexError) as error:
                raise ValueError(f"{kind} of {len(data)} bytes that ends within its header") from error
            if not 0 < width * height <= MAX_PIXELS:
                raise ValueError(
                    f"{kind} of {len(data)} bytes claims to be {width} x {height}, "
                    f"allowed are {MAX_PIXELS} pixels"
                )
            return width, height
    raise ValueError(f"{len(data)} bytes that are none of {', '.join(kind for _, kind, _ in _KINDS)}")


def is_avif(data: bytes) -> bool:
    """Return whether a picture is an AVIF."""
    return _AVIF.match(data) is not None


def _png(data: bytes) -> Size:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _bmp(data: bytes) -> Size:
    of_os2 = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if of_os2 else "<ii", data, 18)
    return abs(width), abs(height)


def _gif(data: bytes) -> Size:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp(data: bytes) -> Size:
    """Return the size of the canvas: https://developers.google.com/speed/webp/docs/riff_container."""
    if data[12:16] == b"VP8X":
        width, height = struct.unpack_from("<II", data[:30] + b"\0", 23)
        return (width >> 8) + 1, (height & 0xFFFFFF) + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: bytes) -> Size:
    """Return the size of the first picture, or of its tiles where they are larger."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, at)
    sides = {0: 0, 1: 0}
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, type_, count = struct.unpack_from(f"{order}HHI", data, entry)
        if tag in (*_TIFF_WIDTHS, *_TIFF_HEIGHTS):
            if type_ not in _TIFF_TYPES or count != 1:
                raise ValueError(f"TIFF of {len(data)} bytes whose size is not one whole number")
            (value,) = struct.unpack_from(f"{order}{_TIFF_TYPES[type_]}", data, entry + 8)
            side = tag in _TIFF_HEIGHTS
            sides[side] = max(sides[side], value)
    return sides[0], sides[1]


def _jpeg_2000(data: bytes) -> Size:
    largest, at = (0, 0), data.find(_J2K_START)
    while at >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
        (components,) = struct.unpack_from(">H", data, at + 40)
        if components > _J2K_COMPONENTS:
            raise ValueError(f"JPEG 2000 of {len(data)} bytes claims {components} colours")
        largest = max(largest, (right - left, bottom - top), key=_pixels)
        at = data.find(_J2K_START, at + 4)
    return largest


def _avif(data: bytes) -> Size:
    """Return the largest of the sizes of its parts, ISO/IEC 23008-12, 6.5.3."""
    sizes = [struct.unpack(">II", found[1]) for found in re.finditer(rb"(?s)ispe.{4}(.{8})", data)]
    width, height = max(sizes, key=_pixels, default=(0, 0))
    return width, height


def _pnm(data: bytes) -> Size:
    found = _PNM.match(data)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _pam(data: bytes) -> Size:
    sides = {b"WIDTH": 0, b"HEIGHT": 0}
    for side, value in _PAM.findall(data[:_PAM_HEAD]):
        sides[side] = max(sides[side], int(value))
    return sides[b"WIDTH"], sides[b"HEIGHT"]


def _sun(data: bytes) -> Size:
    width, height = struct.unpack_from(">II", data, 4)
    return width, height


def _pixels(size: Size) -> int:
    return size[0] * size[1]


_KINDS: Final[tuple[tuple[re.Pattern[bytes], str, Callable[[bytes], Size]], ...]] = (
    (re.compile(rb"\xff\xd8"), "JPEG", jpeg.claimed_size),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", _png),
    (re.compile(rb"BM"), "BMP", _bmp),
    (re.compile(rb"GIF8[79]a"), "GIF", _gif),
    (re.compile(rb"(?s)RIFF.{4}WEBPVP8[ LX]"), "WebP", _webp),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF", _tiff),
    (re.compile(rb"(?s)\xff\x4f\xff\x51|.{4}jP  \r\n\x87\n"), "JPEG 2000", _jpeg_2000),
    (_AVIF, "AVIF", _avif),
    (re.compile(rb"P[1-6]\s"), "PNM", _pnm),
    (re.compile(rb"P7\n"), "PAM", _pam),
    (re.compile(rb"\x59\xa6\x6a\x95"), "Sun raster", _sun),
)
