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
_MAX_BRANCHES: Final = 256
_MAX_CLASSES: Final = 65_536
_MAX_NAME: Final = 1024
_MAX_WIDTH: Final = 1_000_000
_MOST_TIMES: Final = 64  # the default of `hidden`, which not every head uses
_MOST_BYTES: Final = 64 << 20
_CONFIG_BYTES: Final = 64 << 20


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
        config = json.loads(read_text(path / "config.json", most_bytes=_CONFIG_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(
            f"{path}: no fusion head there; expected a folder with config.json and {HEAD_WEIGHTS}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path / 'config.json'}: unreadable: {error}") from error
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind not in HEAD_KINDS:
        kinds = ", ".join(HEAD_KINDS)
        raise WeightsError(
            f"{path}: no fusion head: kind is {kind!r} in config.json, expected one of {kinds}"
        )
    return dict(config)


def check_sizes(config: Mapping[str, Any], weights_bytes: int) -> None:
    """Raise ValueError if a head of this configuration would take far more memory than its weights file.

    Args:
        config: of `config.json`, which anybody may have written.
        weights_bytes: size of the file that is loaded into the head.
    """
    dims, classes = config.get("dims"), config.get("classes")
    if not isinstance(dims, dict) or len(dims) > _MAX_BRANCHES:
        raise ValueError(f"dims must name at most {_MAX_BRANCHES} encoders")
    if not isinstance(classes, list) or len(classes) > _MAX_CLASSES:
        raise ValueError(f"classes must be a list of at most {_MAX_CLASSES} names")
    if not all(isinstance(name, str) and len(name) <= _MAX_NAME for name in (*classes, *dims)):
        raise ValueError(f"names of classes and encoders are texts of at most {_MAX_NAME} characters")
    widths = [config.get(key, 0) for key in ("hidden", "gru", "pca", "ticks")]
    sizes = [*dims.values(), *widths]
    if not all(type(size) is int and 0 <= size <= _MAX_WIDTH for size in sizes):
        raise ValueError(f"dims and widths are whole numbers of at most {_MAX_WIDTH}")
    wanted = 4 * sum(dims.values()) * max(len(classes), *widths)
    if wanted > _MOST_TIMES * weights_bytes + _MOST_BYTES:
        raise ValueError(f"it would take {wanted >> 20} MiB, its weights have {weights_bytes >> 20}")


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
