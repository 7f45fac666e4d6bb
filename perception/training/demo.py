"""Trains the head of the `demo` profile on scripted sessions: python -m perception.training.demo.

The windows come from the fusion core and the features from the engine, exactly as live. Seeds of the
training, validation and test scripts differ; the test script is played once, at the end.
"""

import argparse
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import torch
from torch.nn import functional as F

from perception.devices.script import CLASSES
from perception.devices.scripted import messages
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine, build_engine, use_threads
from perception.fusion.window import Window
from perception.messages import Label
from perception.models.fusion import FeatureFusion
from perception.profile import LAUNCH_DIR, FusionConfig, HeadConfig, Profile, ScriptConfig, load

TRAIN_SEEDS: Final = tuple(range(1, 25))
VALIDATION_SEEDS: Final = tuple(range(51, 57))
TEST_SEED: Final = 91
SCRIPT_SECONDS: Final = 120.0
STRIDE: Final = 3
"""Every so many windows become an example: the ones between are almost the same."""
INPUT_DROPOUT: Final = 0.35
"""Share of training rows that lose one or more whole inputs, so that the head is ready for a dead camera."""

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Examples:
    """Windows as the head sees them."""

    features: dict[str, torch.Tensor]
    """By encoder: (N, dim) float32, zeros where absent."""
    present: torch.Tensor
    """(N, M) bool, encoders in sorted order."""
    ages_s: torch.Tensor
    """(N, M) float32."""
    labels: torch.Tensor
    """(N,) int64, index into CLASSES."""

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join several, in order."""
        return cls(
            {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features},
            torch.cat([part.present for part in parts]),
            torch.cat([part.ages_s for part in parts]),
            torch.cat([part.labels for part in parts]),
        )

    def rows(self, index: torch.Tensor) -> "Examples":
        """Return the rows of `index`."""
        features = {name: values[index] for name, values in self.features.items()}
        return Examples(features, self.present[index], self.ages_s[index], self.labels[index])


def untrained(profile: Profile) -> FusionConfig:
    """The profile's fusion with a random head over the script's classes."""
    if profile.fusion is None:
        raise ValueError("the profile has no [fusion] table")
    return profile.fusion.model_copy(update={"head": HeadConfig(weights="random", classes=CLASSES)})


def play(profile: Profile, seconds: float, seed: int) -> Examples:
    """Play one script through core and encoders; one example per window with known truth."""
    use_threads(1)
    config = untrained(profile)
    core, engine = FusionCore(config), build_engine(config, clock=lambda: 0)
    script = ScriptConfig(seed=seed, noise=profile.script.noise)
    rows: list[tuple[Window, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]] = []
    truth: list[Label] = []
    devices = profile.camera["front"], profile.microphone["main"]
    for message in messages(script, *devices, seconds):
        if isinstance(message.header, Label):
            truth.append(message.header)
            continue
        for window in core.push(message):
            if window.tick % STRIDE:
                continue
            rows.append((window, *engine.tensors(window, engine.encode(window))))
    _LOG.info("played script %d: %d windows", seed, len(rows))
    return _examples(engine, rows, truth)


def _examples(
    engine: Engine,
    rows: Sequence[tuple[Window, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]],
    truth: Sequence[Label],
) -> Examples:
    known = []
    for window, features, present, ages_s in rows:
        names = [label.name for label in truth if label.start_ns <= window.end_ns < label.end_ns]
        if names:
            known.append((CLASSES.index(names[0]), features, present, ages_s))
    stacked = {
        name: torch.cat([features.get(name, torch.zeros(1, encoder.dim)) for _, features, _, _ in known])
        for name, encoder in engine.encoders.items()
    }
    return Examples(
        stacked,
        torch.cat([present for _, _, present, _ in known]),
        torch.cat([ages_s for _, _, _, ages_s in known]),
        torch.tensor([label for label, _, _, _ in known]),
    )


def drop_inputs(present: torch.Tensor, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Hide whole inputs in INPUT_DROPOUT of the rows, each with probability one half, never all of them.

    Args:
        present: (N, M) bool.
        inputs: (M,) int64, the input each encoder reads.
        generator: decides what is hidden.
    """
    count = int(inputs.max()) + 1
    hidden = torch.rand(len(present), count, generator=generator) < 0.5
    hidden &= ~hidden.all(dim=1, keepdim=True)
    hidden &= torch.rand(len(present), 1, generator=generator) < INPUT_DROPOUT
    return present & ~hidden[:, inputs]


def fit(head: FeatureFusion, train: Examples, validation: Examples, inputs: torch.Tensor, seed: int) -> None:
    """Fit by AdamW with early stopping on the validation NLL, all inputs present and hidden alike."""
    generator = torch.Generator().manual_seed(seed)
    head.fit_statistics(train.features, train.present, train.labels)
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-2)
    hidden = drop_inputs(validation.present, inputs, generator)
    best, best_state, patience = float("inf"), dict(head.state_dict()), 0
    for epoch in range(200):
        head.train()
        for index in torch.split(torch.randperm(len(train.labels), generator=generator), 256):
            batch = train.rows(index)
            present = drop_inputs(batch.present, inputs, generator)
            loss = F.cross_entropy(head(batch.features, present, batch.ages_s), batch.labels)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        nll = (_nll(head, validation, validation.present) + _nll(head, validation, hidden)) / 2
        if nll < best - 1e-4:
            best, patience = nll, 0
            best_state = {name: value.clone() for name, value in head.state_dict().items()}
        elif (patience := patience + 1) >= 15:
            _LOG.info("stopped after epoch %d, validation NLL %.4f", epoch, best)
            break
    head.load_state_dict(best_state)
    head.eval()


@torch.no_grad()
def _nll(head: FeatureFusion, data: Examples, present: torch.Tensor) -> float:
    head.eval()
    return float(F.cross_entropy(head(data.features, present, data.ages_s), data.labels))


@torch.no_grad()
def accuracy(head: FeatureFusion, data: Examples, present: torch.Tensor) -> float:
    """Return the share of windows whose most probable class is the truth."""
    head.eval()
    return float((head(data.features, present, data.ages_s).argmax(dim=1) == data.labels).float().mean())


def main() -> None:
    """Play the scripts, fit the head, print its accuracy per set of inputs, store it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=LAUNCH_DIR / "demo_head")
    parser.add_argument("--seed", type=int, default=0, help="of the head's first weights and the batches")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    profile = load("demo")
    seeds = (*TRAIN_SEEDS, *VALIDATION_SEEDS, TEST_SEED)
    with ProcessPoolExecutor(arguments.workers) as pool:
        played = list(pool.map(partial(play, profile, SCRIPT_SECONDS), seeds))
    train = Examples.concatenate(played[: len(TRAIN_SEEDS)])
    validation = Examples.concatenate(played[len(TRAIN_SEEDS) : -1])
    config = untrained(profile)
    names = sorted(config.encoders)
    inputs = torch.tensor([list(config.inputs).index(config.encoders[name].input) for name in names])
    torch.manual_seed(arguments.seed)
    dims = {name: train.features[name].shape[1] for name in names}
    head = FeatureFusion(dims, CLASSES, head="mlp", hidden=64, dropout=0.2, use_ages=True)
    fit(head, train, validation, inputs, arguments.seed)
    for kept in range(1, 2 ** len(config.inputs)):
        shown = [name for bit, name in enumerate(config.inputs) if kept >> bit & 1]
        mask = torch.tensor([bool(kept >> int(number) & 1) for number in inputs])
        figures = [accuracy(head, data, data.present & mask) for data in (validation, played[-1])]
        _LOG.info("%-26s validation %.3f, test script %.3f", "+".join(shown), *figures)
    head.save_pretrained(arguments.out)
    _LOG.info("stored %s", arguments.out)


if __name__ == "__main__":
    main()
