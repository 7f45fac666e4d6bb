"""Find intact chunks anywhere in a file whose chain of records is broken."""

import os
import re
from typing import Final

from perception.session.file import container
from perception.session.file.container import DamageError

HEAD_BYTES: Final = 64
"""Longest head of a record that is examined."""
_WINDOW_BYTES: Final = 1 << 20
# Head of a chunk: sizes below 2^32, then a compression; a lookahead, so that matches may overlap.
_CHUNK_HEAD: Final = re.compile(
    rb"(?=\x06.{4}\0{4}.{20}\0{4}.{4}(?:\0{4}|\x03\0{3}lz4|\x04\0{3}zstd))", re.DOTALL
)


class ChunkSearch:
    """Searches intact chunks anywhere in a file.

    The bytes read are bounded by a few times the size of the file, however many false heads it holds.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._budget = 4 * size + container.MAX_CHUNK_BYTES

    def next(self, start: int) -> int | None:
        """Return the offset of the first intact chunk at or after `start`, None if there is none."""
        for window in range(start, self._size, _WINDOW_BYTES):
            data = os.pread(self._descriptor, _WINDOW_BYTES + HEAD_BYTES, window)
            self._budget -= len(data)
            for match in _CHUNK_HEAD.finditer(data):
                place = match.start()
                if place < _WINDOW_BYTES and self.is_intact(window + place, data[place : place + HEAD_BYTES]):
                    return window + place
                if self._budget < 0:
                    return None
        return None

    def is_intact(self, offset: int, head: bytes) -> bool:
        """Return whether an intact chunk with that head is at `offset`."""
        try:
            span = container.span(offset, head)
            self._budget -= span.length
            container.declarations(span, os.pread(self._descriptor, span.length, offset))
        except DamageError:
            return False
        return True
