"""Features of frozen encoders on disk: computed once per source, found by a hash of all that decides them.

Rules. Any process may read and write at any time. One safetensors file per source, written to a temporary
name and renamed, so it is whole or absent and an interrupted run continues where it stopped. Files are
mapped: a row is read when a batch needs it.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from perception.errors import SessionError
from perception.models.checkpoint import config_hash
from perception.units import Counts

_COUNTS: Final = "counts"
VERSION: Final = 7
"""Increased when the same source, encoders and configuration would give other features."""


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(source: str, encoders: str, config: Mapping[str, Any]) -> str:
    """Return the name under which features are stored.

    Args:
        source: hash of the data.
        encoders: hash of their weights.
        config: everything else that decides windows and features, as plain data.
    """
    return config_hash({"version": VERSION, "source": source, "encoders": encoders, "config": dict(config)})


class Cache:
    """A folder of cached features, created when the first are stored.

    Args:
        folder: where they are stored.
        option: the command's option that sets another folder, for errors.
    """

    def __init__(self, folder: Path, option: str = "--cache") -> None:
        self.folder = folder
        self._option = option

    def get(self, name: str) -> dict[str, torch.Tensor] | None:
        """Return the tensors stored under a name, mapped from the file; None if there are none."""
        try:
            with safe_open(self._file(name), framework="pt") as file:
                return {entry: file.get_tensor(entry) for entry in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def put(self, name: str, tensors: Mapping[str, torch.Tensor], counts: Counts | None = None) -> None:
        """Store tensors under a name, with the counters of what did not enter their windows.

        Raises:
            SessionError: they cannot be written; nothing is stored.
        """
        part = self.folder / f"{name}.{os.getpid()}.part"
        rows = {entry: value.contiguous() for entry, value in tensors.items()}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.touch(mode=0o600)  # features of a session are as private as the session
            save_file(rows, part, metadata={_COUNTS: json.dumps(counts or {})})
            part.replace(self._file(name))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SessionError(
                f"cannot write {self.folder}: {reason}; choose another place by {self._option}"
            ) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
                self.folder.rmdir()  # fails unless the folder is empty

    def counts(self, name: str) -> Counts:
        """Return the counters stored under a name; empty if the file is missing or damaged."""
        try:
            with safe_open(self._file(name), framework="pt") as file:
                stored = json.loads((file.metadata() or {}).get(_COUNTS, "{}"))
            return defaultdict(Counter, {topic: Counter(reasons) for topic, reasons in stored.items()})
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError):
            return defaultdict(Counter)

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
