"""A user without a home directory, as in a container: one line where one is needed, nothing elsewhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

STRANGER = ("unshare", "--user", "--map-user=12345")
"""Runs a command under a user id that has no entry in passwd."""


def homeless(code: str, folder: Path, **more: str) -> str:
    """Return what Python prints for a user that has no home."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    environment |= {"PERCEPTION_RUNTIME_DIR": str(folder)} | more
    command = [*STRANGER, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("~*")) == [], "a folder of that name is no home"
    return done.stdout


@pytest.fixture(autouse=True, scope="module")
def _possible() -> None:
    try:
        subprocess.run([*STRANGER, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs user namespaces")


def printing(code: str) -> str:
    """Return code that prints the PerceptionError of other code."""
    return f"""
from perception.errors import PerceptionError
try:
    {code}
except PerceptionError as error:
    print(error.exit_code, error)
"""


def test_what_needs_no_home_does_without(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from perception.cli.doctor import check_home
from perception.io.home import expanded, home
from perception.models.head_config import source_of
print(home(), expanded("~/a"), source_of("~/a")[1])
print(check_home().level, check_home().detail)
"""
    assert homeless(code, tmp_path) == "None ~/a ~/a\nwarn this user has no home directory\n"


FEATURES: Final = "kept_in(CACHE, '--cache')"
GIVEN: Final = "kept_in('/tmp/x', '--cache')"
FETCHES: Final = [
    ("hub_folder('google-bert/bert-base-uncased')", "HF_HOME"),
    ("url_state('http://127.0.0.1:9/resnet18-f37072fd.pth')", "TORCH_HOME"),
]
"""Functions that download weights, and the variable that names their folder."""
IMPORTS: Final = """
from perception.io.home import kept_in
from perception.models.weights import hub_folder, url_state
from perception.training.plan import CACHE
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """What each call prints, without the variables and with them: all in two processes, which load torch."""
    folder = tmp_path_factory.mktemp("home")
    calls = [FEATURES, GIVEN, *(call for call, _ in FETCHES)]
    code = IMPORTS + "print('---')".join(map(printing, calls))
    kept = {variable: str(folder / "kept") for _, variable in FETCHES}
    outs = [homeless(code, folder, HF_HUB_OFFLINE="1", **more) for more in ({}, kept)]
    without, given = (dict(zip(calls, out.split("---\n"), strict=True)) for out in outs)
    return without, given


def test_features_need_a_place(printed: tuple[dict[str, str], dict[str, str]]) -> None:
    out, _ = printed
    assert out[FEATURES] == (
        "1 ~/.cache/perception/features: this user has no home directory; set HOME, or give --cache\n"
    )
    assert out[GIVEN] == ""


@pytest.mark.parametrize(("call", "variable"), FETCHES)
def test_weights_that_are_fetched_need_a_place(
    printed: tuple[dict[str, str], dict[str, str]], call: str, variable: str
) -> None:
    out, given = (prints[call] for prints in printed)
    assert out.startswith("4 ")
    assert f"this user has no home directory to keep it in; set HOME or {variable}" in out
    assert out.count("\n") == 1
    assert given.startswith("4 ")
    assert "no home directory" not in given
