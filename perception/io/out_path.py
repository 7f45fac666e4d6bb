"""Options that name a file or folder to write: an impossible path is refused before any work is done."""

import os
from pathlib import Path
from typing import Any

import click

from perception.errors import PerceptionError


class OutputError(PerceptionError):
    """The file or folder that an option names cannot be written."""

    exit_code = 2


class OutFile(click.Path):
    """Option type: a file to write, in an existing folder.

    Args:
        error: class of the error where it cannot be written.
        new: whether the file must not exist.
    """

    def __init__(self, error: type[PerceptionError] = OutputError, *, new: bool = False) -> None:
        super().__init__(path_type=Path)
        self._error = error
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or raise the error with its reason."""
        path = Path(value)
        folder = path.absolute().parent
        if reason := unusable(path):
            raise self._error(f"{path}: {reason}")
        if self._new and os.path.lexists(path):
            raise self._error(f"{path} exists; remove it or choose another name")
        if path.is_dir():
            raise self._error(f"{path}: is a folder; give the name of a file in it")
        if not folder.is_dir():
            raise self._error(f"{path}: no such folder: {folder}; create it first")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise self._error(f"{path}: no permission to write there")
        return path


class OutFolder(click.Path):
    """Option type: a folder to write to, created with its parents if missing. Arguments as of `OutFile`."""

    def __init__(self, error: type[PerceptionError] = OutputError, *, new: bool = False) -> None:
        super().__init__(path_type=Path)
        self._error = error
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or raise the error with its reason."""
        path = Path(value)
        if reason := unusable(path):
            raise self._error(f"{path}: {reason}")
        if self._new and os.path.lexists(path):
            raise self._error(f"{path} exists; remove it or choose another name")
        there = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
        if not there.is_dir():
            raise self._error(f"{path}: {there} is not a folder")
        if not os.access(there, os.W_OK):
            raise self._error(f"{path}: no permission to write in {there}")
        return path


def unusable(path: Path) -> str:
    """Return why no file can have this name, such as too long or a circle of links; empty if one can."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""
