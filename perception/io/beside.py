"""Atomic writes: a file or folder is written in a temporary folder beside its target, then renamed.

What is written shows rooms and people, whatever its format: only its owner can access it.
"""

import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from safetensors import SafetensorError

from perception.errors import SessionError

_PREFIX: Final = ".perception-"
_BEFORE: Final = ".before"
_LOG: Final = logging.getLogger(__name__)


@contextmanager
def beside(target: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yield the path to write to; it is renamed to `target` when the context ends without an error.

    With `replace` an existing `target` is replaced as a whole; without it `target` must not exist.

    Other users cannot access the target, nor what is in it if it is a folder.

    Raises:
        SessionError: `target` exists, or cannot be written, for example because the disk is full.
    """
    target = Path(target)
    if not replace:
        refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A separate folder, so that the file already has its final name: some formats store it.
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    except OSError as error:
        raise SessionError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield folder / target.name
        make_private(folder / target.name)
        if replace and target.exists():
            _swap(folder / target.name, target, folder / f"{target.name}{_BEFORE}")
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
    """Rename `target` to `before` and `made` to `target`; on OSError `target` is restored.

    A process killed between the two leaves no `target`: see `restore`.
    """
    os.rename(target, before)
    try:
        os.rename(made, target)
    except OSError:
        os.rename(before, target)
        raise


def restore(target: Path | str) -> None:
    """Complete the replacement of `target` by a process that was killed during it; log it.

    A replacement that was not renamed yet is complete: it is renamed to `target` if that is missing. If both
    renames were done, the folder that is left beside `target` is removed; `target` may be gone by then.

    Raises:
        SessionError: the rename fails.
    """
    target = Path(target)
    for before in target.parent.glob(f"{_PREFIX}*/{glob.escape(target.name)}{_BEFORE}"):
        made = before.parent / target.name
        if made.exists() and not os.path.lexists(target):
            try:
                os.rename(made, target)
            except OSError as error:
                raise SessionError(f"cannot restore {target} from {made}: {error.strerror}") from error
            _LOG.warning("%s restored: a process was killed while it replaced it", target)
        if not made.exists():
            shutil.rmtree(before.parent, ignore_errors=True)


@contextmanager
def written(target: Path) -> Iterator[None]:
    """Raise SessionError with one line where `target` cannot be written: disk full, no permission."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        named = getattr(error, "filename", None)
        if named is not None and not Path(os.fsdecode(named)).is_relative_to(target):
            raise SessionError(f"{os.fsdecode(named)}: {getattr(error, 'strerror', error)}") from error
        raise SessionError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error


def refuse_existing(target: Path | str) -> None:
    """Raise SessionError if `target` exists."""
    if os.path.lexists(target):
        raise SessionError(f"{target} exists; remove it or choose another name")


def make_private(path: Path) -> None:
    """Remove the rights of other users to a file, or to a folder and all in it; OSError if that fails."""
    for one in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not one.is_symlink():
            one.chmod(one.stat().st_mode & 0o700)


def create_private(path: Path, *, exclusive: bool = False) -> BinaryIO:
    """Return a file opened to write; if it is created, only its owner can access it. OSError if it fails.

    With `exclusive` it must not exist.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def replace_file(file: Path, data: bytes) -> None:
    """Write or replace a file atomically, private to its owner; OSError if that fails."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with create_private(part) as opened:
            opened.write(data)
        part.replace(file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
