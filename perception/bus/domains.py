"""Selects the graph where no domain is named: the only one that is up."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from perception.bus.host import DOMAIN_VARIABLE, Runtime, base_directory
from perception.errors import PerceptionError
from perception.topics import kind_of

NONE_UP: Final = "no graph is up"
JOINED_DOMAIN: Final = "Graph to join. Default: $PERCEPTION_DOMAIN, else the only one that is up."
"""Help of every command that joins a graph."""


def graphs_up(base: Path | None = None) -> list[str]:
    """Return the domains in which at least one node publishes its health, sorted."""
    base = base or base_directory()
    folders = [folder for folder in base.iterdir() if (folder / "health").is_dir()]
    return sorted(
        folder.name
        for folder in folders
        if any(kind_of(topic) == "health" for topic in Runtime(folder.name, base).topics())
    )


def named(domain: str | None) -> bool:
    """Return whether a domain is named, by the caller or by $PERCEPTION_DOMAIN."""
    return domain is not None or bool(os.environ.get(DOMAIN_VARIABLE))


def find(domain: str | None = None, base: Path | None = None) -> Runtime | None:
    """Return the named domain, else that of the only graph that is up; None if no graph is up.

    Args:
        domain: name; default: $PERCEPTION_DOMAIN, else that of the only graph.
        base: directory of all domains; default: the user's runtime directory.

    Raises:
        PerceptionError: no domain is named and several graphs are up; the error lists them.
    """
    if named(domain):
        return Runtime(domain, base)
    names = graphs_up(base)
    if len(names) > 1:
        raise PerceptionError(f"several graphs are up: {', '.join(names)}; name one, by --domain or domain=")
    return Runtime(names[0], base) if names else None


def joined(domain: str | None) -> Runtime:
    """Return the domain as `find` does; PerceptionError also if no graph is up."""
    runtime = find(domain)
    if runtime is None:
        raise PerceptionError(f"{NONE_UP}; start one: perception up PROFILE")
    return runtime


def first_domain(base: Path, wanted: Callable[[str], bool]) -> Runtime | None:
    """Return the domain for a reader that waits: of the only graph, else `default` if it has a wanted topic.

    Programs without a graph publish to `default`. Raises PerceptionError as `find` does.
    """
    if (runtime := find(base=base)) is not None:
        return runtime
    usual = Runtime("default", base)
    return usual if any(map(wanted, usual.topics())) else None
