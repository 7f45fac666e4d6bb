"""What holds for the tests themselves."""

import logging
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


def test_what_a_worker_reports_may_be_no_text() -> None:
    """Without its hook in conftest, a worker ends here, and with it the run."""
    logging.getLogger(__name__).warning("\udc80")
