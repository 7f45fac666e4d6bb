"""Mutations of inputs, by seed: bytes changed, inserted, removed, repeated, taken from another input."""

import random
from collections.abc import Callable, Sequence
from typing import Final

EDGES: Final = [
    *(bytes([one]) for one in (0, 1, 0x7F, 0x80, 0xFF, 0xC0, 0xC3, 0xCB, 0xCF, 0xD3, 0xDB, 0xDD, 0xDF)),
    *(n.to_bytes(size, order) for n in (0, 1) for size in (2, 4, 8) for order in ("big", "little")),
    *(b"\xff" * size for size in (2, 4, 8)),
    *(b"\x7f" + b"\xff" * (size - 1) for size in (2, 4, 8)),
    *(b"\x80" + bytes(size - 1) for size in (2, 4, 8)),
    *(b"\x7f\xf0" + bytes(6), b"\x7f\xf8" + bytes(6), b"\xff\xf0" + bytes(6)),
]
WORDS: Final = [
    *(
        b"0",
        b"-1",
        b"1e9",
        b"1e-9",
        b"1e300",
        b"nan",
        b"inf",
        b"-inf",
        b"9" * 30,
        b"true",
        b"null",
        b"''",
        b'""',
    ),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"=",
        b":",
        b"\n",
        b"\t",
        b"#",
        b"[" * 200,
        b"{" * 200,
        b"\0",
        b"\xff",
        b"\r",
    ),
    *(
        "\u202e\u2028é\U0001f600".encode(),
        b"\x1b[2J",
        b"../../etc/passwd",
        b"/dev/zero",
        b"http://x:1/",
        b"~",
    ),
]


class Mutator:
    """Makes mutated inputs out of examples; the same seed gives the same inputs."""

    def __init__(self, examples: Sequence[bytes], seed: int, *, binary: bool) -> None:
        self._examples = list(examples)
        self._random = random.Random(seed)
        self._tokens = EDGES if binary else WORDS
        self.changed = 0
        """Bytes changed or inserted so far; a run that is removed, repeated or spliced counts as one."""
        self._steps: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._flip,
            self._replace,
            self._replace,
            self._insert,
            self._remove,
            self._repeat,
            self._splice,
        )

    def next(self) -> bytes:
        """Return the next mutated input."""
        data = bytearray(self._random.choice(self._examples))
        for _ in range(self._random.choice((1, 1, 1, 2, 4, 8, 16, 64))):
            self._random.choice(self._steps)(data)
        return bytes(data)

    def _at(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] = self._random.randrange(256)
            self.changed += 1

    def _replace(self, data: bytearray) -> None:
        at, token = self._at(data), self._random.choice(self._tokens)
        data[at : at + len(token)] = token
        self.changed += len(token)

    def _insert(self, data: bytearray) -> None:
        at, token = self._at(data), self._random.choice(self._tokens)
        data[at:at] = token
        self.changed += len(token)

    def _remove(self, data: bytearray) -> None:
        at, size = self._at(data), self._random.choice((1, 2, 4, 16, 256))
        self.changed += 1
        del data[at : at + size]

    def _repeat(self, data: bytearray) -> None:
        at, size = self._at(data), self._random.choice((1, 4, 32, 512))
        run = data[at : at + size] * self._random.choice((1, 2, 8))
        data[at:at] = run
        self.changed += 1

    def _splice(self, data: bytearray) -> None:
        """Continue with the end of another example."""
        other = self._random.choice(self._examples)
        at = self._at(data)
        end = other[self._random.randrange(len(other) + 1) :] if other else b""
        self.changed += 1
        data[at:] = end
