"""The one table of topics: name pattern -> message type, queue policy, recorded schema."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from perception import messages
from perception.errors import BusError

Policy = Literal["latest", "queue"]


@dataclass(frozen=True, slots=True)
class Topic:
    """How every topic under one prefix behaves.

    `latest` keeps the newest `depth` messages and counts the older ones it drops; `queue` keeps the
    oldest `depth`, so what was queued stays in order, and counts what no longer fits. A queue also
    refuses what would make its payloads more than `max_queued_bytes`.
    """

    prefix: str
    message: type[messages.Header]
    policy: Policy
    depth: int
    max_payload_bytes: int
    recorded_schema: str
    max_queued_bytes: int = 256 << 20


_MIB: Final = 1 << 20
TOPICS: Final[dict[str, Topic]] = {
    topic.prefix: topic
    for topic in (
        Topic("camera", messages.CameraFrame, "latest", 1, 64 * _MIB, "foxglove.CompressedImage"),
        Topic("microphone", messages.AudioBlock, "queue", 512, 4 * _MIB, "foxglove.RawAudio"),
        Topic("text", messages.TextCommand, "queue", 256, 0, "foxglove.Log"),
        Topic("label", messages.Label, "queue", 1024, 0, "perception.Label"),
        Topic("state", messages.FusedState, "latest", 8, 4 * _MIB, "perception.FusedState"),
        Topic("health", messages.Health, "latest", 1, 0, "perception.Health"),
        Topic("clock", messages.ClockTick, "queue", 1024, 0, "perception.ClockTick"),
        Topic("journal", messages.Journal, "queue", 1024, 0, "perception.Journal"),
        Topic("control", messages.SwapRequest, "queue", 64, 0, "perception.SwapRequest"),
        Topic("head", messages.HeadStatus, "queue", 1024, 0, "perception.HeadStatus"),
    )
}
MAX_HEADER_BYTES: Final = 256 * 1024
_NAME: Final = re.compile(r"[a-z]+(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
MAX_TOPIC_LENGTH: Final = 64


@lru_cache(maxsize=256)
def lookup(name: str) -> Topic:
    """Return the table row of `camera/front` and the like; BusError names what is allowed."""
    row = TOPICS.get(name.partition("/")[0])
    if row is None or len(name) > MAX_TOPIC_LENGTH or not _NAME.fullmatch(name):
        kinds = ", ".join(f"{prefix}/<name>" for prefix in TOPICS)
        raise BusError(f"'{name[:80]}' is not a topic; topics are {kinds}")
    return row
