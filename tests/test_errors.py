"""What a person reads of an error of another package."""

import pytest

from perception.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("wrong shape\nsee the manual"), "wrong shape"),
        (RuntimeError("\n  CUDA error: out of memory\nhint"), "CUDA error: out of memory"),
        (ValueError(), "ValueError"),
        (AssertionError(" \n "), "AssertionError"),
    ],
)
def test_an_error_is_one_line_even_if_it_has_no_text(error: Exception, line: str) -> None:
    assert first_line(error) == line
