"""`perception train`: from a configuration and sources to a checkpoint folder with an honest report."""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, ValidationError, model_validator

from perception.errors import ProfileError, SessionError
from perception.fusion.build import pick_device
from perception.io.beside import refuse_existing
from perception.io.progress import Advance, nothing
from perception.io.text_file import read_text
from perception.models.checkpoint import ENCODERS, Head, config_hash, head_hash
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.models.head_config import HEAD_WEIGHTS
from perception.models.memory import MAX_TICKS
from perception.profile import FusionConfig, Section
from perception.profile.problems import problems
from perception.session.file.reader import sessions_in
from perception.training import dataset
from perception.training.copies import CopyPlan, joined
from perception.training.dataset import DataSource, SessionSource
from perception.training.examples import Examples
from perception.training.finetune import Augmentation, trainable
from perception.training.fit import Augment, History, TrainingConfig, fit
from perception.training.media import media_sources
from perception.training.model import FusionModel

PLAN_FILE: Final = "plan.json"
"""In a checkpoint: the plan that was followed, every default in it."""
EVALUATION: Final = "evaluation"
"""Folder in a checkpoint: the latest report on it with other sessions."""
REPORT: Final = ("report.json", "report.html")
_WRITTEN: Final = {"config.json", HEAD_WEIGHTS, "README.md", ENCODERS, PLAN_FILE, EVALUATION, *REPORT}
CACHE: Final = Path("~/.cache/perception/features")


class HeadPlan(Section):
    """`[head]`: the head to train."""

    kind: Literal["feature", "model"] = "feature"
    head: Annotated[Literal["linear", "mlp", "gated"], Field(description="feature level")] = "mlp"
    hidden: Annotated[int, Field(ge=1)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    missing: Literal["drop", "zero", "mean", "predict", "token"] = "token"
    modality_dropout: Annotated[
        float, Field(ge=0, lt=1, description="how often an input is hidden, with all its branches")
    ] = 0.0
    use_ages: bool = False
    branch: Annotated[Literal["linear", "mlp"], Field(description="model level")] = "linear"
    combine: Literal["pool", "head"] = "pool"
    gru: Annotated[int, Field(ge=0, description="feature level: hidden units over ticks, 0 for none")] = 0
    pca: Annotated[
        int,
        Field(ge=0, description="feature level: components kept per branch of a frozen encoder, 0 for all"),
    ] = 12
    ticks: Annotated[int, Field(ge=2, le=MAX_TICKS, description="how many the GRU looks at")] = 20

    @model_validator(mode="after")
    def _memory_is_of_features(self) -> "HeadPlan":
        asked = self.gru or ("pca" in self.changed() and self.pca)
        if asked and self.kind == "model":
            raise ValueError("gru and pca need kind = 'feature'")
        return self


class TrainPlan(Section):
    """A training configuration, TOML. Encoders and windows are those of the profile."""

    profile: Annotated[str, Field(description="name or file of the profile the head is for")]
    classes: Annotated[tuple[str, ...], Field(description="default: all that occur in the labels")] = ()
    track: Annotated[str, Field(description="label track")] = "truth"
    validation: Annotated[float, Field(gt=0, lt=1, description="share of the sessions")] = 0.2
    test: Annotated[float, Field(ge=0, lt=1, description="share of the sessions, looked at once")] = 0.2
    seeds: Annotated[int, Field(ge=1, description="heads trained; the first is stored")] = 3
    folds: Annotated[
        int, Field(ge=0, description="also test every session once, in so many folds; 0 for none")
    ] = 0
    train_encoders: Annotated[
        tuple[str, ...],
        Field(description="trained with the head, from the weights that their profile names"),
    ] = ()
    train_layers: Annotated[
        int, Field(ge=0, description="of each, only so many of the last layers that hold weights; 0 for all")
    ] = 0
    head: HeadPlan = HeadPlan()
    augment: Augmentation = Augmentation()
    copies: Annotated[
        tuple[CopyPlan, ...], Field(description="perturbed copies of the sessions trained on")
    ] = ()
    training: TrainingConfig = TrainingConfig()

    @property
    def parts(self) -> int:
        """How many independent labelled sessions its splits need at least."""
        return max(self.folds, 3 if self.test or self.folds else 2)

    @model_validator(mode="after")
    def _leaves_something_to_learn_from(self) -> "TrainPlan":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no sessions to train on")
        if self.train_encoders and "pca" in self.head.changed() and self.head.pca:
            raise ValueError("head.pca is fitted to frozen encoders; with train_encoders give pca = 0")
        return self

    @property
    def used(self) -> "TrainPlan":
        """The plan as it is followed: without what does not apply to such a head."""
        unfit = self.train_encoders or self.head.kind == "model"
        return self.model_copy(update={"head": self.head.model_copy(update={"pca": 0})}) if unfit else self


def load_plan(path: Path) -> TrainPlan:
    """Read a training configuration, or the `plan.json` beside a head, which is one with every default.

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


def find_sources(paths: Sequence[Path], fusion: FusionConfig) -> list[DataSource]:
    """Return sessions (.mcap files, or all in a folder that holds some) and folders of ordinary media."""
    sources: list[DataSource] = []
    for path in paths:
        sessions = sessions_in(path) if path.is_dir() else [path]
        if sessions:
            sources += [SessionSource(file) for file in sessions]
        else:
            sources += media_sources(path, fusion)
    return sources


def branch_inputs(fusion: FusionConfig) -> dict[str, str]:
    """Return the input that each branch reads."""
    return {name: fusion.encoders[name].input for name in sorted(fusion.encoders)}


def input_columns(inputs: Mapping[str, str]) -> torch.Tensor:
    """Return the number of the input of each branch, (M,) int64."""
    names = sorted(set(inputs.values()))
    return torch.tensor([names.index(inputs[branch]) for branch in sorted(inputs)])


def new_head(plan: HeadPlan, dims: Mapping[str, int], classes: Sequence[str], seed: int) -> Head:
    """Return an untrained head."""
    torch.manual_seed(seed)
    if plan.kind == "model":
        return ModelFusion(
            dict(dims),
            classes,
            branch=plan.branch,
            combine=plan.combine,
            hidden=plan.hidden,
            dropout=plan.dropout,
            modality_dropout=plan.modality_dropout,
        )
    return FeatureFusion(
        dict(dims),
        classes,
        head=plan.head,
        hidden=plan.hidden,
        dropout=plan.dropout,
        missing=plan.missing,
        modality_dropout=plan.modality_dropout,
        use_ages=plan.use_ages,
        gru=plan.gru,
        ticks=plan.ticks,
        pca=plan.pca,
    )


@dataclass(frozen=True, slots=True)
class Split:
    """Sessions apart: to learn from, to choose and calibrate on, to test on once."""

    train: Examples
    validation: Examples
    test: Examples


def split(data: Examples, plan: TrainPlan, copies: Sequence[Examples] = ()) -> Split:
    """Split by source; without a test share, validation stands in for the test and the report says so.

    Of perturbed copies, those of the sources to learn from join them.
    """
    rest, test = dataset.holdout(data, plan.test, plan.training.seed) if plan.test else (data, None)
    share = plan.validation / (1 - plan.test)
    train, validation = dataset.holdout(rest, share, plan.training.seed)
    return Split(joined(train, copies), validation, validation if test is None else test)


def new_model(
    plan: TrainPlan, train: Examples, seed: int, fusion: FusionConfig
) -> tuple[FusionModel, Augment]:
    """Return an untrained head with the encoders trained with it, on its device, and what disturbs those."""
    names = [name for name in plan.train_encoders if name in train.branches]
    encoders = trainable(fusion, names, seed, plan.train_layers)
    dims = {
        name: encoders[name].dim if name in encoders else train.features[name].shape[1]
        for name in train.branches
    }
    head = new_head(plan.used.head, dims, train.classes, seed)
    model = FusionModel(head, {name: encoder.network for name, encoder in encoders.items()})
    return model.to(pick_device(plan.training.device)), plan.augment.of(encoders)


def train_heads(
    parts: Split,
    plan: TrainPlan,
    fusion: FusionConfig,
    state_folder: Path | None = None,
    advance: Advance = nothing,
) -> list[FusionModel]:
    """Train one head per seed.

    Args:
        parts: rows apart by session.
        plan: what to train and how.
        fusion: that the head is for.
        state_folder: training states are kept here, and continued from.
        advance: called for each head, and of epochs on the way there.
    """
    models = []
    for number in range(plan.seeds):
        seed = plan.training.seed + number
        model, augment = new_model(plan, parts.train, seed, fusion)
        state = None if state_folder is None else state_folder / f"seed-{seed}.state"
        config = plan.training.model_copy(update={"seed": seed})
        told = plan.model_dump(mode="json", include={"train_encoders", "train_layers", "augment", "copies"})
        columns = input_columns(branch_inputs(fusion))
        fit(
            model,
            parts.train,
            parts.validation,
            config,
            inputs=columns,
            augment=augment,
            state_file=state,
            plan=told,
            on_epoch=noted(advance),
        )
        advance()
        models.append(model.cpu())
    return models


def noted(advance: Advance) -> Callable[[int, History], None]:
    """Return what shows each epoch of a fit beside its progress."""
    return lambda epoch, history: advance(
        0, f"epoch {epoch}, validation loss {history.validation_loss[-1]:.4f}"
    )


def cross_validate(
    data: Examples,
    plan: TrainPlan,
    fusion: FusionConfig,
    copies: Sequence[Examples] = (),
    advance: Advance = nothing,
) -> Iterator[tuple[Split, FusionModel]]:
    """Train one head per fold of the sources; each source is in the test of exactly one, no copy in any."""
    for rest, fold in dataset.folds(data, plan.folds, plan.training.seed):
        train, validation = dataset.holdout(rest, plan.validation, plan.training.seed)
        parts = Split(joined(train, copies), validation, fold)
        (model,) = train_heads(parts, plan.model_copy(update={"seeds": 1}), fusion, None, advance)
        yield parts, model


def refuse_unlike_head(out: Path) -> None:
    """Raise SessionError if a place holds anything but a head that training wrote, which may be replaced."""
    if not (out / HEAD_WEIGHTS).is_file() or out.is_symlink():
        refuse_existing(out)
        return
    others = sorted({entry.name for entry in out.iterdir()} - _WRITTEN)
    if others:
        raise SessionError(
            f"{out} holds more than a head: {', '.join(others)}; move that or choose another name"
        )


CARD: Final = """---
library_name: perception
tags: [perception, sensor-fusion]
---
# Fusion head: {classes}

Load it in a profile by `fusion.head.weights = "{folder}"`, or in Python by
`perception.models.load_head("{folder}")`. It takes exactly the encoders it was trained with;
those in `encoders`, if there are any, were trained with it and come with it.

| branch | features | input |
|---|---|---|
{branches}

Trained on {train} windows of {train_sources} sources{copies}, chosen and calibrated on {validation}
windows of {validation_sources}, {tested}

| inputs | accuracy | macro F1 | NLL | ECE |
|---|---|---|---|---|
{figures}

Hash of the head `{hash}`, of the encoders' configuration `{encoders}`.
Full report: `report.html`, `report.json`. `perception train plan.json` trains it again.
"""


def save(
    folder: Path,
    model: FusionModel,
    parts: Split,
    report: Mapping[str, Any],
    inputs: Mapping[str, str],
    encoders: str,
    place: Path,
) -> None:
    """Write a checkpoint folder: weights, configuration, plan, model card; `place` is where it will lie."""
    head = model.head
    head.save_pretrained(folder)
    (folder / PLAN_FILE).write_text(json.dumps(report["training"], indent=2) + "\n", encoding="utf-8")
    branches = "\n".join(f"| {name} | {dim} | {inputs[name]} |" for name, dim in head.dims.items())
    figures = "\n".join(
        f"| {name} | {m['accuracy']:.3f} | {m['macro_f1']:.3f} | {m['nll']:.3f} | {m['ece']:.3f} |"
        for name, m in report["subsets"].items()
    )
    test_sources = len(set(parts.test.sources.tolist()))
    rows = len(parts.test.labelled)
    tested = f"tested once on {rows} windows of {test_sources}; no source is in two of these."
    if parts.test is parts.validation:
        tested = "which the figures below are of, too, as no share was kept for a test: they flatter."
    card = CARD.format(
        classes=", ".join(head.classes),
        folder=place,
        branches=branches,
        figures=figures,
        encoders=encoders,
        tested=tested,
        copies=" and perturbed copies of them" if report["training"]["copies"] else "",
        hash=head_hash(head),
        **{
            key: value
            for name in ("train", "validation")
            for key, value in {
                name: len(getattr(parts, name).labelled),
                f"{name}_sources": len(set(getattr(parts, name).sources.tolist())),
            }.items()
        },
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def encoders_config_hash(fusion: FusionConfig) -> str:
    """Return the hash of the configuration that a head depends on: windows and encoders."""
    return config_hash(json.loads(fusion.model_dump_json(include={"hop_ms", "inputs", "encoders", "seed"})))
