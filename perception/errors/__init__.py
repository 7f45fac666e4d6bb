"""Errors for people: what is wrong, where, and what to do. Each class has its exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from perception.errors.credentials import without_credentials

DISTRIBUTION: Final = "perception-node"
"""Name of this package for pip; `perception` on the package index is another project."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""

INSTALL: Final = f"uv sync in a checkout, else pip install --upgrade {DISTRIBUTION}"
"""Command that installs or repairs packages."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another package; of one without a text, its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def needs(package: str, extra: str) -> str:
    """Return one line: how to install a package that belongs to an extra."""
    return f"needs {package}: pip install '{DISTRIBUTION}[{extra}]'"


class PerceptionError(Exception):
    """An error with one line of text for the user; the command prints it without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the line without credentials of URLs."""
        return without_credentials(super().__str__())


class ProfileError(PerceptionError):
    """A profile key is unknown, missing or of the wrong type. A restart cannot repair it."""

    exit_code = 2


class DeviceError(PerceptionError):
    """A camera, microphone or media file cannot be opened, or stopped delivering."""

    exit_code = 3


class WeightsError(PerceptionError):
    """Model weights are missing, unreachable or do not match their hash."""

    exit_code = 4


class BusError(PerceptionError):
    """A socket cannot be bound or connected, or an endpoint is unsafe."""

    exit_code = 5


class MalformedMessageError(PerceptionError, ValueError):
    """Bytes from the wire are not a message: too large, undecodable or against the schema."""

    exit_code = 6


class SessionError(PerceptionError):
    """A session file cannot be opened, written or converted."""

    exit_code = 7


class NoStateError(PerceptionError):
    """The fusion of a run published no state."""

    exit_code = 8


class MissingPackageError(PerceptionError):
    """A package or system library is missing or broken. A restart cannot repair it."""

    exit_code = 9


@contextmanager
def located(where: str | None) -> Iterator[None]:
    """Prefix errors about keys of `[fusion]` with `where`, the place the table came from, unless None."""
    try:
        yield
    except (ProfileError, WeightsError) as error:
        if where is None or not str(error).startswith("fusion."):
            raise
        raise type(error)(f"{where}: {error}") from error


@contextmanager
def extras() -> Iterator[None]:
    """Raise SessionError with one line, what to install, where an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("pyarrow", "rosbags"):
            raise
        raise SessionError(needs(str(error.name), "export")) from error
