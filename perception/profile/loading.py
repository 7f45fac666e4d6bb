"""From TOML files and `--set` overrides to a validated `Profile`."""

import json
import os
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from perception.errors import ProfileError
from perception.io.text_file import read_text
from perception.profile.problems import problems
from perception.profile.root import WHERE, Profile

_CHECKOUT: Final = Path(__file__).resolve().parents[2] / "launch"
_INSTALLED: Final = Path(__file__).resolve().parents[1] / "launch"
LAUNCH_DIR: Final = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def find(name: str, folder: Path | None = None) -> Path:
    """Return the file of a profile; ProfileError if there is none.

    Args:
        name: path ending in .toml, or name of a shipped profile.
        folder: base of a relative path; default: the working directory.
    """
    path = (folder or Path()) / name
    if path.suffix == ".toml":
        if os.path.isfile(path):  # Path.is_file raises for names that no system accepts
            return path
        raise ProfileError(f"{path}: no such profile file")
    shipped = LAUNCH_DIR / f"{name}.toml"
    if os.path.isfile(shipped):
        return shipped
    names = ", ".join(sorted(file.stem for file in LAUNCH_DIR.glob("*.toml")))
    raise ProfileError(f"'{name}' is no profile; shipped are {names}, or give a path ending in .toml")


OVERRIDES_VARIABLE: Final = "PERCEPTION_SET"
"""JSON list of overrides for the nodes of a graph. Every user of the host can read a command line."""


def load(name: str | Path, overrides: tuple[str, ...] = ()) -> Profile:
    """Load and validate a profile.

    Args:
        name: path of a TOML file, or the name of a shipped profile.
        overrides: `dotted.key=value` as given to `--set`; a value that is not TOML is a string.

    Raises:
        ProfileError: names file, key and what was expected.
    """
    path = find(str(name))
    data = _read(path)
    for override in overrides:
        _override(data, override)
    return parse(data, where=str(path), overridden=[override.partition("=")[0] for override in overrides])


def _read(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file. `base = "demo"` in its `[fusion]` merges it into the `[fusion]` of that profile.

    Relative paths of a base and of keys are relative to the file that names them. `inside`: the files that
    led here through `base`.
    """
    try:
        data = tomllib.loads(read_text(path))
    except ValueError as error:  # TOML, UTF-8, or a number with more digits than Python reads
        raise ProfileError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ProfileError(f"{path}: its tables or lists are nested too deeply") from error
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    if isinstance(data.get("keys"), str):
        data["keys"] = str(path.parent / data["keys"])
    fusion = data.get("fusion")
    if isinstance(fusion, dict) and "base" in fusion:
        data["fusion"] = _merged(_base(fusion.pop("base"), path, (*inside, path.resolve())), fusion)
    return data


def _base(name: Any, path: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
    """Return the `[fusion]` table of the base that the profile at `path` names."""
    if not isinstance(name, str):
        raise ProfileError(f"{path}: fusion.base: expected a profile's name or file (got {name!r})")
    try:
        base = find(name, path.parent)
    except ProfileError as error:
        raise ProfileError(f"{path}: fusion.base: {error}") from error
    if base.resolve() in inside:
        circle = " -> ".join(map(str, (*inside[inside.index(base.resolve()) :], base.resolve())))
        raise ProfileError(f"{path}: fusion.base: a profile cannot be its own base: {circle}")
    fusion = _read(base, inside).get("fusion")
    if not isinstance(fusion, dict):
        raise ProfileError(f"{path}: fusion.base: {base} has no [fusion] table")
    return fusion


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value)
        if isinstance(base.get(key), dict) and isinstance(value, dict)
        else value
        for key, value in changes.items()
    }
    return base | both


def parse(data: dict[str, Any], *, where: str, overridden: Collection[str] = ()) -> Profile:
    """Return the validated profile; ProfileError lists every wrong key.

    Args:
        data: tables as TOML gives them.
        where: file of the data, for errors.
        overridden: keys that came from `--set` instead.
    """
    try:
        return Profile.model_validate(data, context={WHERE: where})
    except ValidationError as error:
        raise ProfileError(f"{where}: {problems(error, overridden=overridden)}") from error


def as_override(key: str, value: str | float | bool | list[str]) -> str:
    """Return the override that sets a key to exactly this value, with any characters."""
    # JSON is valid TOML, except escapes of characters beyond the BMP (surrogate pairs) and a raw DEL.
    return f"{key}={json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ProfileError(f"--set {override}: expected dotted.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ProfileError(f"--set {override}: '{table}' is not a table")
    data[last] = value
