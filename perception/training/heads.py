"""Train the heads of a plan: one per seed, one per input alone, one per fold."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from perception.fusion.build import pick_device
from perception.io.progress import Advance, nothing
from perception.models.checkpoint import Head
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.profile import FusionConfig
from perception.training import processes, splits
from perception.training.copies import joined
from perception.training.examples import Examples
from perception.training.finetune import trainable
from perception.training.fit import Augment, History, fit, rows_missing
from perception.training.model import FusionModel
from perception.training.plan import HeadPlan, TrainPlan, branch_inputs, input_columns

_LOG: Final = logging.getLogger(__name__)
_BOTH: Final = {"hidden", "dropout", "modality_dropout"}
_MODEL_LEVEL: Final = {"branch", "combine", *_BOTH}
"""Keys of `HeadPlan` for a fusion at model level; one at feature level has `_BOTH` and all others."""


def new_head(plan: HeadPlan, dims: Mapping[str, int], classes: Sequence[str], seed: int) -> Head:
    """Return an untrained head."""
    torch.manual_seed(seed)
    if plan.kind == "model":
        return ModelFusion(dict(dims), classes, **plan.model_dump(include=_MODEL_LEVEL))
    return FeatureFusion(dict(dims), classes, **plan.model_dump(exclude={"kind", *_MODEL_LEVEL - _BOTH}))


@dataclass(frozen=True, slots=True)
class Split:
    """Examples by session: to train on, to choose and calibrate on, to test on once."""

    train: Examples
    validation: Examples
    test: Examples


def split(data: Examples, plan: TrainPlan, copies: Sequence[Examples] = ()) -> Split:
    """Split by source; without a test share, the test is the validation part, as the report states.

    Perturbed copies of the training sources are added to the training part.
    """
    rest, test = splits.holdout(data, plan.test, plan.training.seed) if plan.test else (data, None)
    share = plan.validation / (1 - plan.test)
    train, validation = splits.holdout(rest, share, plan.training.seed)
    return Split(joined(train, copies), validation, validation if test is None else test)


def new_model(
    plan: TrainPlan, train: Examples, seed: int, fusion: FusionConfig
) -> tuple[FusionModel, Augment]:
    """Return an untrained head with the encoders trained with it, on its device, and their augmentation."""
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
        parts: examples, split by session.
        plan: head, seeds and training.
        fusion: the fusion of the profile.
        state_folder: training states are written here; a training resumes from them.
        advance: called for each head, and for epochs before that.
    """
    models = []
    for number in range(plan.seeds):
        seed = plan.training.seed + number
        model, augment = new_model(plan, parts.train, seed, fusion)
        state = None if state_folder is None else state_folder / f"seed-{seed}.state"
        config = plan.training.model_copy(update={"seed": seed})
        other = plan.model_dump(mode="json", include={"train_encoders", "train_layers", "augment", "copies"})
        columns = input_columns(branch_inputs(fusion))
        fit(
            model,
            parts.train,
            parts.validation,
            config,
            inputs=columns,
            augment=augment,
            state_file=state,
            plan=other,
            on_epoch=epochs_shown(advance),
        )
        advance()
        models.append(model.cpu())
    return models


def epochs_shown(advance: Advance) -> Callable[[int, History], None]:
    """Return a callback for `fit` that shows each epoch beside the progress."""
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
    """Train one head per fold; each source is tested in exactly one fold, copies in none."""
    for rest, fold in splits.folds(data, plan.folds, plan.training.seed):
        train, validation = splits.holdout(rest, plan.validation, plan.training.seed)
        parts = Split(joined(train, copies), validation, fold)
        (model,) = train_heads(parts, plan.model_copy(update={"seeds": 1}), fusion, None, advance)
        yield parts, model


def train_singles(
    parts: Split, plan: TrainPlan, fusion: FusionConfig, advance: Advance = nothing
) -> dict[str, FusionModel]:
    """Train the same kind of head on each input alone, to compare with fusion; return them by input.

    Windows in which the input is absent are left out. An input with too few others gets no head: logged.
    """
    inputs = branch_inputs(fusion)
    head = plan.head.model_copy(update={"modality_dropout": 0.0})
    config = plan.training.model_copy(update={"input_dropout": 0.0})
    alone = plan.model_copy(update={"head": head, "training": config})
    device = pick_device(config.device)
    singles: dict[str, FusionModel] = {}
    for name in sorted(set(inputs.values())):
        branches = [branch for branch in parts.train.branches if inputs[branch] == name]
        own = Split(
            *(part.select(branches).without_empty() for part in (parts.train, parts.validation, parts.test))
        )
        if lacking := rows_missing(own.train, own.validation, processes.join(device).num_processes):
            _LOG.warning("no head of %s alone: %s", name, lacking)
            continue
        model, augment = new_model(alone, own.train, config.seed, fusion)
        fit(model, own.train, own.validation, config, augment=augment, on_epoch=epochs_shown(advance))
        advance()
        singles[name] = model.cpu()
    return singles
