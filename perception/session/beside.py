"""What is written is there in the end whole or not at all: made beside its place, then moved there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perception.errors import SessionError


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yield where to write the file or folder that becomes `target` when the context ends without an error.

    Raises:
        SessionError: `target` exists, or the disk does not take it, when it is full for instance.
    """
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that what is made has its final name: some formats keep it.
        folder = Path(tempfile.mkdtemp(prefix=".perception-", dir=target.parent))
    except OSError as error:
        raise SessionError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield folder / target.name
        refuse_existing(target)
        os.rename(folder / target.name, target)
    except OSError as error:
        named = error.filename
        if named is not None and not Path(os.fsdecode(named)).is_relative_to(folder):
            raise SessionError(f"{os.fsdecode(named)}: {error.strerror}") from error
        raise SessionError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Raise SessionError if something is in the place already."""
    if target.exists() or target.is_symlink():
        raise SessionError(f"{target} exists; remove it or choose another name")
