"""Fusion of the branches' features into class scores, at the feature level or at the model level.

Feature level: F(x) = f1(x1) (+) ... (+) fn(xn), concatenated, then one head. Model level: complete
models M1 ... Mn, each with class scores of its own, whose outputs are combined. Both accept any
presence pattern; with nothing present they return the class prior. Branches are ordered by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from perception.models.heads import HEADS, HeadName, mlp
from perception.models.memory import MAX_TICKS, TickMemory
from perception.models.missing import MISSING, Distortion, MissingName, ModalityDropout, columns
from perception.models.pooling import LogLinearPool
from perception.models.reduction import PrincipalComponents

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of logits (B, C) and labels (B,): their mean loss."""
BranchName = Literal["linear", "mlp"]
CombineName = Literal["head", "pool"]
MAX_DEVIATIONS: Final = 10.0
"""Standardised features are clipped here, so one outlier cannot outweigh all others."""
MAX_AGE_S: Final = 10.0
CARD: Final = """---
{{ card_data }}
---
Fusion head of the perception library. Load it with `perception.models.load_head(folder)`.
"""


class FusionHead(nn.Module, PyTorchModelHubMixin, library_name="perception", model_card_template=CARD):
    """Base of both levels: branches and classes, standardisation of inputs, class prior, checkpoints."""

    kind: ClassVar[Literal["feature", "model"]]
    ticks: int = 1
    """How many consecutive windows it uses, the current one last."""
    mean: torch.Tensor
    std: torch.Tensor
    log_prior: torch.Tensor
    columns: torch.Tensor

    def __init__(
        self, dims: Mapping[str, int], classes: Sequence[str], modality_dropout: float, **options: Any
    ) -> None:
        super().__init__()
        self.branches: tuple[str, ...] = tuple(sorted(dims))
        self.dims: dict[str, int] = {name: dims[name] for name in self.branches}
        self.classes: tuple[str, ...] = tuple(classes)
        if not self.branches or min(dims.values()) < 1 or len(self.classes) < 2:
            raise ValueError("a fusion head needs at least one branch with features and two classes")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes repeat: {', '.join(self.classes)}")
        self._options = {"modality_dropout": modality_dropout, **options}
        self.modality_dropout = ModalityDropout(modality_dropout)
        total = sum(self.dims.values())
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("std", torch.ones(total))
        self.register_buffer("log_prior", torch.full((len(classes),), 1 / len(classes)).log())
        self.register_buffer("columns", columns(tuple(self.dims.values())), persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """Everything needed to rebuild this head, as stored in config.json."""
        return {"kind": self.kind, "dims": self.dims, "classes": list(self.classes), **self._options}

    def fit_statistics(
        self, features: Mapping[str, torch.Tensor], present: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """Fit standardisation on the rows present, and the class prior, from the training set.

        Args:
            features: per branch (N, dim) float32; rows of absent branches do not matter.
            present: (N, M) bool, columns in the order of `branches`.
            labels: (N,) int64 class indices.
        """
        mask = present[:, self.columns]
        x = torch.where(mask, self._concatenate(features, present.shape[:1]), 0.0).double()
        count = mask.sum(dim=0).clamp_min(1)
        mean = x.sum(dim=0) / count
        variance = ((x - mean).square() * mask).sum(dim=0) / count
        constant = variance.sqrt() < 1e-6
        self.mean.copy_(mean)
        self.std.copy_(torch.where(constant, 1.0, variance.sqrt()))
        counts = (
            torch.bincount(labels, minlength=len(self.classes)) + 1
        )  # a class without examples keeps a probability above zero
        self.set_prior((counts / counts.sum()).log())

    def set_prior(self, log_prior: torch.Tensor) -> None:
        """Set log p(y), (C,): the result with nothing present."""
        self.log_prior.copy_(log_prior)

    def set_inputs(self, inputs: torch.Tensor) -> None:
        """Set the input that each branch reads, (M,) int64, for training; by default each has its own."""
        self.modality_dropout.inputs = inputs

    def _inputs(
        self, features: Mapping[str, torch.Tensor], present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return standardised features (B, D), zero where absent, and presence (B, M); likewise per tick."""
        if present.ndim not in (2, 3) or present.shape[-1] != len(self.branches):
            got = tuple(present.shape)
            raise ValueError(f"presence is {got}, expected (batch, {len(self.branches)}): {self.branches}")
        given = [name in features for name in self.branches]
        if not all(given):
            present = present & torch.tensor(given, device=present.device)
        present = self.modality_dropout(present)
        x = (self._concatenate(features, present.shape[:-1]) - self.mean) / self.std
        x = x.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
        return torch.where(present.index_select(-1, self.columns), x, 0.0), present

    def _concatenate(self, features: Mapping[str, torch.Tensor], batch: torch.Size) -> torch.Tensor:
        for name, dim in self.dims.items():
            if name in features and features[name].shape != (*batch, dim):
                got = tuple(features[name].shape)
                raise ValueError(f"branch '{name}': features are {got}, expected {(*batch, dim)}")
        empty = self.mean.new_zeros(1)
        return torch.cat(
            [
                features[name] if name in features else empty.expand(*batch, dim)
                for name, dim in self.dims.items()
            ],
            dim=-1,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        text = json.dumps(self.config, indent=2, sort_keys=True)
        (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(cls, **options: Any) -> Self:
        head: Self = super()._from_pretrained(**{"strict": True, **options})
        return head


class FeatureFusion(FusionHead):
    """Concatenate the branches' features, presence and, if requested, ages; one head computes class scores.

    Args:
        dims: features per branch.
        classes: their names.
        head: `linear`, `mlp`, or `gated` (one gate per branch, closed where absent).
        hidden: width inside `mlp` and `gated`.
        dropout: inside the head, in training.
        missing: what replaces an absent branch.
        modality_dropout: probability with which training hides an input, all its branches.
        use_ages: also give the head the age of each branch's data.
        use_conditions: also give the head whether the signal of each branch is suspect.
        gru: hidden units of a GRU over ticks, whose state joins the features; 0 for none.
        ticks: how many it runs over.
        pca: principal components that are kept of each branch, at most; 0 for all features as they are.
    """

    kind = "feature"

    def __init__(
        self,
        dims: dict[str, int],
        classes: Sequence[str],
        head: HeadName = "linear",
        hidden: int = 64,
        dropout: float = 0.0,
        missing: MissingName = "token",
        modality_dropout: float = 0.0,
        use_ages: bool = False,
        gru: int = 0,
        ticks: int = 20,
        pca: int = 0,
        use_conditions: bool = False,
    ) -> None:
        super().__init__(
            dims,
            classes,
            modality_dropout,
            head=head,
            hidden=hidden,
            dropout=dropout,
            missing=missing,
            use_ages=use_ages,
            gru=gru,
            ticks=ticks,
            pca=pca,
            # left out where it is not used, so that the hash of an earlier head stays
            **({"use_conditions": True} if use_conditions else {}),
        )
        if not 1 <= ticks <= MAX_TICKS:
            raise ValueError(f"a GRU over {ticks} ticks: expected 1 to {MAX_TICKS}")
        widths = tuple(self.dims.values())
        self.reduction = PrincipalComponents(widths, pca) if pca else None
        widths = widths if self.reduction is None else self.reduction.widths
        self.use_ages = use_ages
        self.distortion = Distortion(widths) if use_conditions else None
        self.missing = MISSING[missing](widths)
        context = len(widths) * (1 + use_ages + use_conditions)
        self.memory = TickMemory(sum(widths) + context, gru) if gru else None
        self.ticks = ticks if gru else 1
        inputs = (*widths, gru) if gru else widths
        self.head = HEADS[head](inputs, context, len(self.classes), hidden, dropout)

    def forward(
        self,
        features: Mapping[str, torch.Tensor],
        present: torch.Tensor,
        ages_s: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        suspect: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits (B, C).

        A head with a GRU takes K ticks, the current one last: (B, K, dim) and (B, K, M); without the
        dimension of ticks, earlier ticks are unknown.

        Args:
            features: per branch (B, dim) float32. A branch left out counts as absent.
            present: (B, M) bool, columns in the order of `branches`.
            ages_s: (B, M) seconds, only read where present; needed if `use_ages`.
            known: (B, K) bool, which of the ticks were computed; None: all.
            suspect: (B, M) bool, whose signals are in a suspect condition; None: none. Only read if
                `use_conditions`, and where present.
        """
        x, present = self._reduced_inputs(features, present)
        parts = [present.to(x.dtype)]
        if self.distortion is not None:
            x, suspect = self.distortion(
                x, present, torch.zeros_like(present) if suspect is None else suspect
            )
            parts.append((suspect & present).to(x.dtype))
        if self.use_ages:
            if ages_s is None:
                raise ValueError("this head was trained with ages: give ages_s")
            parts.append(torch.where(present, ages_s.clamp(0, MAX_AGE_S), 0.0).log1p())
        context = torch.cat(parts, dim=-1)
        x = self.missing(x.flatten(0, -2), present.flatten(0, -2)).view(x.shape)
        anything = present.flatten(1).any(dim=1, keepdim=True)
        if self.memory is not None:
            x, context, present = self._with_memory(x, context, present, known)
        logits: torch.Tensor = self.head(x, context, present)
        return torch.where(anything, logits, self.log_prior)

    def _reduced_inputs(
        self, features: Mapping[str, torch.Tensor], present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, present = self._inputs(features, present)
        return (x if self.reduction is None else self.reduction(x)), present

    def fit_statistics(
        self, features: Mapping[str, torch.Tensor], present: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """See FusionHead; principal components are fitted too."""
        super().fit_statistics(features, present, labels)
        if self.reduction is not None:
            training = self.training
            self.reduction.fit(*self.eval()._inputs(features, present))
            self.train(training)

    def set_inputs(self, inputs: torch.Tensor) -> None:
        """See FusionHead; what replaces absent branches is learned by input too."""
        super().set_inputs(inputs)
        self.missing.inputs = inputs
        if self.distortion is not None:
            self.distortion.inputs = inputs

    def _with_memory(
        self, x: torch.Tensor, context: torch.Tensor, present: torch.Tensor, known: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the head's inputs of the current tick, with the GRU's state as a branch always present."""
        assert self.memory is not None
        if x.ndim == 2:
            x, context, present = x[:, None], context[:, None], present[:, None]
        if known is None:
            known = present.new_ones(x.shape[:2])
        state = self.memory(torch.cat([x, context], dim=-1), known)
        always = present.new_ones(len(present), 1)
        return torch.cat([x[:, -1], state], 1), context[:, -1], torch.cat([present[:, -1], always], 1)

    def auxiliary_loss(
        self,
        features: Mapping[str, torch.Tensor],
        present: torch.Tensor,
        labels: torch.Tensor,
        loss: Loss = F.cross_entropy,
    ) -> torch.Tensor:
        """Return the loss of the missing-modality strategy, which is added to that of the classes."""
        x, present = self._reduced_inputs(features, present)
        error: torch.Tensor = self.missing.auxiliary_loss(x.flatten(0, -2), present.flatten(0, -2))
        return error


class ModelFusion(FusionHead):
    """Complete models, one per branch, whose class scores are concatenated and combined.

    Args:
        dims: features per branch.
        classes: their names.
        branch: each model on its features, `linear` or `mlp`.
        combine: `pool`, the calibrated log-linear pool, or `head`, a learned linear layer.
        hidden: width inside `mlp`.
        dropout: inside `mlp`, in training.
        modality_dropout: probability with which training hides an input, all its branches.
    """

    kind = "model"

    def __init__(
        self,
        dims: dict[str, int],
        classes: Sequence[str],
        branch: BranchName = "linear",
        combine: CombineName = "pool",
        hidden: int = 64,
        dropout: float = 0.0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dims, classes, modality_dropout, branch=branch, combine=combine, hidden=hidden, dropout=dropout
        )
        count = len(self.classes)
        self.models = nn.ModuleList(
            nn.Linear(dim, count) if branch == "linear" else mlp(dim, hidden, count, dropout)
            for dim in self.dims.values()
        )
        self.pool = LogLinearPool(len(self.models), count)
        self.head = nn.Linear(len(self.models) * (count + 1), count) if combine == "head" else None

    def forward(
        self,
        features: Mapping[str, torch.Tensor],
        present: torch.Tensor,
        ages_s: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        suspect: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits (B, C); arguments as in FeatureFusion. Only features and presence enter."""
        x, present = self._inputs(features, present)
        logits = self._branch_logits(x)
        if self.head is None:
            pooled: torch.Tensor = self.pool(logits, present)
            return pooled
        # the scores of an absent branch are those known without it: the prior
        scores = torch.where(present[:, :, None], F.log_softmax(logits, dim=-1), self.log_prior)
        combined: torch.Tensor = self.head(torch.cat([scores.flatten(1), present.to(x.dtype)], dim=1))
        return torch.where(present.any(dim=1, keepdim=True), combined, self.log_prior)

    def auxiliary_loss(
        self,
        features: Mapping[str, torch.Tensor],
        present: torch.Tensor,
        labels: torch.Tensor,
        loss: Loss = F.cross_entropy,
    ) -> torch.Tensor:
        """Return the mean loss of the branches present, so that each is a complete model of its own."""
        x, present = self._inputs(features, present)
        logits = self._branch_logits(x)
        if not present.any():
            return logits.sum() * 0.0
        return loss(logits[present], labels[:, None].expand_as(present)[present])

    def set_prior(self, log_prior: torch.Tensor) -> None:
        """See FusionHead; the pool takes the same prior."""
        super().set_prior(log_prior)
        self.pool.log_prior.copy_(log_prior)

    @torch.no_grad()
    def calibrate(
        self,
        features: Mapping[str, torch.Tensor],
        present: torch.Tensor,
        labels: torch.Tensor,
        copies: int = 1,
        balance: torch.Tensor | None = None,
    ) -> None:
        """Fit the pool's temperatures, then its weights, on validation data in evaluation mode.

        Args:
            features: per branch (N, dim) float32.
            present: (N, M) bool.
            labels: (N,) int64.
            copies: how many of the rows, on average, are of one observation.
            balance: (C,) weights that make the classes as frequent as in the prior.
        """
        if self.training:
            raise ValueError("calibrate after head.eval(): dropout must not enter")
        x, present = self._inputs(features, present)
        logits = self._branch_logits(x)
        self.pool.fit_temperatures(logits, present, labels, copies, balance)
        self.pool.fit_weights(logits, present, labels, copies, balance)

    def _branch_logits(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, list(self.dims.values()), dim=1)
        return torch.stack([model(part) for model, part in zip(self.models, parts, strict=True)], dim=1)
