"""One line of an examination of this machine, and how findings are printed."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, TextIO

from rich.console import Console
from rich.text import Text

from perception.errors.credentials import harmless, without_credentials

Level = Literal["ok", "warn", "fail"]
_STYLE: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Finding(NamedTuple):
    """One line of `perception doctor`."""

    check: str
    level: Level
    detail: str
    advice: str = ""


def print_findings(findings: Iterable[Finding], file: TextIO) -> int:
    """Print each finding as soon as it is found; return 1 if one failed, else 0."""
    console = Console(file=file, soft_wrap=True, highlight=False)
    failed = False
    for finding in findings:
        failed |= finding.level == "fail"
        advice = f" -> {finding.advice}" if finding.advice else ""
        line = (f"{finding.level:<5}", _STYLE[finding.level])
        text = harmless(without_credentials(f"{finding.check}: {finding.detail}{advice}"))
        console.print(Text.assemble(line, text))
    return int(failed)
