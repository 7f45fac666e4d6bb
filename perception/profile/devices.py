"""Sections of devices: `[camera.NAME]`, `[microphone.NAME]`, `[text.NAME]`, `[script]`."""

from typing import Annotated, Literal

from pydantic import Field

from perception.profile.keys import Bind, Index, Source
from perception.profile.section import Section
from perception.profile.signal import CameraSignal, MicrophoneSignal

Fit = Literal["letterbox", "crop", "stretch"]
"""How a picture of another aspect ratio is fitted: black bars, longer sides cut, or distorted."""


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
        Field(description="source of another aspect ratio: black bars, longer sides cut, or distorted"),
    ] = "letterbox"
    rotate: Annotated[Literal[0, 90, 180, 270], Field(description="degrees clockwise")] = 0
    flip: Annotated[
        Literal["none", "horizontal", "vertical"], Field(description="mirror, after rotation")
    ] = "none"
    rate_hz: Annotated[float, Field(ge=0.001, le=1000)] = 30.0
    encoding: Literal["jpeg", "bgr8", "mono8"] = "jpeg"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    loop: Annotated[bool, Field(description="start a file again at its end")] = False
    endpoint: Annotated[Bind | None, Field(description="also bind here, e.g. tcp://127.0.0.1:5601")] = None
    endpoint_jpeg: Annotated[
        bool,
        Field(description="with keys: send raw frames to other hosts as JPEG"),
    ] = True
    signal: CameraSignal = CameraSignal()

    @property
    def limits(self) -> CameraSignal:
        """Thresholds of its judge: a film that is played in a loop repeats as it should."""
        return self.signal.model_copy(update={"loop_s": 0.0}) if self.loop else self.signal


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
    signal: MicrophoneSignal = MicrophoneSignal()


class TextConfig(Section):
    """`[text.NAME]` publishes `text/NAME`; a scripted source also publishes `label/truth`."""

    source: Annotated[
        Source, Field(description="'terminal', 'scripted', or a file of lines 'SECONDS<TAB>TEXT'")
    ] = "terminal"
    language: str = ""
    endpoint: Bind | None = None


class ScriptConfig(Section):
    """`[script]`: what the scripted devices play; the same seed gives the same scene and sound."""

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 1
    noise: Annotated[float, Field(ge=0, le=4, description="scales every disturbance; 1 is typical")] = 1.0
