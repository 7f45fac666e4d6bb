"""Options that name a file or folder to write: an impossible path is refused before any work is done."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import click

from perception.errors import PerceptionError


class OutputError(PerceptionError):
    """The file or folder that an option names cannot be written."""

    exit_code = 2


class _OutPath(click.Path, ABC):
    """Option type: a path to write to.

    Args:
        error: class of the error where it cannot be written.
        new: whether nothing must be there yet.
    """

    def __init__(self, error: type[PerceptionError] = OutputError, *, new: bool = False) -> None:
        super().__init__(path_type=Path)
        self._error = error
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or raise the error with its reason."""
        path = Path(value)
        reason = unusable(path)
        if not reason and self._new and os.path.lexists(path):
            raise self._error(f"{path} exists; remove it or choose another name")
        if reason := reason or self._obstacle(path):
            raise self._error(f"{path}: {reason}")
        return path

    @abstractmethod
    def _obstacle(self, path: Path) -> str:
        """Return why the path cannot be written to, empty if it can."""


class OutFile(_OutPath):
    """Option type: a file to write, in an existing folder. Arguments as of `_OutPath`."""

    def _obstacle(self, path: Path) -> str:
        folder = path.absolute().parent
        if path.is_dir():
            return "is a folder; give the name of a file in it"
        if not folder.is_dir():
            return f"no such folder: {folder}; create it first"
        writable = os.access(path if path.exists() else folder, os.W_OK)
        return "" if writable else "no permission to write there"


class OutFolder(_OutPath):
    """Option type: a folder to write to, created with its parents if missing. Arguments as of `_OutPath`."""

    def _obstacle(self, path: Path) -> str:
        there = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
        if not there.is_dir():
            return f"{there} is not a folder"
        return "" if os.access(there, os.W_OK) else f"no permission to write in {there}"


def unusable(path: Path) -> str:
    """Return why no file can have this name, such as too long or a circle of links; empty if one can."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""
