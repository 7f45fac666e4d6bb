"""What holds for the tests themselves."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import FAST


def test_the_fast_part_starts_no_process() -> None:
    with pytest.raises(AssertionError, match="a test of the fast part starts a process"):
        subprocess.run(["true"], check=True)


def test_every_file_of_the_fast_part_exists() -> None:
    assert {f"test_{name}.py" for name in FAST} <= {file.name for file in Path(__file__).parent.iterdir()}


def test_files_of_the_fast_part_are_marked(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("fast")
