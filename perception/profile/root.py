"""`Profile`: all sections of one file, and what must hold between them."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from perception.errors import ProfileError
from perception.profile.devices import CameraConfig, MicrophoneConfig, ScriptConfig, TextConfig
from perception.profile.fusion import FusionConfig
from perception.profile.keys import SCRIPTED, Connect, Name, Pattern
from perception.profile.recording import RecorderConfig, ReplayConfig
from perception.profile.section import Section

WHERE: Final = "where"
"""Key of the validation context: the file of a profile, for errors."""


class Profile(Section):
    """All sections of one profile file."""

    _where: str = "profile"

    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "default"
    insecure: Annotated[bool, Field(description="allow tcp off loopback without keys")] = False
    keys: Annotated[
        Path | None, Field(description="folder of CURVE keys for every endpoint, see `perception keys new`")
    ] = None
    camera: dict[Name, CameraConfig] = {}
    microphone: dict[Name, MicrophoneConfig] = {}
    text: dict[Name, TextConfig] = {}
    script: ScriptConfig = ScriptConfig()
    replay: ReplayConfig | None = None
    fusion: FusionConfig | None = None
    record: Annotated[bool, Field(description="record a session whenever this profile is up")] = False
    recorder: RecorderConfig | None = None
    connect: Annotated[
        dict[Pattern, Connect],
        Field(description="topic or pattern -> endpoint of publishers on other hosts"),
    ] = {}

    @model_validator(mode="after")
    def _topics_differ(self) -> "Profile":
        for one, other in combinations(sorted(self.published()), 2):
            if one == other:
                raise ValueError(f"{one} would be published twice; only one text source can be scripted")
            if other.startswith(f"{one}/"):
                raise ValueError(f"{other} cannot be published beside {one}: choose other names")
        return self

    def published(self) -> list[str]:
        """Return the topics of its devices, and `label/truth` if a text source is scripted."""
        devices: dict[str, Mapping[str, Section]] = {
            "camera": self.camera,
            "microphone": self.microphone,
            "text": self.text,
        }
        names = (f"{kind}/{name}" for kind, found in devices.items() for name in found)
        truths = ["label/truth" for text in self.text.values() if text.source == SCRIPTED]
        return [*names, *truths]

    def model_post_init(self, context: Any) -> None:
        """Store the file that it was read from; the file is not one of the profile's values."""
        if context is not None:
            self._where = context[WHERE]

    def required_fusion(self) -> FusionConfig:
        """Return its `[fusion]` table; ProfileError names the file if there is none."""
        if self.fusion is None:
            raise ProfileError(f"{self._where}: the profile has no [fusion] table")
        return self.fusion

    @property
    def recording(self) -> RecorderConfig | None:
        """How to record; None if this profile does not record."""
        return self.recorder or (RecorderConfig() if self.record else None)
