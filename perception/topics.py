"""The one table of topics: name pattern -> message type, queue policy."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from perception import messages
from perception.errors import BusError

Policy = Literal["latest", "queue"]


@dataclass(frozen=True, slots=True)
class Topic:
    """Message type and queue policy of all topics with one prefix.

    `latest` keeps the newest `depth` messages, drops older ones and counts them. `queue` keeps the oldest
    `depth` in order, drops newer ones and counts them; it also drops a message that would raise the sum of
    its payloads above `max_queued_bytes`.
    """

    prefix: str
    message: type[messages.Header]
    policy: Policy
    depth: int
    max_payload_bytes: int
    max_queued_bytes: int = 256 << 20


_MIB: Final = 1 << 20
TOPICS: Final[dict[str, Topic]] = {
    topic.prefix: topic
    for topic in (
        Topic("camera", messages.CameraFrame, "latest", 1, 64 * _MIB),
        Topic("microphone", messages.AudioBlock, "queue", 512, 4 * _MIB),
        Topic("text", messages.TextCommand, "queue", 256, 0),
        Topic("label", messages.Label, "queue", 1024, 0),
        Topic("state", messages.FusedState, "latest", 8, 4 * _MIB),
        Topic("health", messages.Health, "latest", 1, 0),
        Topic("clock", messages.ClockTick, "queue", 1024, 0),
        Topic("journal", messages.Journal, "queue", 1024, 0),
        Topic("control", messages.SwapRequest, "queue", 64, 0),
        Topic("head", messages.HeadStatus, "queue", 1024, 0),
    )
}
MAX_HEADER_BYTES: Final = 256 * 1024
NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_TOPIC: Final = re.compile(rf"[a-z]+(/{NAME})+")
MAX_TOPIC_LENGTH: Final = 64


def kind_of(topic: str) -> str:
    """Return `camera` of `camera/front`: the prefix of a topic or of a pattern."""
    return topic.partition("/")[0]


def name_of(topic: str) -> str:
    """Return `front` of `camera/front`: a topic without its prefix."""
    return topic.partition("/")[2]


@lru_cache(maxsize=256)
def lookup(name: str) -> Topic:
    """Return the table row of a topic such as `camera/front`; BusError lists the valid topics."""
    row = TOPICS.get(kind_of(name))
    if row is None or len(name) > MAX_TOPIC_LENGTH or not _TOPIC.fullmatch(name):
        kinds = ", ".join(f"{prefix}/<name>" for prefix in TOPICS)
        raise BusError(f"'{name[:80]}' is not a topic; topics are {kinds}")
    return row


def check_pattern(pattern: str) -> str:
    """Return the pattern: a topic, or a prefix of topics that ends with `*`; BusError if it matches none."""
    kind, name = kind_of(pattern), name_of(pattern)
    if not pattern.endswith("*"):
        lookup(pattern)
    elif pattern != "*" and (kind not in TOPICS or "*" in name[:-1] or not _may_begin(kind, name[:-1])):
        kinds = ", ".join(f"{prefix}/*" for prefix in TOPICS)
        raise BusError(f"'{pattern[:80]}' matches no topic; try '*' or one of {kinds}")
    return pattern


def _may_begin(kind: str, beginning: str) -> bool:
    """Return whether a topic may begin with this text: with one more letter it is a valid topic."""
    return _TOPIC.fullmatch(f"{kind}/{beginning}a") is not None and len(beginning) < MAX_TOPIC_LENGTH


def matches(pattern: str, topic: str) -> bool:
    """Return whether a topic matches a pattern."""
    return topic.startswith(pattern[:-1]) if pattern.endswith("*") else topic == pattern


def overlap(one: str, other: str) -> bool:
    """Return whether a topic can match both patterns."""
    return matches(one, other.removesuffix("*")) or matches(other, one.removesuffix("*"))
