"""One-line texts for values that do not validate, with each key."""

import re
from collections.abc import Collection
from typing import Any, Final

from pydantic import ValidationError

from perception.errors.credentials import without_credentials


def problems(
    error: ValidationError,
    *,
    table: tuple[str, ...] = (),
    overridden: Collection[str] = (),
    no_such: str = "no such key",
) -> str:
    """Return one line: what is wrong with each key.

    Args:
        error: of the values of a table.
        table: parts of the dotted key of that table.
        overridden: dotted keys given by `--set`.
        no_such: text for an unknown key.
    """
    details = [detail for detail in error.errors() if not _follows(detail)]
    return "; ".join(_problem(detail, table, overridden, no_such) for detail in details)


_INNER: Final = ("[key]", "constrained-", "function-")
"""Prefixes of the parts that pydantic adds to the location of an error: types of values, not keys."""


def _follows(detail: Any) -> bool:
    """Return whether another error caused this one: a list is too short after its items were refused."""
    return bool(detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"])


def _problem(detail: Any, table: tuple[str, ...], overridden: Collection[str], no_such: str) -> str:
    inside = [part for part in detail["loc"] if not str(part).startswith(_INNER)]
    parts = [*table, *inside]
    key, given = ".".join(map(_part, parts)), ".".join(map(str, parts))
    where = f"--set {given}" if given in overridden else key
    if detail["type"] == "extra_forbidden":
        return f"{where}: {no_such}"
    message = without_credentials(detail["msg"].removeprefix("Value error, "))
    got = repr(without_credentials(str(detail["input"]))[:60])
    if not key:
        return str(message)
    return f"{where}: {message}" if got in message else f"{where}: {message} (got {got})"


def _part(part: str | int) -> str:
    """Return a part of a dotted key as TOML writes it."""
    text = str(part)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else f'"{text[:60]}"'
