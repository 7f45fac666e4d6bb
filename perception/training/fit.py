"""One training loop for every fusion head, on features of frozen encoders or end to end."""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from perception.errors import PerceptionError
from perception.models.fusion import ModelFusion
from perception.training import fit_state, processes
from perception.training.examples import Examples
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import (
    ClassificationLoss,
    balanced_weights,
    epoch_length,
    epoch_order,
    prior_weights,
    remedied_prior,
)
from perception.training.lost_inputs import draw_lags, hide_inputs
from perception.training.model import FusionModel, calibrate, fit_statistics, predict
from perception.training.optimiser import new_optimiser, new_schedule

Augment = Callable[[Examples, torch.Generator], Examples]
OVERLAP: Final = 2
"""How often a head with a memory receives a tick per epoch, on average. With all rows it would be as often as
the head has ticks, and the best epoch was the third."""
LEAST_ROWS: Final = 2048
"""Thinning leaves an epoch at least so many rows, and validation too."""
_REMEDY: Final = "lower training.learning_rate, and look for features that are not finite"
_LOG: Final = logging.getLogger(__name__)


@dataclass
class History:
    """Losses of a fit, by epoch."""

    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = -1


def thinning(rows: int, ticks: int) -> int:
    """Return n, where an epoch of a head with so many ticks uses one row in n, another one each epoch."""
    return max(1, min(ticks // OVERLAP, rows // LEAST_ROWS))


def fit(
    model: FusionModel,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    *,
    inputs: torch.Tensor | None = None,
    augment: Augment | None = None,
    state_file: Path | None = None,
    plan: Mapping[str, Any] | None = None,
    on_epoch: Callable[[int, History], None] = lambda epoch, history: None,
) -> History:
    """Train, keep the epoch that was best on validation, and calibrate a model-level head on it.

    Processes that `torchrun` started share every batch, and all end with the same model. Each process draws
    random numbers for the whole batch. So the number of processes changes only the last digits of sums,
    dropout and the statistics of batch norm.

    Args:
        model: is changed, and ends in evaluation mode. It trains on its device; of several processes, each
            trains on a device of its own.
        train: rows to train on.
        validation: rows of other sources, to choose the epoch and to calibrate.
        config: epochs, optimiser, losses.
        inputs: (M,) int64, the input each branch reads; by default every branch has its own.
        augment: returns a changed batch, before each step.
        state_file: written after each epoch; if it exists, the fit resumes from it.
        plan: plain data that the state file belongs to, besides the other arguments.
        on_epoch: called after each epoch.

    Raises:
        PerceptionError: the kept epoch, or every epoch, has a loss or weights that are not finite; there are
            too few labelled windows; or `state_file` belongs to another training.
    """
    # an encoder gets no gradient where no row of a batch has its input
    accelerator = processes.accelerator(next(model.parameters()).device, unused=bool(model.encoders))
    if lacking := rows_missing(train, validation, accelerator.num_processes):
        raise PerceptionError(lacking)
    if accelerator.num_processes > 1:
        model.to(accelerator.device)
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    groups = torch.arange(len(train.branches)) if inputs is None else inputs
    run = _Run(model, train, validation, config, groups, generator, augment, accelerator)
    identity = (
        "" if state_file is None else fit_state.identity_of(model, (train, validation), config, plan or {})
    )
    epoch = run.resume(state_file, identity) if state_file is not None else 0
    while epoch < config.epochs and run.waited < config.patience:
        run.epoch(epoch)
        epoch += 1
        if state_file is not None and accelerator.is_main_process:
            run.save(state_file, identity, epoch)
        on_epoch(epoch, run.history)
    run.finish()
    return run.history


def rows_missing(train: Examples, validation: Examples, processes: int) -> str:
    """Return an error if rows are too few for a step, or none to choose an epoch by; else an empty text."""
    least = 2 * processes  # batch norm needs two rows in every process
    for part, needed, aim in ((train, least, "train on"), (validation, 1, "choose the best epoch by")):
        if (found := len(part.labelled)) < needed:
            return f"{found} labelled windows to {aim}, {needed} are needed; label or give more"
    return ""


def is_finite(model: nn.Module) -> bool:
    """Return whether every weight, mean and count of a model is finite."""
    return all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


class _Objective(nn.Module):
    """The loss as one module: its `forward` synchronises the processes."""

    def __init__(self, model: FusionModel, loss: ClassificationLoss, auxiliary: float) -> None:
        super().__init__()
        self.model, self._loss, self._auxiliary = model, loss, auxiliary

    def forward(self, batch: Examples, present: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over a batch; `present` (B, M) replaces its presence."""
        features = self.model.encode(batch.features, present)
        logits = self.model.head(features, present, batch.ages_s, batch.known, batch.suspect)
        loss = self._loss(logits, batch.labels)
        if self._auxiliary:
            loss = loss + self._auxiliary * self.model.head.auxiliary_loss(
                features, present, batch.labels, self._loss
            )
        return loss


class _Run:
    """The state of one fit."""

    def __init__(
        self,
        model: FusionModel,
        train: Examples,
        validation: Examples,
        config: TrainingConfig,
        inputs: torch.Tensor,
        generator: torch.Generator,
        augment: Augment | None,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.config, self.inputs, self.generator, self.augment = config, inputs, generator, augment
        self.accelerator = accelerator
        self.device = next(model.parameters()).device
        self.history = History()
        self.waited = 0
        self._best_loss = float("inf")
        self._best = copy.deepcopy(model.state_dict())
        model.head.set_inputs(inputs)
        self._rows = train.labelled
        labelled = train if len(self._rows) == len(train) else train.rows(self._rows)
        self._labels = labelled.labels
        fit_statistics(model, labelled)
        model.head.set_prior(remedied_prior(config.imbalance, model.head.log_prior))
        classes = len(train.classes)
        loss = ClassificationLoss(config.imbalance, labelled.labels, classes)
        self._objective = accelerator.prepare_model(_Objective(model, loss, config.auxiliary))
        self._one_in = thinning(len(self._rows), model.head.ticks)
        self._checked = _checked(validation, model.head.ticks)
        labels = self._checked.labels[self._checked.labelled]
        if config.select == "balanced-nll":
            weights: torch.Tensor | None = balanced_weights(labels, classes)
        else:
            weights = prior_weights(config.imbalance, labels, model.head.log_prior)
        self._weights = None if weights is None else weights.to(self.device)
        self._hidden = hide_inputs(validation.present, inputs, 1.0, generator)
        self._optimiser = new_optimiser(model, config)
        steps = -(-epoch_length(config.imbalance, self._labels) // (config.batch * self._one_in))
        self._schedule = new_schedule(self._optimiser, config, steps)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")

    def epoch(self, number: int) -> None:
        """Train on every row, with a memory on a share of them; then compute the validation loss."""
        self.model.train()
        order = epoch_order(self.config.imbalance, self._labels, self.generator)[:: self._one_in]
        batches = torch.split(self._rows[order], self.config.batch)
        # batch norm needs two rows in every process
        losses = [self._step(rows) for rows in batches if len(rows) >= 2 * self.accelerator.num_processes]
        broadcast(list(self.model.buffers()))  # each process trained on other rows
        loss = self._validate()
        if isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._schedule.step(loss)
        self.history.training_loss.append(math.fsum(losses) / len(losses))
        self.history.validation_loss.append(loss)
        finite = math.isfinite(loss) and is_finite(self.model)
        if self.config.select == "last":
            self.history.best_epoch = number if finite else -1
        elif finite and loss < self._best_loss - 1e-4:
            self._best_loss, self.waited, self.history.best_epoch = loss, 0, number
        else:
            self.waited += 1
        if self.history.best_epoch == number:
            self._best = copy.deepcopy(self.model.state_dict())

    def _step(self, rows: torch.Tensor) -> float:
        batch = self._late(rows) if self.config.late else self.train.context(rows, self.model.head.ticks)
        if self.augment is not None:
            batch = self.augment(batch, self.generator)
        present = hide_inputs(batch.present, self.inputs, self.config.input_dropout, self.generator)
        shares = self.accelerator.num_processes
        own = slice(self.accelerator.process_index, None, shares)
        batch, present = batch.rows(own).to(self.device), present[own].to(self.device)
        dtype = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss = self._objective(batch, present)
        loss = loss * (len(batch) * shares / len(rows))  # shares differ by a row, gradients are averaged
        self._descend(loss)
        return float(self.accelerator.reduce(loss.detach(), "mean"))

    def _late(self, rows: torch.Tensor) -> Examples:
        """Return rows in which some inputs are late, except where that would leave nothing present."""
        ticks = self.model.head.ticks
        lags = draw_lags(len(rows), self.inputs, self.config.late, self.config.late_ticks, self.generator)
        batch = self.train.context(rows, ticks, lags)
        empty = ~batch.present.flatten(1).any(dim=1, keepdim=True)
        return self.train.context(rows, ticks, lags.masked_fill(empty, 0)) if empty.any() else batch

    def _descend(self, loss: torch.Tensor) -> None:
        """Make one step of the optimiser. Where gradients overflow float16, skip it and lower the scale."""
        self._optimiser.zero_grad()
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(self._optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._scaler.get_scale() < scale:
            return
        if self._schedule is not None and not isinstance(
            self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau
        ):
            self._schedule.step()

    def _validate(self) -> float:
        """Return the NLL; where training hides inputs, the mean of it and the NLL with inputs hidden.

        All processes use the value of the first, so they choose the same best epoch.
        """
        loss = self._nll(self.validation.present)
        if self.config.input_dropout or self.model.head.modality_dropout.p:
            loss = (loss + self._nll(self._hidden)) / 2
        return float(broadcast(torch.tensor(loss, dtype=torch.float64, device=self.device)))

    def _nll(self, present: torch.Tensor) -> float:
        logits = predict(self.model, self._checked, present).to(self.device)
        labels = self._checked.labels[self._checked.labelled].to(self.device)
        return float(F.cross_entropy(logits, labels, self._weights))

    def finish(self) -> None:
        """Load the weights of the best epoch and calibrate."""
        if self.history.best_epoch < 0:
            which = "the last epoch had no" if self.config.select == "last" else "no epoch had a"
            raise PerceptionError(f"{which} finite loss on validation and finite weights; {_REMEDY}")
        self.model.load_state_dict(self._best)
        self.model.eval()
        if isinstance(self.model.head, ModelFusion) and self.model.head.head is None:
            labels = self.validation.labels[self.validation.labelled]
            balance = prior_weights(self.config.imbalance, labels, self.model.head.log_prior)
            calibrate(self.model, self.validation, balance)
            if not is_finite(self.model):
                raise PerceptionError(
                    f"calibration on validation gave weights that are not finite; {_REMEDY}"
                )

    def save(self, file: Path, identity: str, epochs: int) -> None:
        """Write everything that the next epoch depends on."""
        fit_state.save(
            file,
            {
                "of": identity,
                "epochs": epochs,
                "model": self.model.state_dict(),
                "best": self._best,
                "best_loss": self._best_loss,
                "waited": self.waited,
                "optimiser": self._optimiser.state_dict(),
                "scaler": self._scaler.state_dict(),
                "schedule": {} if self._schedule is None else self._schedule.state_dict(),
                "generator": self.generator.get_state(),
                "torch": torch.get_rng_state(),
                "history": vars(self.history),
            },
        )

    def resume(self, file: Path, identity: str) -> int:
        """Continue from the file, if it exists; return how many epochs are done."""
        if not file.exists():
            return 0
        state = fit_state.load(file, identity)
        self.model.load_state_dict(state["model"])
        self._best, self._best_loss, self.waited = state["best"], state["best_loss"], state["waited"]
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        self.history = History(**state["history"])
        _LOG.info("%s: resumed after epoch %d", file, state["epochs"])
        return int(state["epochs"])


def _checked(validation: Examples, ticks: int) -> Examples:
    """Return the validation rows; only those that the validation loss is computed on keep their labels."""
    kept = validation.labelled[:: thinning(len(validation.labelled), ticks)]
    labels = torch.full_like(validation.labels, -1).index_copy(0, kept, validation.labels[kept])
    return replace(validation, labels=labels)
