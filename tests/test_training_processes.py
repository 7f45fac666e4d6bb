"""Training shared out among processes: two real ones, started by torchrun, joined over gloo."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import fit_shares

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shares")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, "-m", "tests.fit_shares", folder], cwd=ROOT, check=True, timeout=240)
    return folder


@pytest.mark.parametrize("name", ["features", "encoder"])
def test_all_processes_end_with_the_same_model(out: Path, name: str) -> None:
    first, second = (load_file(out / f"{name}-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_processes_learn_what_one_does_and_it_goes_on_from_their_state(out: Path) -> None:
    found, expected = load_file(out / "features-0.safetensors"), fit_shares.fit_features()
    continued = fit_shares.fit_features(out / "fit.state")
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-5)
        assert torch.equal(continued[key], found[key])
