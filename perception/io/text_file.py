"""Text files that people write: UTF-8, or what their byte order mark says."""

import codecs
import errno
import io
import os
from pathlib import Path
from typing import Final

_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


MOST_BYTES: Final = 256 << 20
"""No text that somebody wrote is longer; a device such as /dev/zero never ends."""


def read_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Return a file's text without its mark, every line ended by a line feed.

    It is read once, so it may come through a pipe.

    Raises:
        OSError: it cannot be read, or has more than `most_bytes`.
        UnicodeDecodeError: it is no text.
    """
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()
