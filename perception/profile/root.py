"""`Profile`: all sections of one file, and what must hold between them."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from perception.errors import ProfileError
from perception.profile import hosts
from perception.profile.devices import CameraConfig, MicrophoneConfig, ScriptConfig, TextConfig
from perception.profile.fusion import FusionConfig
from perception.profile.hosts import HostConfig
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
    host: Annotated[dict[Name, HostConfig], Field(description="computers of the graph")] = {}
    here: Annotated[
        Name | None, Field(description="the host of this process; set by `perception up --host`")
    ] = None

    @model_validator(mode="after")
    def _hosts_fit(self) -> "Profile":
        if wrong := [*hosts.problems_of(self.host, self.nodes()), *self._own_endpoints()]:
            raise ValueError("; ".join(wrong))
        if self.here is not None and self.here not in self.host:
            raise ValueError(
                f"here: there is no host '{self.here}'; hosts are {', '.join(self.host) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _topics_differ(self) -> "Profile":
        for one, other in combinations(sorted(self.published()), 2):
            if one == other:
                raise ValueError(f"{one} would be published twice; only one text source can be scripted")
            if other.startswith(f"{one}/"):
                raise ValueError(f"{other} cannot be published beside {one}: choose other names")
        return self

    def devices(self) -> dict[str, Mapping[str, CameraConfig | MicrophoneConfig | TextConfig]]:
        """Return the sections of its devices, by kind and name."""
        return {"camera": self.camera, "microphone": self.microphone, "text": self.text}

    def published(self) -> list[str]:
        """Return the topics of its devices, and `label/truth` if a text source is scripted."""
        names = (f"{kind}/{name}" for kind, found in self.devices().items() for name in found)
        truths = ["label/truth" for text in self.text.values() if text.source == SCRIPTED]
        return [*names, *truths]

    def nodes(self) -> dict[str, list[str]]:
        """Return all nodes -> the topics of each, less those of a replayed session; see `graph.plan`."""
        found: dict[str, list[str]] = {}
        if self.fusion is not None:
            kinds = ("clock", "journal", "health", "head")
            standby = ["health/fusion-standby"] if self.fusion.standby else []
            found["fusion"] = [f"state/{self.fusion.name}", *(f"{kind}/fusion" for kind in kinds), *standby]
        if self.recording is not None or any("recorder" in host.nodes for host in self.host.values()):
            found["recorder"] = ["health/recorder"]  # `perception record` adds it to any run
        for kind, sections in self.devices().items():
            for name, section in sections.items():
                scripted = kind == "text" and section.source == SCRIPTED
                truth = ["label/truth"] if scripted else []
                found[f"{kind}-{name}"] = [f"{kind}/{name}", *truth, f"health/{kind}-{name}"]
        if self.replay is not None:
            found["replayer"] = ["health/replayer"]
        return found

    def _own_endpoints(self) -> Iterator[str]:
        """Yield endpoints that are given although they follow from the hosts."""
        sections = {
            f"{kind}.{name}": one for kind, all_ in self.devices().items() for name, one in all_.items()
        }
        for key, section in {**sections, "fusion": self.fusion}.items():
            if self.host and section is not None and section.endpoint is not None:
                yield f"{key}.endpoint: follows from [host.NAME] here; remove it"

    def on_this_host(self) -> "Profile":
        """Return the profile with those nodes only that run here; all of them if it names no host."""
        if self.here is None:
            return self
        own = self.host[self.here].nodes
        kept = {
            kind: {name: section for name, section in sections.items() if f"{kind}-{name}" in own}
            for kind, sections in self.devices().items()
        }
        records = "recorder" in own
        rest = {
            "fusion": self.fusion if "fusion" in own else None,
            "recorder": self.recorder if records else None,
            "record": self.record and records,
            "replay": self.replay if "replayer" in own else None,
        }
        return self.model_copy(update={**kept, **rest})

    def ports(self, host: str) -> dict[str, int]:
        """Return topic -> port of all that a host serves to others."""
        return hosts.ports_of(host, self.host[host], self.nodes())

    def endpoint_of(self, topic: str) -> str | None:
        """Return where a publisher of this host also binds a topic, None if nobody else reads it."""
        port = None if self.here is None else self.ports(self.here).get(topic)
        return None if port is None or self.here is None else self.host[self.here].bound(port)

    def other_hosts(self) -> dict[str, hosts.RemoteHost]:
        """Return the other hosts by name, as readers of this one connect to them."""
        return {
            name: hosts.RemoteHost(
                host.endpoint(host.port),
                {
                    topic: host.endpoint(port)
                    for topic, port in self.ports(name).items()
                    if topic != hosts.SUPERVISOR_HEALTH
                },
            )
            for name, host in self.host.items()
            if self.here not in (None, name)
        }

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
