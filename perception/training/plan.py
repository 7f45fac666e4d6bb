"""The training configuration: read from TOML and checked."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, ValidationError, model_validator

from perception.errors import ProfileError
from perception.io.text_file import read_text
from perception.models.memory import MAX_TICKS
from perception.profile import FusionConfig, Section
from perception.profile.problems import problems
from perception.training.copies import CopyPlan
from perception.training.finetune import Augmentation
from perception.training.fit_config import TrainingConfig

CACHE: Final = Path("~/.cache/perception/features")


class HeadPlan(Section):
    """`[head]`: the head to train."""

    kind: Literal["feature", "model"] = "feature"
    head: Annotated[Literal["linear", "mlp", "gated"], Field(description="feature level")] = "mlp"
    hidden: Annotated[int, Field(ge=1)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    missing: Literal["drop", "zero", "mean", "predict", "token"] = "token"
    modality_dropout: Annotated[
        float, Field(ge=0, lt=1, description="probability that an input is hidden, with all its branches")
    ] = 0.0
    use_ages: bool = False
    use_conditions: Annotated[
        bool, Field(description="give the head whether each signal is suspect; training makes some suspect")
    ] = False
    branch: Annotated[Literal["linear", "mlp"], Field(description="model level")] = "linear"
    combine: Literal["pool", "head"] = "pool"
    gru: Annotated[int, Field(ge=0, description="feature level: hidden units over ticks, 0 for none")] = 0
    pca: Annotated[
        int,
        Field(ge=0, description="feature level: components kept per branch of a frozen encoder, 0 for all"),
    ] = 12
    ticks: Annotated[int, Field(ge=2, le=MAX_TICKS, description="how many ticks the GRU receives")] = 20

    @model_validator(mode="after")
    def _check_feature_level(self) -> "HeadPlan":
        given = self.gru or ("pca" in self.changed() and self.pca)
        if given and self.kind == "model":
            raise ValueError("gru and pca need kind = 'feature'")
        return self


class TrainPlan(Section):
    """A training configuration, TOML. Encoders and windows are those of the profile."""

    profile: Annotated[str, Field(description="name or file of the profile that will run the head")]
    classes: Annotated[tuple[str, ...], Field(description="default: all that occur in the labels")] = ()
    track: Annotated[str, Field(description="label track")] = "truth"
    validation: Annotated[float, Field(gt=0, lt=1, description="share of the sessions")] = 0.2
    test: Annotated[float, Field(ge=0, lt=1, description="share of the sessions, used once")] = 0.2
    seeds: Annotated[int, Field(ge=1, description="heads trained; the first is stored")] = 3
    folds: Annotated[
        int, Field(ge=0, description="also test every session once, in so many folds; 0 for none")
    ] = 0
    train_encoders: Annotated[
        tuple[str, ...],
        Field(description="encoders trained with the head, from the weights that the profile names"),
    ] = ()
    train_layers: Annotated[
        int,
        Field(
            ge=0, description="how many of the last layers with weights are trained per encoder; 0 for all"
        ),
    ] = 0
    head: HeadPlan = HeadPlan()
    augment: Augmentation = Augmentation()
    copies: Annotated[
        tuple[CopyPlan, ...], Field(description="perturbed copies of the training sessions")
    ] = ()
    training: TrainingConfig = TrainingConfig()

    @property
    def parts(self) -> int:
        """How many independent labelled sessions the splits need at least."""
        return max(self.folds, 3 if self.test or self.folds else 2)

    @model_validator(mode="after")
    def _can_be_trained(self) -> "TrainPlan":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no sessions to train on")
        if self.head.kind == "feature" and self.head.missing == "predict" and not self.training.auxiliary:
            raise ValueError(
                "head.missing = 'predict' learns by the auxiliary loss alone; give training.auxiliary above 0"
            )
        if self.train_encoders and "pca" in self.head.changed() and self.head.pca:
            raise ValueError("head.pca is fitted to frozen encoders; with train_encoders give pca = 0")
        return self

    @property
    def used(self) -> "TrainPlan":
        """The plan in effect: without options that do not apply to such a head."""
        no_pca = self.train_encoders or self.head.kind == "model"
        return self.model_copy(update={"head": self.head.model_copy(update={"pca": 0})}) if no_pca else self


def load_plan(path: Path) -> TrainPlan:
    """Return a training configuration from TOML, or from the `plan.json` of a checkpoint.

    Raises:
        ProfileError: names file, key and what was expected.
    """
    try:
        text = read_text(path)
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return TrainPlan.model_validate(data)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"{path}: not a training configuration: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"{path}: {problems(error)}") from error


def branch_inputs(fusion: FusionConfig) -> dict[str, str]:
    """Return the input that each branch reads."""
    return {name: fusion.encoders[name].input for name in sorted(fusion.encoders)}


def input_columns(inputs: Mapping[str, str]) -> torch.Tensor:
    """Return the number of the input of each branch, (M,) int64."""
    names = sorted(set(inputs.values()))
    return torch.tensor([names.index(inputs[branch]) for branch in sorted(inputs)])
