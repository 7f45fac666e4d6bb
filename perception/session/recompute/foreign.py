"""A session of somebody else is data: what it names is not opened unless the user trusts it.

A session holds the profile that it was recorded with, the folders of heads that were swapped in, and a number
of threads. To open them would read any file, fetch any model or occupy the machine. Without trust only what
this package provides is used: pretrained and random weights of its default models, and heads that ship.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import structs

from perception.errors import SessionError
from perception.fusion.build import cores
from perception.models.options import KINDS
from perception.profile import LAUNCH_DIR, EncoderConfig, FusionConfig, Profile
from perception.session.recompute.journal import Survey

TRUST: Final = "if you trust it, add --trust; else give --profile"
MAX_THREADS: Final = 1024
"""As in a profile."""
_PROVIDED: Final = (None, "pretrained", "random")
_HARMFUL: Final = ("model", "revision", "pca")
"""Options of encoders that name a model or a file; at their defaults they are this package's choice."""


def checked(profile: Profile, where: str) -> Profile:
    """Return the profile of a session that is not trusted, its head as it ships.

    Raises:
        SessionError: it names files or models that this package does not provide.
    """
    if profile.fusion is None:
        return profile
    named = list(_named(profile.fusion))
    head = profile.fusion.head.weights
    shipped = (LAUNCH_DIR / head).resolve()
    ships = shipped.is_relative_to(LAUNCH_DIR.resolve()) and (shipped / "config.json").is_file()
    if head != "random" and not ships:
        named.append(f"fusion.head = {head}")
    if named:
        raise SessionError(f"{where}: names what this package does not provide: {', '.join(named)}; {TRUST}")
    if head == "random":
        return profile
    fixed = profile.fusion.head.model_copy(update={"weights": str(shipped)})
    return profile.model_copy(update={"fusion": profile.fusion.model_copy(update={"head": fixed})})


def without_names(known: Survey) -> Survey:
    """Remove the folders that journals of a session name, and a number of threads that is not possible."""
    for source, uses in known.heads.items():
        known.heads[source] = [structs.replace(use, folder="") for use in uses]
    known.facts = bounded(known.facts)
    return known


def bounded(facts: Mapping[str, str | float]) -> dict[str, str | float]:
    """Return the facts of a live run without a number of threads that this machine does not have."""
    threads = facts.get("threads")
    fits = isinstance(threads, int | float) and 1 <= threads <= cores()
    return {name: value for name, value in facts.items() if name != "threads" or fits}


def _named(config: FusionConfig) -> Iterator[str]:
    if config.weights not in _PROVIDED:
        yield f"fusion.weights = {config.weights}"
    for name, encoder in config.encoders.items():
        if encoder.weights not in _PROVIDED:
            yield f"fusion.encoders.{name}.weights = {encoder.weights}"
        yield from (f"fusion.encoders.{name}.options.{one}" for one in _foreign_options(encoder))


def _foreign_options(encoder: EncoderConfig) -> Iterator[str]:
    """Yield the options that name a model or file, unless by default; torchvision's models are provided."""
    kind = KINDS.get(encoder.kind)
    for option in _HARMFUL:
        field = kind.model_fields.get(option) if kind is not None else None
        given = encoder.options.get(option)
        is_default = field is None or given is None or given == field.default
        if not is_default and (encoder.kind, option) != ("torchvision", "model"):
            yield f"{option} = {given}"
