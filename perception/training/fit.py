"""One training loop for every fusion head, on features of frozen encoders or end to end."""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from pydantic import Field
from torch import nn

from perception.errors import PerceptionError, SessionError
from perception.models.checkpoint import config_hash, weights_hash
from perception.models.fusion import ModelFusion
from perception.profile import Section
from perception.training import processes
from perception.training.examples import Examples
from perception.training.imbalance import (
    ClassificationLoss,
    Imbalance,
    balanced_weights,
    epoch_length,
    epoch_order,
    prior_weights,
    remedied_prior,
)
from perception.training.model import EVALUATION_BATCH, FusionModel, calibrate, fit_statistics, predict

Augment = Callable[[Examples, torch.Generator], Examples]
OVERLAP: Final = 2
"""How often an epoch shows a tick to a head with a memory, on average; all its rows would as often as it has
ticks, and the best epoch was the third."""
LEAST_ROWS: Final = 2048
"""An epoch has no fewer for that, nor has validation."""
_REMEDY: Final = "lower training.learning_rate, and look for features that are not finite"
_LOG: Final = logging.getLogger(__name__)


class TrainingConfig(Section):
    """`[training]`: how a head is fitted."""

    epochs: Annotated[int, Field(ge=1)] = 200
    batch: Annotated[int, Field(ge=2, description="examples per step")] = 256
    optimiser: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd and rmsprop")] = 0.9
    schedule: Literal["constant", "cosine", "one-cycle", "plateau"] = "constant"
    clip: Annotated[float, Field(gt=0, description="largest norm of a step's gradient")] = 5.0
    patience: Annotated[int, Field(ge=1, description="epochs without a better validation loss")] = 15
    select: Annotated[
        Literal["nll", "balanced-nll", "last"],
        Field(
            description="which epoch is kept: best on validation, whose classes weigh what a remedy of "
            "imbalance makes them, that with classes equal, or the last"
        ),
    ] = "nll"
    input_dropout: Annotated[
        float, Field(ge=0, le=1, description="share of rows that lose one or more whole inputs")
    ] = 0.35
    late: Annotated[
        float, Field(ge=0, le=1, description="share of rows that see one input as it was some ticks before")
    ] = 0.0
    late_ticks: Annotated[int, Field(ge=1, description="at most so many")] = 3
    encoder_rate: Annotated[
        float, Field(gt=0, description="learning rate of trained encoders, times that of the head")
    ] = 1.0
    auxiliary: Annotated[float, Field(ge=0, description="weight of the head's auxiliary loss")] = 1.0
    imbalance: Imbalance = Imbalance()
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(description="of matrix products; float16 scales the loss, so that small gradients survive"),
    ] = "float32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    seed: int = 0


@dataclass
class History:
    """What a fit did, by epoch."""

    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = -1


def hide_inputs(
    present: torch.Tensor, inputs: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Hide whole inputs in `share` of the rows, each with probability one half, never all that are present.

    Args:
        present: (N, M) bool, or over ticks (N, K, M): then in all of a row's ticks alike.
        inputs: (M,) int64, the input each branch reads.
        share: of the rows.
        generator: decides what is hidden.
    """
    count = int(inputs.max()) + 1
    hidden = torch.rand(len(present), count, generator=generator) < 0.5
    hidden &= ~hidden.all(dim=1, keepdim=True)
    hidden &= torch.rand(len(present), 1, generator=generator) < share
    shown = ~hidden[:, inputs].to(present.device)
    left = present & (shown if present.ndim == 2 else shown[:, None])
    emptied = ~left.flatten(1).any(dim=1).view(-1, *(1,) * (present.ndim - 1))
    return torch.where(emptied, present, left)


def draw_lags(
    rows: int, inputs: torch.Tensor, share: float, ticks: int, generator: torch.Generator
) -> torch.Tensor:
    """Return by how many ticks each branch is late, (rows, M): one input in `share` of the rows."""
    one = torch.randint(int(inputs.max()) + 1, (rows, 1), generator=generator) == inputs
    lag = torch.randint(1, ticks + 1, (rows, 1), generator=generator)
    return lag * one * (torch.rand(rows, 1, generator=generator) < share)


def thinning(rows: int, ticks: int) -> int:
    """Return of how many rows one is in an epoch, another each time, by a head of so many ticks."""
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

    In processes that `torchrun` started, every batch is shared out among them, and all end with
    the same model. What is drawn at random is drawn for the whole batch in each, so that the number of
    processes changes sums in their last digits, dropout and the statistics of batch norm, nothing else.

    Args:
        model: is changed, and ends in evaluation mode; its device is where it trains, but of several
            processes each trains on its own.
        train: rows to learn from.
        validation: rows of other sources, for the choice of the epoch and for calibration.
        config: how.
        inputs: (M,) int64, the input each branch reads; by default every branch has its own.
        augment: changes a batch before it is used.
        state_file: written after each epoch and, where it exists, continued from.
        plan: plain data that the state file belongs to, besides all else given here.
        on_epoch: told after each epoch.

    Raises:
        PerceptionError: the kept epoch, or all there are to choose from, have a loss or weights that are not
            finite; too few labelled windows; or `state_file` is of another training.
    """
    # an encoder has nothing to do where all of a batch lacks its input
    accelerator = processes.accelerator(next(model.parameters()).device, unused=bool(model.encoders))
    _check_rows(train, validation, accelerator.num_processes)
    if accelerator.num_processes > 1:
        model.to(accelerator.device)
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    groups = torch.arange(len(train.branches)) if inputs is None else inputs
    run = _Run(model, train, validation, config, groups, generator, augment, accelerator)
    identity = "" if state_file is None else _identity(model, (train, validation), config, plan or {})
    epoch = run.resume(state_file, identity) if state_file is not None else 0
    while epoch < config.epochs and run.waited < config.patience:
        run.epoch(epoch)
        epoch += 1
        if state_file is not None and accelerator.is_main_process:
            run.save(state_file, identity, epoch)
        on_epoch(epoch, run.history)
    run.finish()
    return run.history


def _check_rows(train: Examples, validation: Examples, processes: int) -> None:
    """Raise PerceptionError if there is nothing to make a step of, or nothing to choose an epoch by."""
    least = 2 * processes  # batch norm needs two rows in every process
    for part, needed, aim in ((train, least, "train on"), (validation, 1, "choose the best epoch by")):
        if len(part.labelled) < needed:
            found = len(part.labelled)
            raise PerceptionError(
                f"{found} labelled windows to {aim}, {needed} are needed; label or give more"
            )


def is_finite(model: nn.Module) -> bool:
    """Whether no weight, mean or count of a model is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


class _Objective(nn.Module):
    """What is minimised, as one module: its forward is where processes join."""

    def __init__(self, model: FusionModel, loss: ClassificationLoss, auxiliary: float) -> None:
        super().__init__()
        self.model, self._loss, self._auxiliary = model, loss, auxiliary

    def forward(self, batch: Examples, present: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over a batch of which `present` (B, M) is shown."""
        features = self.model.encode(batch.features, present)
        loss = self._loss(self.model.head(features, present, batch.ages_s, batch.known), batch.labels)
        if self._auxiliary:
            loss = loss + self._auxiliary * self.model.head.auxiliary_loss(
                features, present, batch.labels, self._loss
            )
        return loss


class _Run:
    """One fit under way."""

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
        learnt = train if len(self._rows) == len(train) else train.rows(self._rows)
        self._labels = learnt.labels
        fit_statistics(model, learnt)
        model.head.set_prior(remedied_prior(config.imbalance, model.head.log_prior))
        classes = len(train.classes)
        loss = ClassificationLoss(config.imbalance, learnt.labels, classes)
        self._objective = accelerator.prepare_model(_Objective(model, loss, config.auxiliary))
        self._one_in = thinning(len(self._rows), model.head.ticks)
        self._judged = _judged(validation, model.head.ticks)
        labels = self._judged.labels[self._judged.labelled]
        if config.select == "balanced-nll":
            weights: torch.Tensor | None = balanced_weights(labels, classes)
        else:
            weights = prior_weights(config.imbalance, labels, model.head.log_prior)
        self._weights = None if weights is None else weights.to(self.device)
        self._hidden = hide_inputs(validation.present, inputs, 1.0, generator)
        self._optimiser = _optimiser(model, config)
        steps = -(-epoch_length(config.imbalance, self._labels) // (config.batch * self._one_in))
        self._schedule = _schedule(self._optimiser, config, steps)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")

    def epoch(self, number: int) -> None:
        """Go over the training rows, by a head with a memory a share of them, then look at validation."""
        self.model.train()
        order = epoch_order(self.config.imbalance, self._labels, self.generator)[:: self._one_in]
        batches = torch.split(self._rows[order], self.config.batch)
        # batch norm needs two rows in every process
        losses = [self._step(rows) for rows in batches if len(rows) >= 2 * self.accelerator.num_processes]
        broadcast(list(self.model.buffers()))  # each process has seen other rows
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
        late = None
        if self.config.late:
            late = draw_lags(len(rows), self.inputs, self.config.late, self.config.late_ticks, self.generator)
        batch = self.train.context(rows, self.model.head.ticks, late)
        if self.augment is not None:
            batch = self.augment(batch, self.generator)
        present = hide_inputs(batch.present, self.inputs, self.config.input_dropout, self.generator)
        shares = self.accelerator.num_processes
        mine = slice(self.accelerator.process_index, None, shares)
        batch, present = batch.rows(mine).to(self.device), present[mine].to(self.device)
        dtype = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss = self._objective(batch, present)
        loss = loss * (len(batch) * shares / len(rows))  # shares differ by a row, gradients are averaged
        self._descend(loss)
        return float(self.accelerator.reduce(loss.detach(), "mean"))

    def _descend(self, loss: torch.Tensor) -> None:
        """Make one step of the optimiser; left out where gradients overflow float16, with a smaller scale."""
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
        """Mean of the NLL with everything present as it was, and with inputs hidden where training does.

        The same in all processes, so that they agree on the best epoch.
        """
        loss = self._nll(self.validation.present)
        if self.config.input_dropout or self.model.head.modality_dropout.p:
            loss = (loss + self._nll(self._hidden)) / 2
        return float(broadcast(torch.tensor(loss, dtype=torch.float64, device=self.device)))

    def _nll(self, present: torch.Tensor) -> float:
        logits = predict(self.model, self._judged, present).to(self.device)
        labels = self._judged.labels[self._judged.labelled].to(self.device)
        return float(F.cross_entropy(logits, labels, self._weights))

    def finish(self) -> None:
        """Go back to the best epoch and calibrate."""
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
        """Write everything the next epoch depends on, whole or not at all."""
        state = {
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
        }
        part = file.with_suffix(".part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, part)
            part.replace(file)
        except (OSError, RuntimeError) as error:  # torch's writer says so that the disk is full
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise SessionError(f"cannot write {file}: {reason}") from error
        finally:
            part.unlink(missing_ok=True)

    def resume(self, file: Path, identity: str) -> int:
        """Continue where the file stopped; return how many epochs are done."""
        if not file.exists():
            return 0
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever the reader of a damaged archive raises
            raise PerceptionError(f"{file}: damaged; remove it to start from the beginning") from error
        if state.get("of") != identity:
            raise PerceptionError(
                f"{file}: of a training with another configuration, head, copies or other sessions; go "
                "back to those, or remove it to start from the beginning"
            )
        self.model.load_state_dict(state["model"])
        self._best, self._best_loss, self.waited = state["best"], state["best_loss"], state["waited"]
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        self.history = History(**state["history"])
        _LOG.info("%s: going on after epoch %d", file, state["epochs"])
        return int(state["epochs"])


def _judged(validation: Examples, ticks: int) -> Examples:
    """Return the validation rows with the labels alone that an epoch is judged by."""
    kept = validation.labelled[:: thinning(len(validation.labelled), ticks)]
    labels = torch.full_like(validation.labels, -1).index_copy(0, kept, validation.labels[kept])
    return replace(validation, labels=labels)


def _identity(
    model: FusionModel, parts: Sequence[Examples], config: TrainingConfig, plan: Mapping[str, Any]
) -> str:
    """Return the hash of what a stored state belongs to; it may go on for more epochs."""
    rows = [
        weights_hash({**batch.features, **{f" {key}": getattr(batch, key) for key in _DECISIVE}})
        for part in parts
        for at in torch.split(torch.arange(len(part)), EVALUATION_BATCH)
        for batch in [part.rows(at).read()]
    ]
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    decisive = config.model_dump(mode="json", exclude={"epochs"})
    told = {"head": model.head.config, "shapes": shapes, "config": decisive, "plan": dict(plan)}
    return config_hash({"rows": rows, **told})


_DECISIVE: Final = ("labels", "sources", "ends_ns", "present", "ages_s")


def _optimiser(model: FusionModel, config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    parameters: list[dict[str, Any]] = [{"params": model.head.parameters()}]
    if model.encoders:
        parameters.append({"params": model.encoders.parameters(), "lr": rate * config.encoder_rate})
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=rate, momentum=config.momentum, weight_decay=decay, nesterov=True
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)


def _schedule(
    optimiser: torch.optim.Optimizer, config: TrainingConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    total = config.epochs * steps
    match config.schedule:
        case "constant":
            return None
        case "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
        case "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimiser, [group["lr"] for group in optimiser.param_groups], total_steps=total
            )
        case "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimiser, patience=max(1, config.patience // 3)
            )
