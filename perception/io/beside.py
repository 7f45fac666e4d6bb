"""What is written is there in the end whole or not at all: made beside its place, then moved there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from perception.errors import SessionError


@contextmanager
def beside(target: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yield where to write the file or folder that becomes `target` when the context ends without an error.

    With `replace` it takes the place of what is there, of which nothing is left; else nothing may be there.

    Raises:
        SessionError: `target` exists, or the disk does not take it, when it is full for instance.
    """
    target = Path(target)
    if not replace:
        refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that what is made has its final name: some formats keep it.
        folder = Path(tempfile.mkdtemp(prefix=".perception-", dir=target.parent))
    except OSError as error:
        raise SessionError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield folder / target.name
        if replace and target.exists():
            _swap(folder / target.name, target, folder / f"{target.name}.before")
        else:
            refuse_existing(target)
            os.rename(folder / target.name, target)
    except OSError as error:
        named = error.filename
        if named is not None and not Path(os.fsdecode(named)).is_relative_to(folder):
            raise SessionError(f"{os.fsdecode(named)}: {error.strerror}") from error
        raise SessionError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(made: Path, target: Path, before: Path) -> None:
    """Move `target` to `before` and `made` to `target`; OSError, and `target` as it was, if that fails."""
    os.rename(target, before)
    try:
        os.rename(made, target)
    except OSError:
        os.rename(before, target)
        raise


@contextmanager
def written(target: Path) -> Iterator[None]:
    """Raise SessionError, in one line, where a disk that is full or closed to us does not take `target`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        named = getattr(error, "filename", None)
        if named is not None and not Path(os.fsdecode(named)).is_relative_to(target):
            raise SessionError(f"{os.fsdecode(named)}: {getattr(error, 'strerror', error)}") from error
        raise SessionError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error


def refuse_existing(target: Path | str) -> None:
    """Raise SessionError if something is in the place already."""
    if os.path.lexists(target):
        raise SessionError(f"{target} exists; remove it or choose another name")


def replace_file(file: Path, data: bytes) -> None:
    """Write a file, in the place of an older one where there is one, whole or not at all; OSError if not."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
