"""Facts about weights and heads without loading them: where they are stored, what they were trained on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from perception.errors import ProfileError, WeightsError
from perception.io.home import expanded
from perception.io.text_file import read_text
from perception.profile import LAUNCH_DIR, HeadConfig

HEAD_KINDS: Final = ("feature", "model")
HEAD_WEIGHTS: Final = "model.safetensors"


def source_of(weights: str | None) -> tuple[Literal["pretrained", "random", "local"], Path]:
    """Return the kind of a profile's `weights`, and their path if they are local."""
    if weights is None or weights == "pretrained":
        return "pretrained", Path()
    if weights == "random":
        return "random", Path()
    return "local", expanded(weights)


def head_folder(config: HeadConfig) -> str:
    """Return the absolute folder of a profile's head; empty for a random one."""
    source, path = source_of(config.weights)
    return str((path if os.path.exists(path) else LAUNCH_DIR / path).absolute()) if source == "local" else ""


def read_head_config(folder: Path | str) -> dict[str, Any]:
    """Return the `config.json` of a head checkpoint, its `kind` checked.

    Raises:
        WeightsError: there is no checkpoint, or it is not of a fusion head.
    """
    path = expanded(folder)
    try:
        config = json.loads(read_text(path / "config.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(
            f"{path}: no fusion head there; expected a folder with config.json and {HEAD_WEIGHTS}"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path / 'config.json'}: unreadable: {error}") from error
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind not in HEAD_KINDS:
        kinds = ", ".join(HEAD_KINDS)
        raise WeightsError(
            f"{path}: no fusion head: kind is {kind!r} in config.json, expected one of {kinds}"
        )
    return dict(config)


def check_random_head(config: HeadConfig) -> None:
    """Raise ProfileError unless a random head has two different classes or more."""
    if len(config.classes) < 2:
        raise ProfileError("fusion.head.classes: a random head needs at least two classes")
    if repeated := sorted({name for name in config.classes if config.classes.count(name) > 1}):
        raise ProfileError(f"fusion.head.classes: {', '.join(repeated)}: given more than once")


def misfits(trained: Mapping[str, int], features: Mapping[str, int | None]) -> list[str]:
    """Return how encoders differ from those that a head was trained on; empty if they do not.

    Args:
        trained: number of features by encoder of the head.
        features: likewise of the profile, None where unknown.
    """
    return [
        *(
            f"it was trained with encoder '{name}', which is missing"
            for name in trained
            if name not in features
        ),
        *(f"it was trained without encoder '{name}'" for name in sorted(features) if name not in trained),
        *(
            f"encoder '{name}' gives {features[name]} features, it was trained with {dim}"
            for name, dim in trained.items()
            if features.get(name) not in (None, dim)
        ),
    ]
