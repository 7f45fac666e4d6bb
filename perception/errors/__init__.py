"""Errors for people: what is wrong, where, and what to do. Each kind has its exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from perception.errors.credentials import without_credentials

DISTRIBUTION: Final = "perception-node"
"""What this package is installed as; the name `perception` on the package index is another project's."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

INSTALL: Final = f"uv sync in a checkout, else pip install --upgrade {DISTRIBUTION}"
"""What puts packages right."""


def needs(package: str, extra: str) -> str:
    """Return in one line how to get a package that comes with an extra."""
    return f"needs {package}: pip install '{DISTRIBUTION}[{extra}]'"


class PerceptionError(Exception):
    """An error whose text is one line a user can act on; the command prints it without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the line; no credentials of a URL are in it, whoever worded it."""
        return without_credentials(super().__str__())


class ProfileError(PerceptionError):
    """A profile key is unknown, missing or of the wrong type. Restarting cannot repair it."""

    exit_code = 2


class DeviceError(PerceptionError):
    """A camera, microphone or media file cannot be opened or stopped delivering."""

    exit_code = 3


class WeightsError(PerceptionError):
    """Model weights are missing, unreachable or not what their hash promised."""

    exit_code = 4


class BusError(PerceptionError):
    """A socket cannot be bound or connected, or an endpoint is refused for safety."""

    exit_code = 5


class MalformedMessageError(PerceptionError, ValueError):
    """Bytes from the wire that are not a message: oversized, undecodable or against the schema."""

    exit_code = 6


class SessionError(PerceptionError):
    """A session file cannot be opened, written or converted."""

    exit_code = 7


class NoStateError(PerceptionError):
    """A run whose fusion published no state."""

    exit_code = 8


class MissingPackageError(PerceptionError):
    """A package or system library is missing or broken. Restarting cannot repair it."""

    exit_code = 9


@contextmanager
def located(where: str | None) -> Iterator[None]:
    """Put in front of what is wrong with a key of `[fusion]` where that came from, if it is known."""
    try:
        yield
    except (ProfileError, WeightsError) as error:
        if where is None or not str(error).startswith("fusion."):
            raise
        raise type(error)(f"{where}: {error}") from error


@contextmanager
def extras() -> Iterator[None]:
    """Say in one line what to install where an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("pyarrow", "rosbags"):
            raise
        raise SessionError(needs(str(error.name), "export")) from error
