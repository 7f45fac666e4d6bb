"""Profiles: what ships is valid, one fusion can be taken over by another, errors name file and key."""

from pathlib import Path

import pytest

from perception.errors import ProfileError
from perception.profile import LAUNCH_DIR, load

SHIPPED = sorted(file.stem for file in LAUNCH_DIR.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_is_valid(name: str) -> None:
    assert load(name).fusion is not None


def test_a_fusion_begins_with_that_of_its_base_and_changes_what_it_says() -> None:
    demo, laptop = load("demo").fusion, load("laptop").fusion
    assert demo is not None
    markers = demo.encoders["markers"].model_copy(update={"options": {"width": 640}})
    changed = {"lateness_ms": 150.0, "encoders": demo.encoders | {"markers": markers}}
    assert laptop == demo.model_copy(update=changed)


def test_a_change_inside_a_table_leaves_its_other_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[fusion]\nbase = "demo"\n[fusion.encoders.faces]\noptions = { min_size = 0.3 }\n')
    fusion, demo = load(str(file)).fusion, load("demo").fusion
    assert fusion is not None
    assert demo is not None
    assert fusion.encoders["faces"].options == demo.encoders["faces"].options | {"min_size": 0.3}
    assert fusion.encoders["faces"].kind == "faces"
    assert fusion.inputs == demo.inputs


def test_a_trained_head_is_named_by_its_folder_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for text in ('base = "demo"\nhead = "mine"\n', 'base = "demo"\nhead = { weights = "mine" }\n'):
        file.write_text(f"[fusion]\n{text}")
        fusion = load(str(file)).fusion
        assert fusion is not None
        assert fusion.head.weights == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[fusion]\nbase = 'nosuch'\n", "'nosuch' is no profile"),
        ("[camera.front]\nsource = 0\nwidht = 3\n", r"camera\.front\.widht: no such key"),
        ("[camera.front]\nsource = 0\nwidth = 'x'\n", r"camera\.front\.width: .*integer"),
        ("[camera", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ProfileError, match=says) as caught:
        load(str(file))
    assert "\n" not in str(caught.value)


def test_a_profile_is_not_its_own_base(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.write_text(f"[fusion]\nbase = '{file}'\n")
    with pytest.raises(ProfileError, match="cannot be its own base"):
        load(str(file))


def test_an_override_is_toml_or_else_a_plain_string() -> None:
    profile = load("demo", ("camera.front.rate_hz=5", "camera.front.source=cam.mp4"))
    assert (profile.camera["front"].rate_hz, profile.camera["front"].source) == (5.0, "cam.mp4")
