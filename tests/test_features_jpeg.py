"""JPEG pictures cut out of a stream of bytes, and what their headers may claim."""

import struct
from typing import Final

import cv2
import numpy as np
import pytest

from perception.features.image import decode_frame
from perception.features.jpeg import JpegSplitter, claimed_size
from perception.messages import CameraFrame
from perception.session.convert.incoming import UnusableError, compressed

_NOISE: Final = np.random.default_rng(1)


def picture(width: int = 64, height: int = 48, *options: int) -> bytes:
    noise = cv2.GaussianBlur(_NOISE.integers(0, 255, (height, width, 3), np.uint8), (0, 0), 2)
    return cv2.imencode(".jpg", noise, (cv2.IMWRITE_JPEG_QUALITY, 90, *options))[1].tobytes()


def with_thumbnail(data: bytes) -> bytes:
    """Put another JPEG into a segment of this one, as cameras do with EXIF."""
    body = b"Exif\0\0" + picture(16, 16)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def claiming(width: int, height: int) -> bytes:
    data = bytearray(picture(16, 16))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


PICTURES: Final = (
    picture(),
    picture(64, 48, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    picture(64, 48, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    with_thumbnail(picture(32, 32)),
    picture(320, 240),
)
TEXT: Final = b"\r\n--frame\r\nContent-Type: image/jpg\r\nContent-Length: 3\r\n\r\n"


def split(stream: bytes, size: int = 1 << 16) -> tuple[list[bytes], int]:
    splitter = JpegSplitter()
    found = [one for at in range(0, len(stream), size) for one in splitter.feed(stream[at : at + size])]
    splitter.end()
    assert splitter.pictures == len(found)
    return found, splitter.corrupt


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 1 << 16])
@pytest.mark.parametrize("between", [b"", TEXT, b"\0" * 40, b"\xff\xff\n"])
def test_pictures_come_out_whole_whatever_stands_between_and_however_they_arrive(
    size: int, between: bytes
) -> None:
    stream = between + b"".join(one + between for one in PICTURES)
    assert split(stream, size) == (list(PICTURES), 0)


@pytest.mark.parametrize("size", [3, 1 << 16])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
def test_one_that_is_cut_short_is_counted_and_the_next_is_whole(share: float, size: int) -> None:
    whole = PICTURES[4]
    found, corrupt = split((TEXT + whole + TEXT + whole[: int(len(whole) * share)]) * 3 + TEXT + whole, size)
    assert set(found) == {whole}
    assert (len(found), corrupt) == (4, 3)


def test_garbage_between_pictures_and_an_unfinished_end_are_counted() -> None:
    whole = PICTURES[0]
    assert split(whole + bytes(range(256)) + whole) == ([whole, whole], 1)
    assert split(whole + whole[:-1]) == ([whole], 1)
    assert split(whole + b"\xff\xd8\xff\xc0\x00\x01" + whole) == ([whole, whole], 1)


def test_sizes_are_read_from_the_header_of_the_picture_itself() -> None:
    sizes = [claimed_size(one) for one in PICTURES]
    assert sizes == [(64, 48), (64, 48), (64, 48), (32, 32), (320, 240)]


@pytest.mark.parametrize("size", [(16384, 16384), (1000, 1000), (16384, 32)])
def test_a_picture_that_claims_more_than_it_can_hold_is_never_given_to_a_decoder(
    size: tuple[int, int],
) -> None:
    bomb = claiming(*size)
    with pytest.raises(ValueError, match="claims to be"):
        claimed_size(bomb)
    header = CameraFrame(stamp_ns=1, width=size[0], height=size[1], encoding="jpeg")
    with pytest.raises(ValueError, match="claims to be"):
        decode_frame(header, bomb)
    with pytest.raises(UnusableError, match="claims to be"):
        compressed(bomb, "jpeg", 0)


def test_a_frame_of_another_size_or_another_format_is_refused() -> None:
    header = CameraFrame(stamp_ns=1, width=64, height=47, encoding="jpeg")
    png = cv2.imencode(".png", np.zeros((47, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match="image is 64 x 48, expected 64 x 47 by its header"):
        decode_frame(header, PICTURES[0])
    with pytest.raises(ValueError, match="is no JPEG"):
        decode_frame(header, png + b"\xff\xd9")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\x89PNG", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xff\xff\xff"]
)
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is no JPEG"):
        claimed_size(data)
