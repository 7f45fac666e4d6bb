"""Whether a locked file is still the one at its path."""

import os
from pathlib import Path


def same_file(path: Path, descriptor: int) -> bool:
    """Return whether the file at a path is the open one; otherwise a lock on the open one has no effect."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
