"""What keys of a profile may hold: names, topics, patterns, endpoints, sources.

What the bus would refuse when a node starts is refused here, when the profile is loaded.
"""

import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from perception import topics
from perception.errors import PerceptionError, ProfileError
from perception.profile import endpoint as endpoints

SCRIPTED: Final = "scripted"
FUSED_KINDS: Final = ("camera", "microphone", "text")
"""Kinds of topics that a fusion takes."""
_HIGHEST_INDEX: Final = 1023
"""Linux numbers at most 256 cameras (VIDEO_NUM_DEVICES); no sound system has as many devices."""
_FILE: Final = re.compile(r"\.(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{2,4}$")
_LONGEST_NAME: Final = topics.MAX_TOPIC_LENGTH - len("health/microphone-")


def _valid(check: Callable[[str], object]) -> AfterValidator:
    """Return a check of the bus as one of a profile."""

    def validate(text: str) -> str:
        try:
            check(text)
        except PerceptionError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(validate)


def _check_name(name: str) -> None:
    """Names stand in topics, `camera/NAME`, and in names of files."""
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
        raise ProfileError("no name of a device or file holds a zero byte")


def _check_connect(endpoint: str) -> None:
    if endpoints.parse(endpoint).bindable_only:
        raise ProfileError("names no single place to connect to; expected tcp://HOST:PORT")


def _check_recorded(pattern: str) -> None:
    """A session's topics are matched by file-name patterns; only their kind is known beforehand."""
    kind = topics.kind_of(pattern)
    if kind not in topics.TOPICS and not set(kind) & set("*?["):
        raise ProfileError(f"matches no topic; kinds are {', '.join(topics.TOPICS)}")


Index = Annotated[int, Field(ge=0, le=_HIGHEST_INDEX, strict=True)]
"""Number of a device."""
Source = Annotated[str, Field(min_length=1), _valid(_check_source)]
"""Name of a device, file, address or model: not empty."""
Span = Annotated[float, Field(gt=0, le=3_600_000)]
"""Milliseconds, up to an hour: what is kept in memory grows with them."""
Positive = Annotated[float, Field(gt=0)]
"""Above 0."""
Name = Annotated[str, _valid(_check_name)]
"""Of a device or a fusion: the rest of its topic."""
Bind = Annotated[str, _valid(endpoints.parse)]
"""An endpoint to bind."""
Connect = Annotated[str, _valid(_check_connect)]
"""An endpoint to connect to."""
Pattern = Annotated[str, _valid(topics.check_pattern)]
"""A topic, or a beginning of topics with a `*`."""
Input = Annotated[str, _valid(_check_input)]
"""The topic of an input of the fusion."""
Recorded = Annotated[str, _valid(_check_recorded)]
"""A pattern of topics in a session."""


def is_file_name(source: str) -> bool:
    """Return whether a camera's or microphone's source names a file rather than a device or a stream.

    It does if it has a folder, or a suffix with a letter in it: `USB Audio v1.25` is a device.
    """
    return "://" not in source and ("/" in source or _FILE.search(source) is not None)
