"""What is installed is what is in the tree."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from perception.cli.guide import guide, pages
from perception.errors import DISTRIBUTION, PerceptionError
from perception.session.recompute import perturb as recompute_perturb

ROOT = Path(__file__).resolve().parent.parent
BY_ITSELF = {".py", ".pyc", ".typed"}  # what setuptools takes along unasked
MADE = {"before.json", "keys/trust.toml"}  # by a command of the text
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_folder_is_listed() -> None:
    folders = {file.parent for file in (ROOT / "perception").rglob("__init__.py")}
    in_tree = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    mapped = set(SETTINGS["tool"]["setuptools"]["package-dir"])
    assert mapped == {"perception.nodes", "perception.launch"}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == in_tree | mapped


def test_every_file_that_is_no_code_is_package_data() -> None:
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]
    folders = SETTINGS["tool"]["setuptools"]["package-dir"]
    for package in SETTINGS["tool"]["setuptools"]["packages"]:
        folder = ROOT / folders.get(package, package.replace(".", "/"))
        covered = {file for pattern in patterns.get(package, ()) for file in folder.glob(pattern)}
        inside = folder.rglob("*") if package == "perception.launch" else folder.glob("*")
        data = {file for file in inside if file.is_file() and file.suffix not in BY_ITSELF}
        assert data <= covered, package


def test_profiles_that_ship_hold_no_code() -> None:
    assert list((ROOT / "launch").rglob("*.py")) == []


def test_the_name_it_is_installed_by_is_its_own() -> None:
    """`perception` on the package index is another project's: nobody may be sent there."""
    assert SETTINGS["project"]["name"] == DISTRIBUTION == "perception-node"
    files = [ROOT / "README.md", ROOT / "pyproject.toml", *(ROOT / "perception").rglob("*.py")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "perception[" not in text, file
        assert "pip install perception\n" not in text, file


def test_the_version_stands_in_one_place_and_its_changes_are_listed_first() -> None:
    versions = [line[3:] for line in pages()["changes"].splitlines() if line.startswith("## ")]
    assert versions[0] == SETTINGS["project"]["version"]
    assert versions == sorted(versions, reverse=True)


# --- the documentation ---


def test_the_guide_names_every_folder_of_the_package() -> None:
    tree = pages()["architecture"].partition("## The tree")[2].partition("\n## ")[0]
    folders = {path.parent.name for path in (ROOT / "perception").glob("*/__init__.py")}
    assert {name for name in folders if f"{name}/" not in tree} == set()


@pytest.mark.parametrize("page", [*pages(), "contributing"])
def test_files_and_modules_that_the_documentation_names_are_there(page: str) -> None:
    text = pages().get(page) or (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|toml|md))`", text))
    places = (ROOT, ROOT / "perception")
    assert {name for name in named if not any((place / name).exists() for place in places)} - MADE == set()


def test_the_guide_is_a_command() -> None:
    listed, shown = CliRunner().invoke(guide), CliRunner().invoke(guide, ["architecture"])
    assert {line.split()[0] for line in listed.output.splitlines()} == set(pages())
    assert shown.output == pages()["architecture"]
    with pytest.raises(PerceptionError, match="no page 'nothing' in the guide; there are: architecture"):
        CliRunner().invoke(guide, ["nothing"], standalone_mode=False, catch_exceptions=False)


def test_names_of_earlier_versions_still_import() -> None:
    from perception.session import perturb, testing
    from perception.session.recompute import pytest_plugin

    assert perturb.delay is recompute_perturb.delay
    assert testing.pytest_addoption is pytest_plugin.pytest_addoption


# --- the wheel, outside the checkout ---


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """An environment that was empty but for the wheel and what it requires: the folder of its programs.

    It lies beside uv's cache, so that packages are linked, not copied.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")

    def run(*arguments: str | Path) -> str:
        command = [uv, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    cache = Path(run("cache", "dir").strip())
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix="perception-wheel-") as folder:
        environment = Path(folder) / "environment"
        run(
            "build", "--out-dir", folder, ROOT
        )  # by way of the sdist: nothing stale of a build folder is in it
        (wheel,) = Path(folder).glob("perception_node-*.whl")
        run("venv", "--python", sys.executable, environment)
        newest = SETTINGS["tool"]["uv"]["exclude-newer"]
        run("pip", "install", "--python", environment / "bin/python", "--exclude-newer", newest, wheel)
        yield environment / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a program is given that runs in an empty folder, knowing nothing of the checkout."""
    with tempfile.TemporaryDirectory(prefix="run") as runtime:  # a short path: sockets lie in it
        left_out = ("PYTHON", "VIRTUAL_ENV", "PERCEPTION", "UV", "PYTEST")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        yield kept | {"PERCEPTION_RUNTIME_DIR": runtime, "PWD": str(tmp_path)}


def test_the_demo_runs_from_a_wheel_in_an_empty_folder(
    installed: Path, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    command: list[str | Path] = [
        installed / "perception",
        "up",
        "demo",
        "--seconds",
        "1",
        "--json",
        "summary.json",
    ]
    ended = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert sorted(os.listdir(tmp_path)) == ["summary.json"]
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["ticks"]["published"] > 0


def test_what_is_imported_lies_in_the_wheel(
    installed: Path, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    code = "import perception.nodes, perception.profile as p; print(perception.nodes.__file__, p.LAUNCH_DIR)"
    command: list[str | Path] = [installed / "python", "-c", code]
    said = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True)
    module, launch = said.stdout.split()
    assert Path(module).is_relative_to(installed.parent)
    assert Path(launch).is_relative_to(installed.parent)
    names = {file.name for file in installed.parent.glob("lib/python*/site-packages/*") if file.is_dir()}
    assert not names & {"nodes", "launch", "tests"}  # one top-level name
