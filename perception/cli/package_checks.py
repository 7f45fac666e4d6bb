"""Import each package in a process of its own, and explain its failure.

An installed package may be broken, and importing a broken one may end the process.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from perception.errors import DISTRIBUTION, INSTALL
from perception.io.progress import progress

_LIMIT_S: Final = 120.0
_REINSTALL: Final = (
    f"reinstall: uv sync --reinstall in a checkout, else pip install --force-reinstall {DISTRIBUTION}"
)
_TOGETHER: Final = "install torch, torchvision and torchaudio together, from one index: " + INSTALL
_RUN: Final = "import json; {code}; print(); print(json.dumps(facts))"

PROBES: Final[dict[str, str]] = {
    "torch": (
        "import torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
        "facts = {'version': torch.__version__, 'cuda': torch.version.cuda or '', "
        "'gpus': [torch.cuda.get_device_name(i) for i in range(n)]}"
    ),
    "torchvision": "import torchvision; from torchvision.ops import nms; facts = {}",
    "torchaudio": "import torchaudio; facts = {}",
    "transformers": "from transformers import BertModel; facts = {}",
    "cv2": (
        "import os, cv2; name = cv2.data.haarcascades + 'haarcascade_frontalface_default.xml'; "
        "assert not cv2.CascadeClassifier(name).empty(), 'no cascades'; facts = {}"
    ),
    "sounddevice": (
        "import sounddevice; found = [(i, d['name']) for i, d in enumerate(sounddevice.query_devices()) "
        "if d['max_input_channels'] > 0]; "
        "facts = {'inputs': [name for _, name in found], 'numbers': [number for number, _ in found]}"
    ),
}
"""Python code that imports a package, uses what this project needs of it, and sets `facts`."""

_CAUSES: Final[tuple[tuple[str, str, str, str], ...]] = (
    (
        "torchvision",
        r"operator torchvision::nms does not exist",
        "built for another torch: a CPU-only torch beside PyPI's torchvision does this",
        _TOGETHER,
    ),
    (
        "torchaudio",
        r"different CUDA versions|PyTorch has CUDA|libcudart|libtorch_cuda|undefined symbol|Could not load",
        "built for another torch or another CUDA",
        _TOGETHER,
    ),
    ("torch|torchvision", r"undefined symbol|libcud|libnv", "its CUDA libraries do not fit", _TOGETHER),
    (
        "transformers",
        r"Could not import module|torchvision::nms|torchaudio",
        "cannot load its models, because torch, torchvision or torchaudio is broken",
        "repair those first",
    ),
    (
        "cv2",
        r"CascadeClassifier|no cascades|has no attribute 'data'",
        "has no Haar cascades: version 5 dropped them",
        "install opencv-python>=4.12,<5",
    ),
    (
        "cv2",
        r"lib(GL|gthread|glib|xcb)[\w.-]*\.so",
        "lacks a system library",
        "apt-get install libgl1 libglib2.0-0 libxcb1",
    ),
    ("sounddevice", r"PortAudio library not found", "PortAudio is missing", "apt-get install libportaudio2"),
    (".*", r"_ARRAY_API|numpy\.core\.multiarray|NumPy 1\.x", "built for another NumPy", INSTALL),
    (".*", r"No module named", "a module is missing", INSTALL),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a package's import went; `problem` is empty if it works."""

    problem: str = ""
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def explain(package: str, text: str) -> tuple[str, str]:
    """Return what is wrong and what to do about an import that failed with `text` on stderr."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "no message"
    for packages, symptom, cause, advice in _CAUSES:
        if re.fullmatch(packages, package) and re.search(symptom, text):
            return f"{cause} ({last})", advice
    return last, _REINSTALL


def probe(package: str, code: str, limit_s: float = _LIMIT_S) -> Outcome:
    """Import one package in a process of its own."""
    command = (sys.executable, "-P", "-W", "ignore", "-c", _RUN.format(code=code))
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Outcome(f"import did not end within {limit_s:g} s", _REINSTALL)
    if done.returncode < 0:
        return Outcome(f"import ended with signal {-done.returncode}", "reinstall it; check the free memory")
    if done.returncode:
        return Outcome(*explain(package, done.stderr))
    return Outcome(facts=json.loads(done.stdout.splitlines()[-1]))


def probe_all(run: Callable[[str, str], Outcome] = probe, stream: TextIO | None = None) -> dict[str, Outcome]:
    """Import every package of `PROBES`, two at a time: each takes a core and up to 1 GB.

    Progress is shown on `stream`, by default stderr.
    """
    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(2) as pool, progress("importing packages", len(PROBES), stream=stream) as advance:
        for package, outcome in zip(PROBES, pool.map(run, PROBES, PROBES.values()), strict=True):
            outcomes[package] = outcome
            advance(note=package)
    return outcomes
