"""Loads weights from torchvision, the Hub, a local folder or file, or a seeded generator.

Nothing is unpickled: safetensors, or `torch.load(weights_only=True)`. Weights missing while offline raise
one WeightsError: what is missing, where it was searched, and what to do.
"""

import hashlib
import os
import re
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from perception.errors import WeightsError, first_line
from perception.io.home import home
from perception.models.head_config import source_of as source_of

OFFLINE_TIMEOUT_S: Final = 5.0
HUB_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model")
State = dict[str, torch.Tensor]
_OPTIONAL: Final = "num_batches_tracked"
"""A counter of batch normalisation that older files lack and inference does not read."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set the seed of torch's CPU generator inside; its state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def local_state(path: Path) -> State:
    """Read a state dict from a `.safetensors`, `.pth` or `.pt` file, or a folder's `model.safetensors`."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{file}: no such weights file; give a .safetensors or .pth file or its folder")
    try:
        loaded: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise WeightsError(f"{file}: not a safetensors file ({error}); fetch or save it again") from error
    except Exception as error:  # the unpickler of torch raises errors of many types
        raise WeightsError(
            f"{file}: refused: only plain tensors are loaded, nothing is unpickled; save it as .safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(f"{file}: no state dict of tensors; save model.state_dict() as .safetensors")
    return loaded


def load_into(module: nn.Module, state: Mapping[str, torch.Tensor], where: object) -> None:
    """Load all weights; raise WeightsError, which names them, if some are missing, unknown or do not fit."""
    own = module.state_dict()
    problems = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if not problems:
        versioned = OrderedDict(state)
        # some layers read a layout version, which safetensors does not store
        versioned._metadata = getattr(state, "_metadata", getattr(own, "_metadata", None))  # type: ignore[attr-defined]
        result = module.load_state_dict(versioned, strict=False)
        problems = [
            *(f"{name} is missing" for name in result.missing_keys if not name.endswith(_OPTIONAL)),
            *(f"{name} is unknown" for name in result.unexpected_keys),
        ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        kind = type(module).__name__
        raise WeightsError(f"{where}: not the weights of this {kind}: {', '.join(problems[:3])}{more}")


def load_transformer(folder: Path, seed: int, *, pooler: bool = False) -> Any:
    """Load the base model of a transformers folder in float32, on the CPU.

    Args:
        folder: with `config.json` and weights.
        seed: of weights that the checkpoint lacks.
        pooler: whether the pooling layer has to be in the checkpoint; nothing else may be missing.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no transformers model there; expected config.json and its weights")
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing weights in its report are checked below
    try:
        with seeded(seed):
            model, report = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # each architecture raises errors of other types
        text = f"{folder}: cannot be loaded as a transformers model: {first_line(error)}"
        raise WeightsError(text) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(name for name in report["missing_keys"] if pooler or "pooler" not in name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WeightsError(f"{folder}: weights are missing: {', '.join(missing[:3])}{more}")
    return model


def save_transformer(folder: Path, model: Any, preprocessing: Any) -> None:
    """Write a folder for `load_transformer`, with the tokenizer or the processor."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    preprocessing.save_pretrained(folder)


def url_state(url: str, cache: Path | None = None) -> State:
    """Fetch a torchvision weight once, with progress, and check its hash each time it is read.

    The file name contains the first digits of the sha256 (`resnet18-f37072fd.pth`); a cached file that
    does not match it is refused.
    """
    if cache is None:
        _check_home(url, "TORCH_HOME")
    file = (cache or Path(torch.hub.get_dir()) / "checkpoints") / url.rpartition("/")[2]
    prefix = _hash_prefix(file)
    if not file.is_file():
        _fetch(url, file, prefix)
    elif prefix and not _sha256(file).startswith(prefix):
        raise WeightsError(f"{file}: its content does not match its hash; delete it and start again")
    return local_state(file)


def hub_folder(
    repository: str,
    revision: str | None = None,
    *,
    cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the local folder of a Hub repository; download it unless it is complete in the cache."""
    if cache is None:
        _check_home(repository, "HF_HOME", "HF_HUB_CACHE")
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache,
        "endpoint": endpoint,
        "allow_patterns": list(HUB_FILES),
    }
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **options))
        if not _complete(folder):
            folder = Path(snapshot_download(repository, etag_timeout=OFFLINE_TIMEOUT_S, **options))
    except LocalEntryNotFoundError:
        folder = _download(repository, options)
    except HFValidationError as error:
        raise WeightsError(
            f"'{repository}' is neither a folder here nor a Hub name such as ORG/NAME"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise _unreachable(repository, error) from error
    if not _complete(folder):
        raise WeightsError(f"{repository}: has no config.json with .safetensors weights; convert it first")
    _check_blobs(folder)
    return folder


def _check_home(what: str, *variables: str) -> None:
    """Raise WeightsError if there is no folder to store downloaded weights in."""
    if home() is None and not any(map(os.environ.get, (*variables, "XDG_CACHE_HOME"))):
        raise WeightsError(
            f"{what}: this user has no home directory to keep it in; set HOME or {variables[0]}, "
            "or set weights to a local folder or 'random'"
        )


def _download(repository: str, options: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(repository, etag_timeout=OFFLINE_TIMEOUT_S, **options))
    except (OSError, HfHubHTTPError) as error:
        raise _unreachable(repository, error) from error


def _unreachable(repository: str, error: Exception) -> WeightsError:
    reason = first_line(error)[:160]
    return WeightsError(
        f"{repository}: not in the Hugging Face cache and not reachable ({reason}); go online once, "
        "or set weights to a local folder or 'random'"
    )


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_blobs(folder: Path) -> None:
    """Raise WeightsError unless each large file matches its name in the cache, its sha256."""
    for file in folder.glob("*.safetensors"):
        expected = file.resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", expected) and _sha256(file) != expected:
            raise WeightsError(f"{file}: its content does not match its hash; delete {file.resolve()}")


def _fetch(url: str, file: Path, prefix: str) -> None:
    try:
        # torch's own download has no time limit: check first that the server answers.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=OFFLINE_TIMEOUT_S).close()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), prefix or None)
    except HTTPError as error:
        raise WeightsError(f"{url}: the server answers {error.code} {error.reason}") from error
    except RuntimeError as error:
        raise WeightsError(f"{url}: the download does not match its hash; try again") from error
    except PermissionError as error:
        raise WeightsError(
            f"{file.parent}: cannot be written; set HOME or TORCH_HOME to a folder that you own"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{file.name}: not in {file.parent} and {url} is not reachable; go online once, put the file "
            "there, or set weights to a local file or 'random'"
        ) from error


def _hash_prefix(file: Path) -> str:
    match = re.search(r"-([0-9a-f]{8,})\.", file.name)
    return match.group(1) if match else ""


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
