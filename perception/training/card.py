"""A trained head as a folder: weights, configuration, plan, model card, reports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from perception.errors import SessionError
from perception.io.beside import refuse_existing
from perception.models.checkpoint import ENCODERS, config_hash, head_hash
from perception.models.head_config import HEAD_WEIGHTS
from perception.profile import FusionConfig
from perception.training.examples import Examples
from perception.training.heads import Split
from perception.training.model import FusionModel

PLAN_FILE: Final = "plan.json"
"""File in a checkpoint: the plan of the training, with every default."""
EVALUATION: Final = "evaluation"
"""Folder in a checkpoint: the latest report of an evaluation with other sessions."""
REPORT: Final = ("report.json", "report.html")
_WRITTEN: Final = {"config.json", HEAD_WEIGHTS, "README.md", ENCODERS, PLAN_FILE, EVALUATION, *REPORT}


def refuse_unlike_head(out: Path) -> None:
    """Raise SessionError if `out` exists and is not a checkpoint that training wrote and may replace."""
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
`perception.models.load_head("{folder}")`. It needs the encoders that it was trained with;
those in the folder `encoders`, if it exists, were trained with the head.

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
    """Write a checkpoint folder: weights, configuration, plan, model card; `place` is its final path."""
    head = model.head
    head.save_pretrained(folder)
    (folder / PLAN_FILE).write_text(json.dumps(report["training"], indent=2) + "\n", encoding="utf-8")
    branches = "\n".join(f"| {name} | {dim} | {inputs[name]} |" for name, dim in head.dims.items())
    figures = "\n".join(
        f"| {name} | {m['accuracy']:.3f} | {m['macro_f1']:.3f} | {m['nll']:.3f} | {m['ece']:.3f} |"
        for name, m in report["subsets"].items()
    )
    rows, sources = len(parts.test.labelled), _count_sources(parts.test)
    tested = f"tested once on {rows} windows of {sources}; no source is in two of these."
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
        train=len(parts.train.labelled),
        train_sources=_count_sources(parts.train),
        validation=len(parts.validation.labelled),
        validation_sources=_count_sources(parts.validation),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _count_sources(part: Examples) -> int:
    return len(set(part.sources.tolist()))


def encoders_config_hash(fusion: FusionConfig) -> str:
    """Return the hash of the configuration that a head depends on: windows and encoders."""
    return config_hash(json.loads(fusion.model_dump_json(include={"hop_ms", "inputs", "encoders", "seed"})))
