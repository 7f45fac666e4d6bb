"""Options that name what is to be written: where that cannot be is said before any work is done."""

import os
from pathlib import Path
from typing import Any

import click

from perception.errors import PerceptionError


class OutputError(PerceptionError):
    """A file or folder cannot be written where an option wants it."""

    exit_code = 2


class OutFile(click.Path):
    """A file to be written, into a folder that is there.

    Args:
        error: what is raised where that cannot be, in one line.
        new: whether nothing may be there yet.
    """

    def __init__(self, error: type[PerceptionError] = OutputError, *, new: bool = False) -> None:
        super().__init__(path_type=Path)
        self._error = error
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; the error says what stands in the way."""
        path = Path(value)
        folder = path.absolute().parent
        if reason := unusable(path):
            raise self._error(f"{path}: {reason}")
        if self._new and os.path.lexists(path):
            raise self._error(f"{path} exists; remove it or choose another name")
        if path.is_dir():
            raise self._error(f"{path}: is a folder; give the name of a file in it")
        if not folder.is_dir():
            raise self._error(f"{path}: there is no folder {folder}; make it first")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise self._error(f"{path}: you may not write there")
        return path


class OutFolder(click.Path):
    """A folder to be written to; what is missing of its path is made. Arguments as of `OutFile`."""

    def __init__(self, error: type[PerceptionError] = OutputError, *, new: bool = False) -> None:
        super().__init__(path_type=Path)
        self._error = error
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; the error says what stands in the way."""
        path = Path(value)
        if reason := unusable(path):
            raise self._error(f"{path}: {reason}")
        if self._new and os.path.lexists(path):
            raise self._error(f"{path} exists; remove it or choose another name")
        there = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
        if not there.is_dir():
            raise self._error(f"{path}: {there} is no folder")
        if not os.access(there, os.W_OK):
            raise self._error(f"{path}: you may not write in {there}")
        return path


def unusable(path: Path) -> str:
    """Return why no file can have that name: too long, a circle of links; empty if one can."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""
