"""Reads text files that people write: UTF-8, or the encoding of the byte order mark."""

import codecs
import errno
import io
import os
from pathlib import Path
from typing import Final

_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


MOST_BYTES: Final = 256 << 20
"""Limit for text that people write; a device such as /dev/zero never ends."""


def read_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Return a file's text without byte order mark, with line feeds as line ends.

    The file is read once, so a pipe is possible.

    Raises:
        OSError: the file cannot be read, or has more than `most_bytes` bytes.
        UnicodeDecodeError: the file is not text in the encoding.
    """
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()
