"""Profiles: what a user writes in TOML, declared once, validated on load.

Every key, unit and default of a profile stands here. Reading a profile imports neither torch nor cv2.
"""

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from perception.errors import ProfileError
from perception.errors.credentials import without_credentials
from perception.io.text_file import read_text
from perception.profile.keys import (
    SCRIPTED,
    Bind,
    Connect,
    Index,
    Input,
    Name,
    Pattern,
    Positive,
    Recorded,
    Source,
    Span,
)
from perception.profile.keys import is_file_name as is_file_name

Fit = Literal["letterbox", "crop", "stretch"]
"""What becomes of a picture of another aspect: black bars, a cut at its longer sides, or distortion."""


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self) -> set[str]:
        """Return the keys whose value is not the default, whether that was given or not."""
        fields = type(self).model_fields
        return {key for key in fields if getattr(self, key) != fields[key].get_default()}


class CameraConfig(Section):
    """`[camera.NAME]` publishes `camera/NAME`."""

    source: Annotated[
        Index | Source,
        Field(description="'scripted', device index, /dev path, video file, http:// or rtsp:// URL"),
    ]
    width: Annotated[int, Field(ge=16, le=8192, description="pixels")] = 640
    height: Annotated[int, Field(ge=16, le=8192, description="pixels")] = 480
    fit: Annotated[
        Fit,
        Field(description="a source of another aspect: black bars, cut at its longer sides, or distorted"),
    ] = "letterbox"
    rotate: Annotated[Literal[0, 90, 180, 270], Field(description="degrees clockwise")] = 0
    flip: Annotated[
        Literal["none", "horizontal", "vertical"], Field(description="mirrored, after it is rotated")
    ] = "none"
    rate_hz: Annotated[float, Field(ge=0.001, le=1000)] = 30.0
    encoding: Literal["jpeg", "bgr8", "mono8"] = "jpeg"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    loop: Annotated[bool, Field(description="start a file again at its end")] = False
    endpoint: Annotated[Bind | None, Field(description="also bind here, e.g. tcp://127.0.0.1:5601")] = None
    endpoint_jpeg: Annotated[
        bool,
        Field(description="with keys: raw frames go to other hosts as JPEG"),
    ] = True


class MicrophoneConfig(Section):
    """`[microphone.NAME]` publishes `microphone/NAME`."""

    source: Annotated[
        Index | Source,
        Field(description="'scripted', 'default', sounddevice index or name, or an audio or video file"),
    ] = "default"
    rate_hz: Annotated[int, Field(ge=1000, le=768_000)] = 16_000
    channels: Annotated[int, Field(ge=1, le=32)] = 1
    block_ms: Annotated[float, Field(ge=1, le=200)] = 32.0
    format: Literal["s16", "f32"] = "s16"
    loop: Annotated[bool, Field(description="start a file again at its end")] = False
    endpoint: Bind | None = None


class TextConfig(Section):
    """`[text.NAME]` publishes `text/NAME`, and `label/truth` where the source is scripted."""

    source: Annotated[
        Source, Field(description="'terminal', 'scripted', or a file of lines 'SECONDS<TAB>TEXT'")
    ] = "terminal"
    language: str = ""
    endpoint: Bind | None = None


class ScriptConfig(Section):
    """`[script]`: what the scripted devices play; the same seed gives the same scene and sound."""

    seed: int = 1
    noise: Annotated[float, Field(ge=0, le=4, description="scales every disturbance; 1 is typical")] = 1.0


class ReplayConfig(Section):
    """`[replay]` publishes a recorded session as if it were live."""

    file: Annotated[str, Field(description="the session")]
    rate: Annotated[float, Field(gt=0, le=1000, description="times real time")] = 1.0
    loop: Annotated[bool, Field(description="start again at its end")] = False
    start_s: Annotated[float, Field(ge=0, description="seconds into the session")] = 0.0
    end_s: Annotated[float | None, Field(gt=0, description="likewise")] = None
    wait: Annotated[
        int | None,
        Field(ge=0, description="readers to wait for; default: this profile's fusion and recorder"),
    ] = None
    topics: Annotated[
        tuple[Recorded, ...],
        Field(description="what no fusion makes itself", min_length=1),
    ] = (
        "camera/*",
        "microphone/*",
        "text/*",
        "label/*",
    )


class InputConfig(Section):
    """`[fusion.inputs.NAME]`: one stream of the fusion; its kind follows from the topic."""

    topic: Input
    length_ms: Annotated[
        float, Field(ge=975, le=60_000, description="audio: window length, at least a VGGish example")
    ] = 975.0
    max_age_ms: Annotated[Positive, Field(description="camera: older frames count as absent")] = 500.0
    ttl_ms: Annotated[Positive, Field(description="text: how long a command stays in force")] = 3000.0


class EncoderConfig(Section):
    """`[fusion.encoders.NAME]`: one encoder over one input.

    `options` go to the encoder; each kind declares and checks its own.
    """

    input: str
    kind: str
    weights: Annotated[
        Source | None, Field(description="'pretrained', 'random' or a local folder or file")
    ] = None
    options: dict[str, Any] = {}


class HeadConfig(Section):
    """`[fusion.head]`: the trained head, or a random one for timing; `head = "FOLDER"` names the former."""

    weights: Annotated[Source, Field(description="checkpoint folder, or 'random'")] = "random"
    kind: Annotated[Literal["feature", "model"], Field(description="fusion level of a random head")] = (
        "feature"
    )
    classes: Annotated[tuple[Source, ...], Field(description="classes of a random head")] = ()

    @model_validator(mode="before")
    @classmethod
    def _folder_alone(cls, given: Any) -> Any:
        return {"weights": given} if isinstance(given, str) else given


class FusionConfig(Section):
    """`[fusion]`: the grid, the waiting, the models. In a file, `base = "demo"` takes over another's."""

    name: Annotated[Name, Field(description="publishes state/NAME")] = "fused"
    hop_ms: Annotated[Span, Field(ge=1, description="one state per hop")] = 100.0
    lateness_ms: Annotated[Span, Field(description="how long a window waits for late data")] = 60.0
    alignment: Annotated[
        Literal["low-latency", "reproducible"],
        Field(description="reproducible always waits lateness_ms, so arrival order cannot matter"),
    ] = "low-latency"
    max_leap_ms: Annotated[Span, Field(description="stamps further ahead are refused")] = 1000.0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024, description="torch threads on the CPU, 0 = automatic")] = 0
    weights: Annotated[Source, Field(description="of encoders that name none: 'pretrained' or 'random'")] = (
        "pretrained"
    )
    dtype: Annotated[
        Literal["float32", "bfloat16", "auto"],
        Field(description="of encoders whose options name none; auto measures at start and publishes it"),
    ] = "float32"
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, description="of random weights")] = 0
    endpoint: Bind | None = None
    inputs: dict[Source, InputConfig]
    encoders: dict[Source, EncoderConfig]
    head: HeadConfig

    @model_validator(mode="after")
    def _encoders_name_inputs(self) -> "FusionConfig":
        for name, encoder in self.encoders.items():
            if encoder.input not in self.inputs:
                known = ", ".join(self.inputs)
                raise ValueError(f"encoder '{name}' reads input '{encoder.input}'; inputs are {known}")
        return self


class RecorderConfig(Section):
    """`[recorder]`: records the graph to a session file; `record = true` alone does so with the defaults."""

    out: Annotated[
        str,
        Field(description="file to write; strftime codes and {domain} are filled in", pattern=r"^[^\x00]+$"),
    ] = "{domain}-%Y%m%d-%H%M%S.mcap"
    topics: Annotated[tuple[Pattern, ...], Field(description="patterns of what to record", min_length=1)] = (
        "*",
    )
    split_mb: Annotated[Positive | None, Field(description="begin another file at this size")] = None
    split_minutes: Annotated[Positive | None, Field(description="begin another file after this long")] = None
    min_free_mb: Annotated[
        float, Field(ge=0, description="stop when the disk has no more than this left")
    ] = 500.0

    def file(self, domain: str, now: datetime) -> Path:
        """Return where a recording of `domain` goes that begins `now`; `{{domain}}` stands for itself."""
        parts = now.strftime(self.out).split("{{domain}}")
        return Path("{domain}".join(part.replace("{domain}", domain) for part in parts))

    @staticmethod
    def literally(name: str) -> str:
        """Return the `out` that is this very file name."""
        return name.replace("%", "%%").replace("{domain}", "{{domain}}")


class Profile(Section):
    """A whole profile."""

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
        """Return the topics of its devices; scripted texts say the truth as well."""
        devices: dict[str, Mapping[str, Section]] = {
            "camera": self.camera,
            "microphone": self.microphone,
            "text": self.text,
        }
        names = (f"{kind}/{name}" for kind, found in devices.items() for name in found)
        truths = ["label/truth" for text in self.text.values() if text.source == SCRIPTED]
        return [*names, *truths]

    @property
    def recording(self) -> RecorderConfig | None:
        """How to record, None if this profile does not."""
        return self.recorder or (RecorderConfig() if self.record else None)


_CHECKOUT: Final = Path(__file__).resolve().parents[2] / "launch"
_INSTALLED: Final = Path(__file__).resolve().parents[1] / "launch"
LAUNCH_DIR: Final = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def find(name: str, folder: Path | None = None) -> Path:
    """Return the file of a profile; ProfileError if there is none.

    Args:
        name: a path ending in .toml, or the name of one that ships.
        folder: where a relative path begins; without it the working directory.
    """
    path = (folder or Path()) / name
    if path.suffix == ".toml":
        if os.path.isfile(path):  # False for names that no system takes, where Path raises
            return path
        raise ProfileError(f"{path}: no such profile file")
    shipped = LAUNCH_DIR / f"{name}.toml"
    if os.path.isfile(shipped):
        return shipped
    names = ", ".join(sorted(file.stem for file in LAUNCH_DIR.glob("*.toml")))
    raise ProfileError(f"'{name}' is no profile; shipped are {names}, or give a path ending in .toml")


OVERRIDES_VARIABLE: Final = "PERCEPTION_SET"
"""JSON list of overrides that a launcher gives its nodes: a command line could be read by everybody."""


def load(name: str | Path, overrides: tuple[str, ...] = ()) -> Profile:
    """Load and validate a profile.

    Args:
        name: path of a TOML file, or the name of a shipped profile.
        overrides: `dotted.key=value` as given to `--set`; the value is TOML, or else a bare string.

    Raises:
        ProfileError: names file, key and what was expected.
    """
    path = find(str(name))
    data = _read(path)
    for override in overrides:
        _override(data, override)
    return parse(data, where=str(path), overridden=[override.partition("=")[0] for override in overrides])


def _read(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file; its `[fusion]` may begin with that of another profile: `base = "demo"`.

    Relative paths of a base and of keys begin at the file that names them. `inside` are the files read on
    the way.
    """
    try:
        data = tomllib.loads(read_text(path))
    except ValueError as error:  # of TOML, of UTF-8, or a number of more digits than Python reads
        raise ProfileError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ProfileError(f"{path}: its tables or lists are nested too deeply") from error
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    if isinstance(data.get("keys"), str):
        data["keys"] = str(path.parent / data["keys"])
    fusion = data.get("fusion")
    if isinstance(fusion, dict) and "base" in fusion:
        data["fusion"] = _merged(_base(fusion.pop("base"), path, (*inside, path.resolve())), fusion)
    return data


def _base(name: Any, path: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
    """Return the `[fusion]` of the profile that the one at `path` names as its base."""
    if not isinstance(name, str):
        raise ProfileError(f"{path}: fusion.base: expected a profile's name or file (got {name!r})")
    try:
        base = find(name, path.parent)
    except ProfileError as error:
        raise ProfileError(f"{path}: fusion.base: {error}") from error
    if base.resolve() in inside:
        ring = " -> ".join(map(str, (*inside[inside.index(base.resolve()) :], base.resolve())))
        raise ProfileError(f"{path}: fusion.base: a profile cannot be its own base: {ring}")
    fusion = _read(base, inside).get("fusion")
    if not isinstance(fusion, dict):
        raise ProfileError(f"{path}: fusion.base: {base} has no [fusion] table")
    return fusion


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value)
        if isinstance(base.get(key), dict) and isinstance(value, dict)
        else value
        for key, value in changes.items()
    }
    return base | both


def parse(data: dict[str, Any], *, where: str, overridden: Collection[str] = ()) -> Profile:
    """Validate profile data that came from `where`, but for some keys; ProfileError lists every wrong key."""
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            _explain(detail, overridden) for detail in error.errors() if not _follows(detail)
        )
        raise ProfileError(f"{where}: {problems}") from error


def _follows(detail: Any) -> bool:
    """Return whether it follows from another error: a list is too short once its items are refused."""
    return bool(detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"])


_INNER: Final = ("[key]", "constrained-", "function-")
"""Beginnings of what pydantic adds to the place of an error: a kind of value, no key."""


def _explain(detail: Any, overridden: Collection[str]) -> str:
    parts = [part for part in detail["loc"] if not str(part).startswith(_INNER)]
    key, given = ".".join(map(_part, parts)), ".".join(map(str, parts))
    where = f"--set {given}" if given in overridden else key
    if detail["type"] == "extra_forbidden":
        return f"{where}: no such key"
    message = without_credentials(detail["msg"].removeprefix("Value error, "))
    got = repr(without_credentials(str(detail["input"]))[:60])
    if not key:
        return str(message)
    return f"{where}: {message}" if got in message else f"{where}: {message} (got {got})"


def _part(part: str | int) -> str:
    """Return a part of a dotted key as TOML has it."""
    text = str(part)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else f'"{text[:60]}"'


def as_override(key: str, value: str | float | bool | list[str]) -> str:
    """Return the override that gives a key exactly this value, whatever characters it has."""
    # JSON is TOML too, but for characters beyond the BMP, which it escapes by halves, and for DEL.
    return f"{key}={json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ProfileError(f"--set {override}: expected dotted.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ProfileError(f"--set {override}: '{table}' is not a table")
    data[last] = value
