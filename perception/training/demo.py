"""Train the head of the `demo` profile on scripted sessions: python -m perception.training.demo.

The windows come from the fusion core and the features from the engine, exactly as live. The seeds of
training, validation and test scripts differ; the test script is used once, at the end.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from perception.devices.script import CLASSES
from perception.devices.scripted import messages
from perception.io.home import kept_in
from perception.messages import Header, Label, Message
from perception.models.fusion import FeatureFusion
from perception.profile import LAUNCH_DIR, Profile, ScriptConfig, load
from perception.session.labels import Span, from_messages
from perception.training import dataset
from perception.training.evaluate import by_subset
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.model import FusionModel
from perception.training.plan import CACHE, branch_inputs, input_columns

TRAIN_SEEDS: Final = tuple(range(1, 25))
VALIDATION_SEEDS: Final = tuple(range(51, 57))
TEST_SEED: Final = 91
SCRIPT_SECONDS: Final = 120.0
TRAINING: Final = TrainingConfig()
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScriptSource:
    """The messages of the scripted devices of a profile, for one seed."""

    profile: Profile
    seed: int
    seconds: float = SCRIPT_SECONDS

    @property
    def name(self) -> str:
        """The name of the script."""
        return f"script {self.seed}"

    def fingerprint(self) -> str:
        """Return all that decides the messages but the code of the script, which the cache version covers."""
        devices = self.profile.model_dump_json(include={"camera", "microphone", "script"})
        return f"{self.seed} {self.seconds} {devices}"

    def origin(self) -> str:
        """Return its fingerprint: no other source is a part of it."""
        return self.fingerprint()

    def messages(self) -> Iterator[Message[Header]]:
        """Yield the messages of the script."""
        script = ScriptConfig(seed=self.seed, noise=self.profile.script.noise)
        devices = self.profile.camera["front"], self.profile.microphone["main"]
        return messages(script, *devices, self.seconds)

    def recording(self) -> Iterator[Message[Header]]:
        """Return its messages."""
        return self.messages()

    def spans(self) -> list[Span]:
        """Return the labels, played with few small pictures: labels do not depend on pictures."""
        rare = {"rate_hz": 1.0, "width": 64, "height": 48}
        front = {"front": self.profile.camera["front"].model_copy(update=rare)}
        quick = replace(self, profile=self.profile.model_copy(update={"camera": front}))
        return from_messages(m.header for m in quick.messages() if isinstance(m.header, Label))


def played(profile: Profile, seeds: tuple[int, ...], cache: Path, workers: int) -> Examples:
    """Return the labelled windows of the scripts with these seeds."""
    sources = [ScriptSource(profile, seed) for seed in seeds]
    return dataset.build(sources, profile.required_fusion(), cache, classes=CLASSES, workers=workers)


def main() -> None:
    """Play the scripts, fit the head, log its accuracy per set of inputs, store it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=LAUNCH_DIR / "demo_head")
    parser.add_argument("--seed", type=int, default=0, help="of the head's first weights and the batches")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    profile = load("demo")
    assert profile.fusion is not None
    cache = kept_in(arguments.cache, "--cache")
    train, validation, test = (
        played(profile, seeds, cache, arguments.workers)
        for seeds in (TRAIN_SEEDS, VALIDATION_SEEDS, (TEST_SEED,))
    )
    inputs = branch_inputs(profile.fusion)
    torch.manual_seed(arguments.seed)
    dims = {name: train.features[name].shape[1] for name in train.branches}
    head = FeatureFusion(dims, CLASSES, head="mlp", hidden=64, dropout=0.2, use_ages=True)
    model = FusionModel(head)
    config = TRAINING.model_copy(update={"seed": arguments.seed})
    history = fit(model, train, validation, config, inputs=input_columns(inputs))
    best = history.validation_loss[history.best_epoch]
    _LOG.info("best epoch %d, validation NLL %.4f", history.best_epoch, best)
    chosen, tested = (by_subset(model, part, inputs) for part in (validation, test))
    for shown in chosen.keys() & tested.keys():
        figures = chosen[shown].accuracy, tested[shown].accuracy
        _LOG.info("%-26s validation %.3f, test script %.3f", shown, *figures)
    head.save_pretrained(arguments.out)
    _LOG.info("stored %s", arguments.out)


if __name__ == "__main__":
    from perception.training import demo  # worker processes cannot import the sources of a __main__

    demo.main()
