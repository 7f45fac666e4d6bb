"""Section `[fusion]`: inputs, encoders, head, and how windows are cut."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from perception.messages import ConditionName
from perception.profile.keys import Age, Bind, Input, Name, Source, Span
from perception.profile.section import Section


def _is_bad(condition: ConditionName) -> ConditionName:
    if condition in ("ok", "starting"):
        raise ValueError(f"'{condition}' is not a fault of a signal")
    return condition


BadCondition = Annotated[ConditionName, AfterValidator(_is_bad)]
ABSENT_WHEN: Final[tuple[ConditionName, ...]] = (
    *("frozen", "black", "blown out", "covered", "noise", "silent", "stuck", "DC", "wrong rate", "lost"),
)
SUSPECT_WHEN: Final[tuple[ConditionName, ...]] = (
    *("blurred", "dead channel", "torn", "clipped", "hum", "jittery", "slow", "lagging", "reconnecting"),
)


class InputConfig(Section):
    """`[fusion.inputs.NAME]`: one stream of the fusion; its modality follows from the topic."""

    topic: Input
    length_ms: Annotated[
        float, Field(ge=975, le=60_000, description="microphone: window length, at least one VGGish example")
    ] = 975.0
    max_age_ms: Annotated[Age, Field(description="camera: older frames count as absent")] = 500.0
    ttl_ms: Annotated[Age, Field(description="text: how long a command is valid")] = 3000.0
    absent_when: Annotated[
        tuple[BadCondition, ...],
        Field(description="conditions of the signal in which its data counts as absent"),
    ] = ABSENT_WHEN
    suspect_when: Annotated[
        tuple[BadCondition, ...],
        Field(description="conditions in which data is used and marked as suspect; absent_when comes first"),
    ] = SUSPECT_WHEN

    @model_serializer(mode="wrap")
    def _without_default_conditions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the lists at their defaults: hashes of a profile from before they existed stay valid."""
        dumped: dict[str, Any] = serialize(self)
        for key in {"absent_when", "suspect_when"} - self.changed():
            dumped.pop(key, None)
        return dumped


class EncoderConfig(Section):
    """`[fusion.encoders.NAME]`: one encoder over one input.

    `options` are passed to the encoder; each kind declares and checks its own.
    """

    input: str
    kind: str
    weights: Annotated[
        Source | None, Field(description="'pretrained', 'random' or a local folder or file")
    ] = None
    options: dict[str, Any] = {}


class HeadConfig(Section):
    """`[fusion.head]`: a trained head, or a random one for timing. `head = "FOLDER"` names a trained head."""

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
    """`[fusion]`: windows, lateness, models. In a file, `base = "demo"` extends another profile's."""

    name: Annotated[Name, Field(description="publishes state/NAME")] = "fused"
    hop_ms: Annotated[Span, Field(ge=1, description="one state per hop")] = 100.0
    lateness_ms: Annotated[Span, Field(description="how long a window waits for late data")] = 60.0
    alignment: Annotated[
        Literal["low-latency", "reproducible"],
        Field(description="reproducible: always waits lateness_ms, so order of arrival has no effect"),
    ] = "low-latency"
    max_leap_ms: Annotated[Span, Field(ge=1, description="stamps further in the future are refused")] = 1000.0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024, description="torch threads on the CPU, 0 = automatic")] = 0
    weights: Annotated[Source, Field(description="for encoders that name none: 'pretrained' or 'random'")] = (
        "pretrained"
    )
    dtype: Annotated[
        Literal["float32", "bfloat16", "auto"],
        Field(description="for encoders whose options name none; auto measures at start and publishes it"),
    ] = "float32"
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, description="of random weights")] = 0
    standby: Annotated[
        bool, Field(description="a second process with the models loaded takes over when the fusion ends")
    ] = False
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
