"""avMNIST in the sense of SMIL (Ma et al. 2021): 1,500 pairs of a written and a spoken digit.

1,050 pairs to train on, 450 to test; spoken digits with an index under 15 are test. Both halves of the
pictures come out of MNIST's training part, disjoint. Encoders are trained alone, as published runs do,
then frozen; every strategy of fusion is trained on the same features. 10 pairs per class of the training
part choose the epoch and calibrate; the test part is looked at once per trained head.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
import torch.nn.functional as F

from perception.errors import PerceptionError
from perception.features.logmel import log_mel
from perception.features.resample import resample
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.training import augment
from perception.training.benchmarks.results import Figures
from perception.training.evaluate import mcnemar, metrics, probabilities, shuffle_drops
from perception.training.examples import Examples
from perception.training.fit import FusionModel, TrainingConfig, fit
from perception.training.imbalance import REMEDIES, Imbalance, long_tail
from perception.training.networks import ConvEncoder

CLASSES: Final = tuple(str(digit) for digit in range(10))
SPEAKERS: Final = ("jackson", "nicolas", "theo")
TEST_BELOW: Final = 15
TRAIN_PICTURES, TEST_PICTURES, VALIDATION_PER_CLASS = 105, 45, 10
RATE_HZ: Final = 8000
SAMPLES: Final = 7808
"""Of one utterance, cut or padded; 96 log-mel frames at 16 kHz."""
BANDS: Final = 48
"""The mel bands up to 4 kHz, all that 8 kHz sound has."""
DIM: Final = 64
INPUTS: Final = {"audio": "audio", "image": "image"}
SETTING_A_RATES: Final = (0.05, 0.10, 0.15, 0.20)
ENCODER: Final = TrainingConfig(
    epochs=30, batch=64, learning_rate=5e-3, schedule="one-cycle", select="last", auxiliary=0
)
HEAD: Final = TrainingConfig(
    epochs=150, batch=128, learning_rate=2e-3, weight_decay=5e-2, patience=20, select="nll"
)
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures and sounds of one part."""

    images: torch.Tensor
    """(N, 1, 28, 28) in [0, 1]."""
    waveforms: torch.Tensor
    """(N, SAMPLES) at 8 kHz."""
    labels: torch.Tensor

    def examples(self) -> Examples:
        """Return what the encoders take."""
        inputs = {"image": self.images, "audio": spectrograms(self.waveforms)}
        return Examples.of(inputs, self.labels, CLASSES)


def load(data: Path, seed: int) -> tuple[Pairs, Pairs]:
    """Return training and test pairs; the seed decides who is paired with whom.

    Args:
        data: holds `mnist/mnist-train.npz` and `fsdd/DIGIT_SPEAKER_INDEX.wav`.
        seed: of the pairing.

    Raises:
        PerceptionError: the data is not there.
    """
    try:
        with np.load(data / "mnist" / "mnist-train.npz") as archive:
            pictures, digits = archive["train_x"], archive["train_y"]
        sounds = {
            name: [
                _utterance(data / "fsdd" / f"{digit}_{speaker}_{index}.wav")
                for digit in range(10)
                for speaker in SPEAKERS
                for index in numbers
            ]
            for name, numbers in {"train": range(TEST_BELOW, 50), "test": range(TEST_BELOW)}.items()
        }
    except (OSError, KeyError, soundfile.LibsndfileError) as error:
        raise PerceptionError(f"{data}: no avmnist data there: {error}") from error
    rng = np.random.default_rng(seed)
    parts = []
    for name, per_class in (("train", TRAIN_PICTURES), ("test", TEST_PICTURES)):
        chosen = []
        for digit in range(10):
            rows = np.flatnonzero(digits == digit)
            rows = rows[:per_class] if name == "train" else rows[-per_class:]
            chosen.append(rng.permutation(rows))
        images = torch.from_numpy(pictures[np.concatenate(chosen)]).float()[:, None] / 255
        labels = torch.arange(10).repeat_interleave(per_class)
        parts.append(Pairs(images, torch.from_numpy(np.stack(sounds[name])), labels))
    return parts[0], parts[1]


def _utterance(path: Path) -> Any:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != RATE_HZ:
        raise PerceptionError(f"{path}: {rate_hz} Hz, expected {RATE_HZ}")
    return np.pad(samples[:SAMPLES], (0, max(0, SAMPLES - len(samples))))


def spectrograms(waveforms: torch.Tensor) -> torch.Tensor:
    """Return log-mel pictures (N, 1, 48, 48): VGGish's front end, pairs of frames averaged, mean removed."""
    frames = [log_mel(resample(wave.numpy(), RATE_HZ, 16_000)) for wave in waveforms]
    stacked = torch.from_numpy(np.stack([frame[:96, :BANDS] for frame in frames]))
    pooled = stacked.view(len(stacked), 48, 2, BANDS).mean(dim=2)
    return ((pooled - pooled.mean(dim=(1, 2), keepdim=True)) / 2)[:, None]


def _augment_audio(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shifted = augment.time_shifted(x[:, 0], generator, 0.12)
    return augment.spec_augmented(shifted, generator, 0.2, 0.2)[:, None]


def _augment_image(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return augment.moved(x, generator, shift=0.08)


AUGMENT: Final = {"audio": _augment_audio, "image": _augment_image}


def untrained_encoder(branch: str) -> FusionModel:
    """Return one branch's encoder with a linear head of its own."""
    if branch == "audio":
        encoder = ConvEncoder(1, (16, 32, 64), DIM, (3, 3), dropout=0.2, first_stride=2)
    else:
        encoder = ConvEncoder(1, (12, 24, 48), DIM, (3, 3), dropout=0.2)
    return FusionModel(FeatureFusion({branch: DIM}, CLASSES), {branch: encoder})


def train_encoder(
    branch: str, data: Examples, seed: int, *, augmented: bool = True, config: TrainingConfig = ENCODER
) -> FusionModel:
    """Train one branch's encoder with a linear head of its own on the rows where it is present."""
    torch.manual_seed(seed)
    model = untrained_encoder(branch)
    own = data.rows(data.present[:, data.branches.index(branch)]).select([branch])
    change = augment.per_branch({branch: AUGMENT[branch]}) if augmented else None
    few = own.rows(torch.arange(min(len(own), 10)))  # the last epoch is kept, whatever these say
    fit(model, own, few, config.model_copy(update={"seed": seed}), augment=change)
    return model


@torch.no_grad()
def featured(encoders: Mapping[str, FusionModel], data: Examples) -> Examples:
    """Return the examples with the encoders' features in place of pictures and sounds."""
    features = {}
    for branch, model in encoders.items():
        model.eval()
        everywhere = torch.ones(len(data), 1, dtype=torch.bool)
        parts = torch.split(data.features[branch], 256)
        masks = torch.split(everywhere, 256)
        features[branch] = torch.cat(
            [model.encode({branch: x}, mask)[branch] for x, mask in zip(parts, masks, strict=True)]
        )
    return replace(data, features=dict(sorted(features.items())))


def split(data: Examples, seed: int) -> tuple[Examples, Examples]:
    """Keep 10 pairs per class for validation."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    held = torch.cat([order[data.labels[order] == digit][:VALIDATION_PER_CLASS] for digit in range(10)])
    mask = torch.zeros(len(data), dtype=torch.bool)
    mask[held] = True
    return data.rows(~mask), data.rows(mask)


def head_of(strategy: str) -> FeatureFusion | ModelFusion:
    """Return an untrained head by the name of its strategy."""
    dims = {"audio": DIM, "image": DIM}
    match strategy.split(" + "):
        case ["model-level head" | "model-level pool" as level, *rest]:
            return ModelFusion(
                dims,
                CLASSES,
                combine="head" if level.endswith("head") else "pool",
                modality_dropout=0.5 if rest else 0.0,
            )
        case ["gated token", *rest]:
            return FeatureFusion(dims, CLASSES, "gated", dropout=0.2, modality_dropout=0.5 if rest else 0.0)
        case ["drop rows"]:
            return FeatureFusion(dims, CLASSES, "mlp", dropout=0.2, missing="zero")
        case [missing, *rest]:
            name: Any = missing
            dropout = 0.5 if rest else 0.0
            return FeatureFusion(dims, CLASSES, "mlp", dropout=0.2, missing=name, modality_dropout=dropout)
    raise ValueError(strategy)


STRATEGIES: Final = (
    "drop rows",
    "drop",
    "zero",
    "mean",
    "predict",
    "token",
    "token + modality dropout",
    "predict + modality dropout",
    "gated token",
    "gated token + modality dropout",
    "model-level head",
    "model-level head + modality dropout",
    "model-level pool",
)


def train_head(strategy: str, train: Examples, validation: Examples, config: TrainingConfig) -> FusionModel:
    """Train one strategy on features."""
    torch.manual_seed(config.seed)
    model = FusionModel(head_of(strategy))
    if strategy == "drop rows":
        train, validation = (part.rows(part.present.all(dim=1)) for part in (train, validation))
    fit(model, train, validation, config)
    return model


def run(data: Path, out: Path, seeds: int) -> Figures:
    """Run settings A and B, noise, and imbalance; write `avmnist.json` and `.md`; return the figures."""
    figures = Figures()
    about: dict[str, Any] = {
        "data": "MNIST training part and FSDD; 1,050 / 450 pairs",
        "seeds": seeds,
        "encoder": ENCODER.model_dump(),
        "head": HEAD.model_dump(),
    }
    for part in (setting_b, setting_a, imbalance):
        for seed in range(seeds):
            part(figures, *load(data, seed), seed, out)
            figures.save(out, "avmnist", about)
            _LOG.info("%s, seed %d done", part.__name__, seed)
    return figures


def setting_b(figures: Figures, train_pairs: Pairs, test_pairs: Pairs, seed: int, out: Path) -> None:
    """Every strategy trained on complete pairs, tested on both, image alone, audio alone, and noise."""
    train, validation = split(train_pairs.examples(), seed)
    encoders = {branch: _encoder(out / "encoders", f"all-{seed}", branch, train, seed) for branch in INPUTS}
    parts = [featured(encoders, part) for part in (train, validation, test_pairs.examples())]
    noisy = {name: featured(encoders, data) for name, data in noises(test_pairs).items()}
    truth = test_pairs.labels.numpy()
    alone = {}
    for branch, model in encoders.items():
        p = probabilities(model, test_pairs.examples().select([branch]))
        alone[branch] = p
        figures.add("setting B", f"{branch} encoder alone", branch, metrics(truth, p).accuracy)
    best = max(alone.values(), key=lambda p: metrics(truth, p).accuracy)
    for strategy in STRATEGIES:
        model = train_head(strategy, parts[0], parts[1], HEAD.model_copy(update={"seed": seed}))
        _score_b(figures, strategy, model, parts[2], noisy, best)
        if strategy == "model-level pool":
            model.head.pool.temperature.fill_(1)  # type: ignore[operator, union-attr]
            model.head.pool.weight.fill_(1)  # type: ignore[operator, union-attr]
            _score_b(figures, "product of experts", model, parts[2], noisy, best)


def _score_b(
    figures: Figures,
    strategy: str,
    model: FusionModel,
    test: Examples,
    noisy: Mapping[str, Examples],
    best: Any,
) -> None:
    truth = test.labels.numpy()
    for column, kept in {"both": ("audio", "image"), "image": ("image",), "audio": ("audio",)}.items():
        p = probabilities(model, test.only(kept))
        scored = metrics(truth, p)
        figures.add("setting B", strategy, column, scored.accuracy)
        if column == "both":
            figures.add("setting B", strategy, "nll both", scored.nll)
            figures.add("setting B", strategy, "ece both", scored.ece)
            figures.add("setting B", strategy, "p against best alone", mcnemar(truth, p, best))
    for name, drop in shuffle_drops(model, test, INPUTS).items():
        figures.add("setting B", strategy, f"{name} shuffled", -drop)
    for name, data in noisy.items():
        accuracy = metrics(truth, probabilities(model, data)).accuracy
        figures.add("noise", strategy, name, accuracy)


def noises(pairs: Pairs) -> dict[str, Examples]:
    """Return the pairs under each disturbance."""
    generator = torch.Generator().manual_seed(0)
    images, waves = pairs.images, pairs.waveforms
    disturbed = {
        f"white {snr_db} dB": replace(
            pairs,
            waveforms=augment.with_noise(waves, torch.full((len(waves),), float(snr_db)), generator),
        )
        for snr_db in (20, 10, 5, 0, -5)
    }
    gaussian = (images + 0.5 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    disturbed |= {
        "gaussian 0.5": replace(pairs, images=gaussian),
        "blur 5x5": replace(pairs, images=F.avg_pool2d(images, 5, 1, 2)),
        "occlusion 0.5": replace(pairs, images=augment.occluded(images, generator, 0.5, 1.0)),
        "darkness 0.3": replace(pairs, images=images * 0.3),
    }
    return {name: item.examples() for name, item in disturbed.items()}


def setting_a(figures: Figures, train_pairs: Pairs, test_pairs: Pairs, seed: int, out: Path) -> None:
    """Sound kept for a share of the training pairs only; tested on pictures alone."""
    test = test_pairs.examples()
    truth = test.labels.numpy()
    for rate in SETTING_A_RATES:
        train, validation = split(_thinned(train_pairs.examples(), rate, seed), seed)
        column = f"{rate:.0%}"
        encoders = {
            "image": _encoder(out / "encoders", f"all-{seed}", "image", train, seed),
            "audio": _encoder(out / "encoders", f"audio-{column}-{seed}", "audio", train, seed),
        }
        alone = metrics(truth, probabilities(encoders["image"], test.select(["image"])))
        figures.add("setting A, image only", "image encoder alone", column, alone.accuracy)
        parts = [featured(encoders, part) for part in (train, validation, test)]
        for strategy in STRATEGIES:
            model = train_head(strategy, parts[0], parts[1], HEAD.model_copy(update={"seed": seed}))
            p = probabilities(model, parts[2].only(["image"]))
            figures.add("setting A, image only", strategy, column, metrics(truth, p).accuracy)


def _thinned(data: Examples, rate: float, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    present = data.present.clone()
    for digit in range(10):
        rows = torch.nonzero(data.labels == digit).squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        present[rows[max(1, round(rate * len(rows))) :], data.branches.index("audio")] = False
    return replace(data, present=present)


def imbalance(figures: Figures, train_pairs: Pairs, test_pairs: Pairs, seed: int, out: Path) -> None:
    """Exponential imbalance of the training part; every remedy's macro recall on the even test part."""
    truth = test_pairs.labels.numpy()
    for ratio in (10, 50):
        generator = torch.Generator().manual_seed(seed)
        train, validation = split(train_pairs.examples(), seed)
        train = train.rows(long_tail(train.labels, 10, ratio, generator))
        validation = validation.rows(long_tail(validation.labels, 10, min(ratio, 10), generator))
        for remedy in REMEDIES:
            chosen = Imbalance(remedy=remedy)
            encoders = {
                branch: _encoder(out / "encoders", f"1to{ratio}-{remedy}-{seed}", branch, train, seed, chosen)
                for branch in INPUTS
            }
            parts = [featured(encoders, part) for part in (train, validation, test_pairs.examples())]
            config = HEAD.model_copy(update={"seed": seed, "imbalance": chosen, "select": "balanced-nll"})
            model = train_head("token + modality dropout", parts[0], parts[1], config)
            for column, kept in {"both": ["audio", "image"], "image": ["image"], "audio": ["audio"]}.items():
                scored = metrics(truth, probabilities(model, parts[2].only(kept)))
                figures.add(f"imbalance 1:{ratio}, macro recall", remedy, column, scored.macro_recall)
                figures.add(f"imbalance 1:{ratio}, macro F1", remedy, column, scored.macro_f1)


def _encoder(
    folder: Path, key: str, branch: str, train: Examples, seed: int, remedy: Imbalance | None = None
) -> FusionModel:
    """Train an encoder, or load it if an earlier run has trained it."""
    from safetensors.torch import load_file, save_file

    file = folder / f"{key}-{branch}.safetensors"
    if file.exists():
        model = untrained_encoder(branch)
        model.load_state_dict(load_file(file))
        return model.eval()
    config = ENCODER if remedy is None else ENCODER.model_copy(update={"imbalance": remedy})
    model = train_encoder(branch, train, seed, config=config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    _LOG.info("trained %s", file.stem)
    return model
