"""What is installed is what is in the tree."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BY_ITSELF = {".py", ".pyc", ".typed"}  # what setuptools takes along unasked
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
