"""Paths that begin with `~`. In containers and services a user may have no home directory."""

import os
from pathlib import Path

from perception.errors import PerceptionError


def home() -> Path | None:
    """Return the user's home directory; None without $HOME and without an entry in passwd."""
    path = os.path.expanduser("~")
    return None if path == "~" else Path(path)


def expanded(path: Path | str) -> Path:
    """Return the path with `~` replaced; unchanged without a home directory."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError there


def kept_in(path: Path | str, option: str) -> Path:
    """Return a folder to store files in, with `~` replaced.

    Args:
        path: the folder.
        option: command-line option that sets another folder, for the error.

    Raises:
        PerceptionError: the path begins with `~`, and the user has no home directory.
    """
    place = expanded(path)
    if str(place).startswith("~"):
        raise PerceptionError(f"{path}: this user has no home directory; set HOME, or give {option}")
    return place
