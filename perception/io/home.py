"""Paths that begin with `~`, on machines where a user may have no home: containers, services."""

import os
from pathlib import Path

from perception.errors import PerceptionError


def home() -> Path | None:
    """Return the user's home directory, None if there is none: neither $HOME nor an entry in passwd."""
    path = os.path.expanduser("~")
    return None if path == "~" else Path(path)


def expanded(path: Path | str) -> Path:
    """Return a path with its `~` replaced; as it is where there is no home."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError there


def kept_in(path: Path | str, option: str) -> Path:
    """Return a folder to keep something in, its `~` replaced.

    Args:
        path: the folder.
        option: by which another can be given.

    Raises:
        PerceptionError: it lies in a home directory, and there is none.
    """
    place = expanded(path)
    if str(place).startswith("~"):
        raise PerceptionError(f"{path}: this user has no home directory; set HOME, or give {option}")
    return place
