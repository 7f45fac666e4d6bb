"""Sections of recorded sessions: `[recorder]` writes one, `[replay]` publishes one."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from perception.profile.keys import Pattern, Recorded
from perception.profile.section import Section

_MAX_S: Final = 1e9
"""Thirty years."""
_MAX_MB: Final = 1e9
"""A petabyte."""


class ReplayConfig(Section):
    """`[replay]` publishes a recorded session as if live."""

    file: Annotated[str, Field(description="session file")]
    rate: Annotated[float, Field(ge=0.001, le=1000, description="speed, 1 is real time")] = 1.0
    loop: Annotated[bool, Field(description="start again at the end")] = False
    start_s: Annotated[float, Field(ge=0, le=_MAX_S, description="begin, seconds into the session")] = 0.0
    end_s: Annotated[float | None, Field(ge=1e-6, le=_MAX_S, description="end, seconds into the session")] = (
        None
    )
    wait: Annotated[
        int | None,
        Field(
            ge=0,
            le=1000,
            description="number of readers to wait for; default: this profile's fusion and recorder",
        ),
    ] = None
    topics: Annotated[
        tuple[Recorded, ...],
        Field(description="topics to publish; those that a fusion publishes are left out", min_length=1),
    ] = (
        "camera/*",
        "microphone/*",
        "text/*",
        "label/*",
    )


class RecorderConfig(Section):
    """`[recorder]`: records the graph to a session file; `record = true` alone records with the defaults."""

    out: Annotated[
        str,
        Field(description="file to write; strftime codes and {domain} are replaced", pattern=r"^[^\x00]+$"),
    ] = "{domain}-%Y%m%d-%H%M%S.mcap"
    topics: Annotated[tuple[Pattern, ...], Field(description="patterns of what to record", min_length=1)] = (
        "*",
    )
    split_mb: Annotated[
        float | None, Field(ge=0.001, le=_MAX_MB, description="start a new file at this size")
    ] = None
    split_minutes: Annotated[
        float | None, Field(ge=0.001, le=_MAX_S, description="start a new file after this time")
    ] = None
    min_free_mb: Annotated[
        float, Field(ge=0, le=_MAX_MB, description="stop when less than this is free on the disk")
    ] = 500.0

    def file(self, domain: str, now: datetime) -> Path:
        """Return the file of a recording of `domain` that begins at `now`; `{{domain}}` is kept literally."""
        parts = now.strftime(self.out).split("{{domain}}")
        return Path("{domain}".join(part.replace("{domain}", domain) for part in parts))

    @staticmethod
    def literally(name: str) -> str:
        """Return the value of `out` that means exactly this file name."""
        return name.replace("%", "%%").replace("{domain}", "{{domain}}")
