"""Types of values in a profile: names, topics, patterns, endpoints, sources.

A value that the bus would refuse when a node starts is refused here, when the profile is loaded.
"""

import re
from collections.abc import Callable
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from perception import topics
from perception.errors import PerceptionError, ProfileError
from perception.profile.endpoint import endpoint_at
from perception.profile.endpoint import parse as parse_endpoint

SCRIPTED: Final = "scripted"
FUSED_KINDS: Final = ("camera", "microphone", "text")
"""Prefixes of topics that a fusion accepts."""
_HIGHEST_INDEX: Final = 1023
"""Linux numbers at most 256 cameras (VIDEO_NUM_DEVICES); no sound system has as many devices."""
_FILE: Final = re.compile(r"\.(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{2,4}$")
_LONGEST_NAME: Final = topics.MAX_TOPIC_LENGTH - len("health/microphone-")


def _valid(check: Callable[[str], object]) -> AfterValidator:
    """Return a validator for pydantic that raises ValueError where `check` raises PerceptionError."""

    def validate(text: str) -> str:
        try:
            check(text)
        except PerceptionError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(validate)


def _check_name(name: str) -> None:
    """Names are part of topics, `camera/NAME`, and of file names."""
    if not re.fullmatch(rf"{topics.NAME}(/{topics.NAME})*", name) or len(name) > _LONGEST_NAME:
        raise ProfileError(
            f"a name has 1 to {_LONGEST_NAME} of the letters A to Z, digits, '_', '-' and '.', "
            "and does not begin with '.'"
        )


def _check_input(topic: str) -> None:
    topics.check_pattern(topic)
    kind = topics.kind_of(topic)
    if kind not in FUSED_KINDS:
        raise ProfileError(f"'{topic}' cannot be fused; camera, microphone, text can")
    if "*" in topic and kind != "text":
        raise ProfileError("only text topics may have a '*'")


def _check_source(source: str) -> None:
    if "\0" in source:
        raise ProfileError("names of devices and files cannot contain a zero byte")


def _check_connect(endpoint: str) -> None:
    if parse_endpoint(endpoint).bindable_only:
        raise ProfileError("is not a single address to connect to; expected tcp://HOST:PORT")


def _check_interface(address: str) -> None:
    parse_endpoint(endpoint_at(address, 1))


def _check_address(address: str) -> None:
    _check_connect(endpoint_at(address, 1))


def _check_bind(endpoint: str) -> None:
    if parse_endpoint(endpoint).name:
        raise ProfileError("names a key, which only an endpoint to connect to does; expected tcp://HOST:PORT")


def _check_recorded(pattern: str) -> None:
    """A session's topics are matched by file-name patterns; only their prefix is checked here."""
    kind = topics.kind_of(pattern)
    if kind not in topics.TOPICS and not set(kind) & set("*?["):
        raise ProfileError(f"matches no topic; kinds are {', '.join(topics.TOPICS)}")


Index = Annotated[int, Field(ge=0, le=_HIGHEST_INDEX, strict=True)]
"""Number of a device."""
Source = Annotated[str, Field(min_length=1), _valid(_check_source)]
"""Name of a device, file, address or model; not empty."""
Span = Annotated[float, Field(ge=0.001, le=3_600_000)]
"""Milliseconds, from one microsecond to an hour; memory use grows with it."""
Age = Annotated[float, Field(ge=0.001, le=86_400_000)]
"""Milliseconds, from one microsecond to a day."""
Name = Annotated[str, _valid(_check_name)]
"""Name of a device or a fusion: its topic without the prefix."""
Bind = Annotated[str, _valid(_check_bind)]
"""An endpoint to bind."""
Connect = Annotated[str, _valid(_check_connect)]
"""An endpoint to connect to."""
Address = Annotated[str, _valid(_check_address)]
"""Name or address of one host."""
Interface = Annotated[str, _valid(_check_interface)]
"""Address of this host to listen on, `*` for all."""
Pattern = Annotated[str, _valid(topics.check_pattern)]
"""A topic, or a prefix of topics that ends with `*`."""
Input = Annotated[str, _valid(_check_input)]
"""The topic of an input of the fusion."""
Recorded = Annotated[str, _valid(_check_recorded)]
"""A pattern of topics in a session."""


SourceKind = Literal["scripted", "device", "address", "file", "name"]


def source_kind(source: int | str) -> SourceKind:
    """Return the kind of a device source; only a microphone can be opened by name.

    A file has a folder, or a suffix that contains a letter: `USB Audio v1.25` is a name.
    """
    if isinstance(source, int) or source.startswith("/dev/"):
        return "device"
    if source == SCRIPTED:
        return "scripted"
    if "://" in source:
        return "address"
    return "file" if "/" in source or _FILE.search(source) else "name"
