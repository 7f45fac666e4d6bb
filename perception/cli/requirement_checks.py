"""Whether this Python and its packages are those that the installed package requires."""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from packaging.requirements import Requirement

from perception.cli.finding import Finding
from perception.cli.package_checks import Outcome
from perception.errors import INSTALL


def check_distribution(name: str) -> Iterator[Finding]:
    """Compare this machine with what the installed package requires; a warning if it is not installed."""
    try:
        required = importlib.metadata.metadata(name)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("package", "warn", f"{name} is not installed: what it requires is not known", INSTALL)
        return
    yield check_python(sys.version_info[:3], required)
    yield from check_packages(importlib.metadata.requires(name) or [], _installed)


def check_python(version: tuple[int, int, int], required: str) -> Finding:
    """Compare the Python version with the one required."""
    words = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if Requirement(f"python{required}").specifier.contains(".".join(map(str, version))):
        return Finding("python", "ok", words)
    return Finding("python", "fail", f"{words}, needs {required}", f"install such a Python, then {INSTALL}")


def check_packages(requirements: Iterable[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Yield each requirement that no installed version fulfils, then the number of fulfilled ones."""
    fitting = 0
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            yield Finding("package", "fail", f"{requirement.name} is not installed", INSTALL)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding("package", "fail", f"{requirement.name} {version}, needs {requirement}", INSTALL)
        else:
            fitting += 1
    yield Finding("packages", "ok", f"{fitting} installed in the versions required")


def check_imports(outcomes: Mapping[str, Outcome], *, microphone_needed: bool) -> Iterator[Finding]:
    """Yield for each probed package whether it works; sounddevice may fail if no microphone is needed."""
    for package, outcome in outcomes.items():
        if not outcome.problem:
            version = outcome.facts.get("version", "")
            yield Finding(f"import {package}", "ok", f"works {version}".strip())
            continue
        optional = package == "sounddevice" and not microphone_needed
        yield Finding(f"import {package}", "warn" if optional else "fail", outcome.problem, outcome.advice)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
