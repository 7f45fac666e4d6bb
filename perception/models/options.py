"""Options of each kind of encoder in a profile; importing this loads no model package.

So a profile can be checked before anything starts. `registry` names the classes that the kinds build.
"""

import re
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from perception.errors import ProfileError
from perception.profile import EncoderConfig, Fit, Section
from perception.profile.problems import problems

EMBEDDING: Final = 128
"""Features of VGGish."""
OTHER: Final = "other"
"""The intent of a command that is none of those given."""
SHRUNK: Final = "wider frames are first shrunk by a whole factor to at most this"
_DICTIONARIES: Final = (
    *(f"DICT_{bits}_{size}" for bits in ("4X4", "5X5", "6X6", "7X7") for size in (50, 100, 250, 1000)),
    *("DICT_ARUCO_ORIGINAL", "DICT_ARUCO_MIP_36h12", "DICT_ARUCO_MIP_36H12"),
    *(f"DICT_APRILTAG_{family}" for family in ("16h5", "25h9", "36h10", "36h11")),
    *(f"DICT_APRILTAG_{family}" for family in ("16H5", "25H9", "36H10", "36H11")),
)
"""What OpenCV 4 predefines (objdetect/aruco_dictionary.hpp)."""
_REGISTERED: Final = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)
_MAX_LAYER: Final = 100_000_000
Fraction = Annotated[float, Field(ge=0.001, le=1)]


class EncoderOptions(Section):
    """Base of all options."""

    modality: ClassVar[str]
    """Modality that the encoder reads: camera, microphone or text."""

    @property
    def features(self) -> int | None:
        """Number of features, None if it depends on the model."""
        return None


class FacesOptions(EncoderOptions):
    """`min_size` is the least height of a face as a fraction of the frame's."""

    modality: ClassVar[str] = "camera"

    min_size: Fraction = 0.15
    scale: Annotated[float, Field(gt=1, le=2, description="step between the sizes tried")] = 1.1
    neighbours: Annotated[int, Field(ge=1, le=1000, description="hits that make a face")] = 4
    width: Annotated[int, Field(ge=64, le=16_384, description=SHRUNK)] = 240

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return 5


class MarkerOptions(EncoderOptions):
    """Each of `ids` gets a feature of its own; in a shrunk frame a marker needs 20 pixels or more."""

    modality: ClassVar[str] = "camera"

    dictionary: str = "DICT_4X4_50"
    ids: Annotated[tuple[Annotated[int, Field(ge=0, le=9999)], ...], Field(max_length=1000)] = ()
    width: Annotated[int, Field(ge=64, le=16_384, description=SHRUNK)] = 1920

    @field_validator("dictionary")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in _DICTIONARIES:
            raise ValueError(f"no such dictionary; known are {', '.join(_DICTIONARIES)}")
        return name

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return 4 + len(self.ids)


class MotionOptions(EncoderOptions):
    """`threshold` is in grey levels of 255, after blurring."""

    modality: ClassVar[str] = "camera"

    width: Annotated[int, Field(ge=16, le=16_384, description=SHRUNK)] = 160
    blur: Annotated[float, Field(ge=0.01, le=100, description="standard deviation in shrunken pixels")] = 1.5
    threshold: Annotated[float, Field(ge=0.001, lt=255)] = 12.0

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return 4


class VggishOptions(EncoderOptions):
    """Last layer of the embedding, and its post-processing."""

    modality: ClassVar[str] = "microphone"

    activation: Annotated[Literal["pre", "post"], Field(description="before or after the ReLU")] = "pre"
    postprocess: Literal["none", "pca", "pca-8bit"] = "none"
    pca: Annotated[
        str | None, Field(description="vggish_pca_params.npz, or the two arrays as .safetensors")
    ] = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return EMBEDDING


class MfccOptions(EncoderOptions):
    """Number of coefficients."""

    modality: ClassVar[str] = "microphone"

    coefficients: Annotated[int, Field(ge=1, le=64)] = 20

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return 6 * self.coefficients


class SileroOptions(EncoderOptions):
    """No options."""

    modality: ClassVar[str] = "microphone"

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return 5


class LevelOptions(EncoderOptions):
    """Definition of the start of a sound."""

    modality: ClassVar[str] = "microphone"

    onset_db: Annotated[float, Field(ge=0.01, le=200, description="rise over the 50 ms before")] = 12.0
    floor_dbfs: Annotated[float, Field(ge=-300, lt=0, description="nothing under this level begins")] = -50.0

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return 11


class CnnSoundOptions(EncoderOptions):
    """Shape of the network."""

    modality: ClassVar[str] = "microphone"

    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...],
        Field(min_length=1, max_length=16, description="channels after each convolution"),
    ] = (16, 32, 64)
    dim: Annotated[int, Field(ge=1, le=16_384, description="features")] = 64
    pool: Annotated[int, Field(ge=1, le=64, description="side of the map that is flattened at the end")] = 2
    dropout: Annotated[float, Field(ge=0, lt=1, description="in training")] = 0.2

    @model_validator(mode="after")
    def _fits_into_memory(self) -> "CnnSoundOptions":
        if self.widths[-1] * self.pool**2 * self.dim > _MAX_LAYER:
            raise ValueError(f"the last layer has over {_MAX_LAYER} weights: reduce widths, pool or dim")
        return self

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return self.dim


class CnnImageOptions(CnnSoundOptions):
    """Shape of the network, and of its input."""

    modality: ClassVar[str] = "camera"

    size: Annotated[int, Field(ge=16, le=512, description="pixels")] = 64
    # The default is what the heads of earlier recordings were trained with.
    fit: Annotated[Fit, Field(description="of a frame that is no square")] = "stretch"


class TransformersTextOptions(EncoderOptions):
    """`model` is a name on the Hub; a profile's `weights` may name a local folder instead."""

    modality: ClassVar[str] = "text"

    model: str = "google-bert/bert-base-uncased"
    revision: str | None = None
    max_tokens: Annotated[int, Field(ge=4, le=8192, description="longer commands are cut")] = 64
    dtype: Literal["float32", "bfloat16"] = "float32"


class TfidfOptions(EncoderOptions):
    """`intents` maps each intent to example phrases; examples for "other" are optional."""

    modality: ClassVar[str] = "text"

    intents: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    threshold: Annotated[float, Field(gt=0, lt=1, description="cosine below which it is 'other'")] = 0.5

    @field_validator("intents")
    @classmethod
    def _phrases(cls, intents: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        empty = [name for name, phrases in intents.items() if not any(map(str.strip, phrases))]
        if empty:
            raise ValueError(f"intent '{empty[0]}' has no example phrases")
        if set(intents) == {OTHER}:
            raise ValueError("there must be an intent besides 'other'")
        return intents

    @property
    def features(self) -> int:
        """See EncoderOptions."""
        return len(self.intents.keys() | {OTHER}) + 1


class TransformersAudioOptions(EncoderOptions):
    """`model` is a name on the Hub; a profile's `weights` may name a local folder instead."""

    modality: ClassVar[str] = "microphone"

    model: str = "MIT/ast-finetuned-audioset-10-10-0.4593"
    revision: str | None = None
    architecture: Annotated[Literal["ast", "clap"], Field(description="of random weights")] = "ast"
    dtype: Literal["float32", "bfloat16"] = "float32"


class TorchvisionOptions(EncoderOptions):
    """`model` is a name in `torchvision.models`."""

    modality: ClassVar[str] = "camera"

    model: str = "resnet18"
    classes: Annotated[tuple[str, ...], Field(description="of local weights, if not ImageNet's")] = ()
    top_k: Annotated[int, Field(ge=0, le=1000, description="class scores to publish")] = 5
    size: Annotated[int | None, Field(ge=32, le=2048, description="side of the input in pixels")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        known = torchvision_classifiers()
        if known and name not in known:
            close = ", ".join(get_close_matches(name, known, n=3, cutoff=0.3)) or ", ".join(known)
            raise ValueError(f"torchvision has no such classifier; did you mean {close}?")
        return name


class TransformersVisionOptions(EncoderOptions):
    """`pooling`: the mean over all positions, or the model's own trained pooling layer."""

    modality: ClassVar[str] = "camera"

    model: str = "facebook/dinov2-small"
    revision: str | None = None
    architecture: Annotated[str, Field(description="model type of random weights")] = "vit"
    pooling: Literal["mean", "pooler"] = "mean"
    dtype: Literal["float32", "bfloat16"] = "float32"


KINDS: Final[dict[str, type[EncoderOptions]]] = {
    "torchvision": TorchvisionOptions,
    "cnn-image": CnnImageOptions,
    "cnn-sound": CnnSoundOptions,
    "transformers-vision": TransformersVisionOptions,
    "faces": FacesOptions,
    "aruco": MarkerOptions,
    "motion": MotionOptions,
    "transformers-text": TransformersTextOptions,
    "tfidf": TfidfOptions,
    "transformers-audio": TransformersAudioOptions,
    "vggish": VggishOptions,
    "mfcc": MfccOptions,
    "silero": SileroOptions,
    "level": LevelOptions,
}


def options_of(name: str, config: EncoderConfig) -> EncoderOptions:
    """Return the options of `[fusion.encoders.NAME]`; raise ProfileError, which names encoder and key."""
    kind = KINDS.get(config.kind)
    if kind is None:
        raise ProfileError(f"fusion.encoders.{name}.kind: {unknown_kind(config.kind)}")
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        no_such = f"no such option; options are {', '.join(kind.model_fields) or 'none'}"
        table = ("fusion", "encoders", name, "options")
        raise ProfileError(problems(error, table=table, no_such=no_such)) from error


def unknown_kind(kind: str) -> str:
    """Return the error text for an unknown kind, with a suggestion."""
    is_model = kind in torchvision_classifiers()
    hint = f"; for this one: kind = 'torchvision', options = {{ model = '{kind}' }}" if is_model else ""
    return f"'{kind}' is no kind of encoder; kinds are {', '.join(KINDS)}{hint}"


@lru_cache(maxsize=1)
def torchvision_classifiers() -> tuple[str, ...]:
    """Return the names in `torchvision.models`, read from its source: importing it would load torch."""
    spec = find_spec("torchvision")
    folders = [Path(place) / "models" for place in (spec.submodule_search_locations or ())] if spec else []
    sources = (file.read_text(encoding="utf-8") for folder in folders for file in folder.glob("*.py"))
    return tuple(sorted(name for source in sources for name in _REGISTERED.findall(source)))
