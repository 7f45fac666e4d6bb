"""What tests of several files are given."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus import Bus


@pytest.fixture
def bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:  # a short path: sockets lie in it
        yield Bus(Path(folder))
