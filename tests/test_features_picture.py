"""Pictures of foreign files: what they claim is known before anything is decoded."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.devices.pictures import decode_picture, read_picture
from perception.errors import DeviceError
from perception.features.jpeg import MAX_PIXELS
from perception.features.picture import claimed_size
from perception.retrieval.search import picture_query
from perception.session.convert.incoming import UnusableError, compressed
from perception.training.media import MediaSource

WIDTH, HEIGHT = 71, 38
HUGE = 16_384
"""Both sides of a picture that takes 800 MB once it is decoded; every format here can declare it."""

PICTURE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
LOSSLESS = ("png", "bmp", "tiff", "ppm", "pam", "ras")


def encoded(suffix: str, picture: np.ndarray = PICTURE, *parameters: int) -> bytes:
    written, data = cv2.imencode(f".{suffix}", picture, parameters)
    assert written
    return data.tobytes()


def put(data: bytes, at: int, form: str, *values: int) -> bytes:
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


def tiff(big: int, tag: int = 256, order: str = "<") -> bytes:
    """A header alone: its tags are all that is read."""
    entries = {256: 8, 257: 8, 322: 8, 323: 8} | {tag: big, tag + 1: big}
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHII", tag, 4, 1, side) for tag, side in entries.items())


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + bytes(4) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def in_text(data: bytes, side: int) -> bytes:
    return data.replace(b"38", b"%d" % side).replace(b"71", b"%d" % side)


BOMBS: dict[str, bytes] = {
    "jpg": put(data := encoded("jpg"), data.index(b"\xff\xc0") + 5, ">HH", HUGE, HUGE),
    "png": put(encoded("png"), 16, ">II", HUGE, HUGE),
    "bmp": put(encoded("bmp"), 18, "<ii", HUGE, -HUGE),
    "bmp of OS/2": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, HUGE, HUGE, 1, 8),
    "gif": put(encoded("gif"), 6, "<HH", HUGE, HUGE),
    "webp, lossy": webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", HUGE - 1, HUGE - 1)),
    "webp, lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", (HUGE - 1) << 14 | HUGE - 1)),
    "webp, animated": webp(b"VP8X", bytes(4) + 2 * (HUGE - 1).to_bytes(3, "little")),
    "tiff": tiff(HUGE),
    "tiff of Motorola": tiff(HUGE, order=">"),
    "tiff with huge tiles": tiff(HUGE, 322),
    "jp2": put(data := encoded("jp2"), data.index(b"\xff\x4f\xff\x51") + 8, ">II", HUGE, HUGE),
    "avif": put(data := encoded("avif"), data.index(b"ispe") + 8, ">II", HUGE, HUGE),
    "pbm": in_text(encoded("pbm", PICTURE[:, :, 0]), HUGE),
    "ppm": in_text(encoded("ppm"), HUGE),
    "ppm with a comment": b"P6 # 8 8\n16384 # 8\n16384\n255\n",
    "pam": in_text(encoded("pam"), HUGE),
    "ras": put(encoded("ras"), 4, ">II", HUGE, HUGE),
}


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif", "gif", "jp2", "pbm", *LOSSLESS])
def test_the_size_is_read_from_the_header_and_the_picture_decoded(suffix: str, tmp_path: Path) -> None:
    data = encoded(suffix, PICTURE[:, :, 0] if suffix == "pbm" else PICTURE)
    assert claimed_size(data) == (WIDTH, HEIGHT)
    (file := tmp_path / "picture").write_bytes(data)  # its name has no suffix
    picture = read_picture(file)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    if suffix in LOSSLESS:
        assert np.array_equal(picture, PICTURE)


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_claims_to_be_huge_is_refused_on_every_path(name: str, tmp_path: Path) -> None:
    (file := tmp_path / "bomb.png").write_bytes(BOMBS[name])
    with pytest.raises(UnusableError, match=r"claims to be 1638\d x 1638\d"):
        compressed(BOMBS[name], "png", 1)
    with pytest.raises(DeviceError, match=r"bomb\.png: .*claims to be 1638\d x 1638\d.*allowed are \d+"):
        picture_query(file)
    with pytest.raises(DeviceError, match=r"bomb\.png: .*claims to be"):
        list(MediaSource(file, tmp_path, "camera/front", None, 0.0).messages())


def test_the_limit_is_that_of_a_cameras_pictures() -> None:
    at_limit = put(encoded("png"), 16, ">II", 8192, MAX_PIXELS // 8192)
    assert claimed_size(at_limit) == (8192, 8192)
    with pytest.raises(ValueError, match="claims to be"):
        claimed_size(put(at_limit, 16, ">II", 8193, 8192))


def test_an_avif_whose_code_is_larger_than_its_header_is_refused_by_its_decoder() -> None:
    """8300 x 8100 black pixels take 2 kB and seconds."""
    honest = encoded("avif", np.zeros((8300, 8100), np.uint8), cv2.IMWRITE_AVIF_SPEED, 10)
    lie = put(honest, honest.index(b"ispe") + 8, ">II", 32, 32)
    assert claimed_size(lie) == (32, 32)
    with pytest.raises(ValueError, match="damaged or larger than the 67108864 pixels"):
        decode_picture(lie, cv2.IMREAD_COLOR)


def test_the_largest_of_several_claims_counts() -> None:
    jp2, avif = encoded("jp2"), encoded("avif")
    with pytest.raises(ValueError, match="claims to be 16384"):
        claimed_size(jp2 + BOMBS["jp2"])
    with pytest.raises(ValueError, match="claims to be 16384"):
        claimed_size(avif + BOMBS["avif"])
    code = jp2.index(b"\xff\x4f\xff\x51")
    with pytest.raises(ValueError, match="claims 16384 colours"):
        claimed_size(put(jp2, code + 40, ">H", 16384))


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"#?RADIANCE\n\n-Y 8 +X 8\n", b"\x76\x2f\x31\x01", b"II\x2b\0"]
)
def test_what_does_not_say_its_size_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"format 'x': .*none of JPEG, PNG, "):
        compressed(data, "x", 1)
    (file := tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DeviceError, match=r"x\.png: .*none of"):
        read_picture(file)
    with pytest.raises(DeviceError, match=r"none\.png: "):
        read_picture(tmp_path / "none.png")


WHOLE = [encoded(suffix) for suffix in ("webp", "avif", "gif", "jp2", *LOSSLESS)]


@given(st.sampled_from([*WHOLE, *BOMBS.values()]), st.data())
def test_damage_anywhere_in_a_header_is_a_value_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(0, min(len(data), 200)))])
    for at in draw.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=4)) if damaged else ():
        damaged[at] = draw.draw(st.integers(0, 255))
    try:
        width, height = claimed_size(bytes(damaged))
    except ValueError:
        return
    assert 0 < width * height <= MAX_PIXELS


def test_a_phones_photo_is_the_right_way_up(tmp_path: Path) -> None:
    """Orientation 6 of its EXIF: turned by 90 degrees clockwise."""
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    jpeg = encoded("jpg")
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    (file := tmp_path / "photo.jpg").write_bytes(turned)
    assert read_picture(file).shape == (WIDTH, HEIGHT, 3)
