"""A profile is checked as a whole before anything starts: errors are reported in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import torchvision

from perception.cli.doctor import check_profile
from perception.cli.main import run
from perception.errors import BusError, DeviceError, PerceptionError, ProfileError, SessionError, WeightsError
from perception.graph.check import check, require
from perception.models.options import KINDS, MarkerOptions, torchvision_classifiers
from perception.models.registry import encoder_class
from perception.profile import Profile, load, parse
from perception.session.file.writer import SessionWriter
from tests.streams import camera_stream, text

SCRIPTED: dict[str, Any] = {"source": "scripted"}
DEVICES: dict[str, Any] = {"camera": {"front": SCRIPTED}, "microphone": {"main": SCRIPTED}}
MOTION = {"input": "camera", "kind": "motion"}
TWO_CLASSES = {"weights": "random", "classes": ["a", "b"]}


def fused(**changes: Any) -> dict[str, Any]:
    """A camera, and a fusion of it."""
    inputs = {"camera": {"topic": "camera/front"}}
    fusion = {"inputs": inputs, "encoders": {"motion": MOTION}, "head": TWO_CLASSES} | changes
    return {"camera": {"front": SCRIPTED}, "fusion": fusion}


def encoder(**fields: Any) -> dict[str, Any]:
    return fused(encoders={"net": MOTION | fields})


def refusal(sections: dict[str, Any], kind: type[PerceptionError]) -> str:
    """Return the one line in which a profile is refused."""
    with pytest.raises(kind) as caught:
        require(parse(sections, where="test"), "robot.toml")
    assert type(caught.value) is kind
    assert str(caught.value).startswith("robot.toml: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def warnings(sections: dict[str, Any], published: tuple[str, ...] = ()) -> list[str]:
    return require(parse(sections, where="test"), "robot.toml", published)


def recording(file: Path, *topics: str) -> str:
    with SessionWriter(file) as writer:
        for message in camera_stream(0.2):
            writer.write(message) if "camera/front" in topics else None
        if "text/say" in topics:
            writer.write(text(0, 1, "stop"))
    return str(file)


@pytest.mark.parametrize("name", ["demo", "laptop", "robot"])
def test_profiles_that_ship_are_whole(name: str) -> None:
    assert not [problem for problem in check(load(name)) if problem.error]


# --- inputs ---


def test_an_input_whose_camera_has_another_name_is_refused() -> None:
    renamed = fused() | {"camera": {"webcam": SCRIPTED, "rear": SCRIPTED}}
    error = refusal(renamed, ProfileError)
    assert (
        "fusion.inputs.camera.topic: nobody publishes camera/front; there is camera/rear, camera/webcam"
        in error
    )


def test_an_input_that_may_come_from_elsewhere_is_a_warning() -> None:
    assert warnings({"fusion": fused()["fusion"]}) == [
        "robot.toml: fusion.inputs.camera.topic: nobody here publishes camera/front; "
        "it is absent until another program does"
    ]
    words = fused(inputs={"camera": {"topic": "camera/front"}, "text": {"topic": "text/operator"}})
    words |= {"text": {"console": SCRIPTED}}
    assert any("text/operator; it is absent until perception say does" in one for one in warnings(words))


def test_an_input_that_comes_from_another_host_or_program_is_none() -> None:
    other = fused() | {"camera": {"webcam": SCRIPTED}}
    for topic in ("camera/front", "camera/*", "camera/fr*", "*"):
        assert warnings(other | {"connect": {topic: "tcp://127.0.0.1:5601"}}) == []
    assert warnings(other, published=("camera/front",)) == []
    refusal(other | {"connect": {"camera/rear": "tcp://127.0.0.1:5601"}}, ProfileError)


def test_what_nobody_takes_is_a_warning() -> None:
    unread = fused(inputs={"camera": {"topic": "camera/front"}, "ear": {"topic": "microphone/main"}})
    assert any("fusion.inputs.ear: no encoder reads it" in one for one in warnings(unread))
    remote = fused() | {"connect": {"text/*": "tcp://127.0.0.1:5601"}}
    assert any('connect."text/*": no input' in one for one in warnings(remote))
    assert warnings(remote | {"record": True}) == []


def test_inputs_are_looked_for_in_the_session_that_is_replayed(tmp_path: Path) -> None:
    replay = {"file": recording(tmp_path / "kitchen.mcap", "camera/front", "text/say")}
    fusion = fused()["fusion"]
    assert warnings({"replay": replay, "fusion": fusion}) == []
    renamed = fused(inputs={"camera": {"topic": "camera/rear"}})["fusion"]
    error = refusal({"replay": replay, "fusion": renamed}, ProfileError)
    assert "nobody publishes camera/rear; there is camera/front" in error
    blind = {"replay": replay | {"topics": ["text/*"]}, "fusion": fusion}
    assert any("the session has no camera/front" in one for one in warnings(blind))


def test_of_a_recording_that_was_cut_off_nothing_is_refused_beforehand(tmp_path: Path) -> None:
    whole = Path(recording(tmp_path / "kitchen.mcap", "camera/front"))
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole.read_bytes()[:-200])
    assert warnings({"replay": {"file": str(cut)}, "fusion": fused()["fusion"]}) == []


def test_a_session_that_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    refusal({"replay": {"file": str(tmp_path / "none.mcap")}}, SessionError)
    assert "it is a folder" in refusal({"replay": {"file": str(tmp_path)}}, SessionError)
    (tmp_path / "noise.mcap").write_bytes(b"no session" * 99)
    refusal({"replay": {"file": str(tmp_path / "noise.mcap")}}, SessionError)
    file = recording(tmp_path / "kitchen.mcap", "camera/front")
    error = refusal({"replay": {"file": file, "topics": ["microphone/*"]}}, SessionError)
    assert "which holds camera/front" in error
    refusal({"replay": {"file": file, "start_s": 3, "end_s": 2}}, ProfileError)
    twice = refusal({"replay": {"file": file}, "camera": {"front": SCRIPTED}}, ProfileError)
    assert "camera/front would be published twice" in twice


# --- sources, endpoints, keys, recording ---


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("camera", "videos/room.mp4"),
        ("camera", "USB camera"),
        ("camera", "./"),
        ("microphone", "speech.wav"),
        ("text", "lines.txt"),
        ("text", "scriptd"),
    ],
)
def test_a_file_that_is_not_there_is_refused(kind: str, source: str) -> None:
    assert f"{kind}.a.source: " in refusal({kind: {"a": {"source": source}}}, DeviceError)


@pytest.mark.parametrize(
    "source",
    ["http://", "rtsp://:554/live", "http://cam:99999/x", "http://[::1/x", "http://cam:0/", "file:///a.mp4"],
)
def test_an_address_that_no_camera_can_have_is_refused(source: str) -> None:
    assert f"camera.a.source: {source}: " in refusal({"camera": {"a": {"source": source}}}, DeviceError)


def test_addresses_that_are_listened_at_are_left_to_their_nodes() -> None:
    assert warnings({"camera": {"a": {"source": "udp://:5000"}, "b": {"source": "rtp://@:5004"}}}) == []


def test_a_microphone_has_no_address() -> None:
    error = refusal({"microphone": {"a": {"source": "http://cam/live.wav"}}}, DeviceError)
    assert "a device or a file, not an address" in error


@pytest.mark.parametrize("name", ["x" * 300, "a\0"], ids=["long", "zero"])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    named: list[dict[str, Any]] = [
        {kind: {"a": {"source": f"./{name}.wav"}}} for kind in ("camera", "microphone", "text")
    ]
    for sections in (*named, {"replay": {"file": name}}, fused(head=name), encoder(weights=name)):
        with pytest.raises(PerceptionError) as caught:
            require(parse(sections, where="robot.toml"), "robot.toml")
        assert str(caught.value).startswith("robot.toml: ")
        assert "\n" not in str(caught.value)


def test_a_file_that_is_there_and_devices_are_left_to_their_nodes(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.touch()
    sources = {"film": {"source": str(film)}, "web": {"source": 7}, "usb": {"source": "/dev/v4l/by-id/usb"}}
    assert warnings({"camera": sources, "microphone": {"desk": {"source": "USB Audio v1.2 Mic"}}}) == []


@pytest.mark.parametrize("kind", ["camera", "microphone"])
def test_a_pipe_is_no_film(tmp_path: Path, kind: str) -> None:
    os.mkfifo(path := tmp_path / "film.mp4")
    error = refusal({kind: {"x": {"source": str(path)}}}, DeviceError)
    assert f"{kind}.x.source: {path}: is a pipe or a device, not a file that can be played" in error


def test_a_pipe_of_lines_may_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lines")
    assert warnings({"text": {"a": {"source": str(tmp_path / "lines")}}}) == []


def test_endpoints_are_safe_and_differ(tmp_path: Path) -> None:
    wide = fused(endpoint="tcp://0.0.0.0:5600")
    assert "fusion.endpoint: tcp://0.0.0.0:5600 leaves this host unencrypted" in refusal(wide, BusError)
    assert warnings(wide | {"insecure": True}) == []
    refusal(fused() | {"connect": {"camera/rear": "tcp://192.0.2.1:5600"}}, BusError)
    assert "keys: no keys in" in refusal(wide | {"keys": str(tmp_path)}, BusError)
    here = {"source": "scripted", "endpoint": "tcp://127.0.0.1:5601"}
    twice = refusal({"camera": {"a": here, "b": here}}, BusError)
    assert "camera.b.endpoint: tcp://127.0.0.1:5601 is taken by camera.a.endpoint" in twice
    free = {"source": "scripted", "endpoint": "tcp://127.0.0.1:*"}
    assert warnings({"camera": {"a": free, "b": free}}) == []


def test_a_recording_needs_a_folder(tmp_path: Path) -> None:
    recorder = {"out": str(tmp_path / "none" / "x.mcap")}
    assert "recorder.out: " in refusal({"camera": {"a": SCRIPTED}, "recorder": recorder}, SessionError)


def test_a_recording_needs_the_name_of_a_file(tmp_path: Path) -> None:
    for out, says in ((str(tmp_path), "is a folder"), ("/dev/null", "is no file"), ("x" * 300, "too long")):
        error = refusal({"camera": {"a": SCRIPTED}, "recorder": {"out": out}}, SessionError)
        assert "recorder.out: " in error
        assert says in error
    with pytest.raises(ProfileError, match=r"recorder\.out: "):
        parse({"recorder": {"out": "a\0.mcap"}}, where="test")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"weights": ""}, "weights"),
        ({"head": ""}, "head.weights"),
        ({"head": {"classes": ["a", ""]}}, "head.classes.1"),
        ({"encoders": {"": MOTION}}, r'encoders.""'),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_values_that_name_nothing_or_fit_no_model_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ProfileError, match=rf"test: fusion\.{re.escape(key)}: "):
        parse(fused(**changes), where="test")


def test_messages_that_nobody_would_take_are_refused() -> None:
    raw = SCRIPTED | {"width": 8192, "height": 4096, "encoding": "bgr8"}
    assert "camera.a: its messages would be 96 MiB" in refusal({"camera": {"a": raw}}, ProfileError)
    assert warnings({"camera": {"a": raw | {"encoding": "jpeg"}}}) == []
    loud = SCRIPTED | {"rate_hz": 768_000, "channels": 32, "block_ms": 200, "format": "f32"}
    assert "microphone.a: its messages" in refusal({"microphone": {"a": loud}}, ProfileError)


# --- models ---


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            encoder(kind="resnet18"),
            "fusion.encoders.net.kind: 'resnet18' is no kind of encoder; .*'torchvision'",
        ),
        (
            encoder(kind="faces", options={"scael": 2}),
            r"fusion\.encoders\.net\.options\.scael: no such option",
        ),
        (
            encoder(kind="torchvision", options={"model": "resnet81"}),
            "no such classifier; did you mean .*resnet18",
        ),
        (encoder(kind="aruco", options={"dictionary": "DICT_9"}), r"options\.dictionary: no such dictionary"),
        (encoder(kind="cnn-image", options={"widths": [0]}, weights="random"), r"options\.widths\.0: "),
        (encoder(kind="mfcc"), "fusion.encoders.net: 'mfcc' takes microphone, not camera/front"),
        (fused(encoders={}), "fusion.encoders: a fusion needs at least one encoder"),
        (fused(head={"classes": ["a"]}), "fusion.head.classes: a random head needs at least two classes"),
        (fused(head={"classes": ["a", "b", "a"]}), "fusion.head.classes: a: given more than once"),
        (fused(head="pretrained"), "fusion.head.weights: give a checkpoint folder"),
        (
            fused(head="demo_head"),
            "fusion.head does not fit fusion.encoders: it was trained with encoder 'faces'",
        ),
    ],
)
def test_models_that_cannot_be_built_are_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        require(parse(sections, where="test"), "robot.toml")


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    assert "net.weights: " in refusal(encoder(kind="torchvision", weights="nowhere.pth"), WeightsError)
    refusal(fused(head="nowhere"), WeightsError)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "feature", "dims": {"motion": 4}}))
    assert "holds no model.safetensors" in refusal(fused(head=str(tmp_path)), WeightsError)


def test_a_head_trained_on_other_features_is_refused() -> None:
    demo = load("demo").model_dump(mode="json")
    demo["fusion"]["encoders"]["mfcc"]["options"] = {"coefficients": 12}
    error = refusal(demo, ProfileError)
    assert "encoder 'mfcc' gives 72 features, it was trained with 120" in error


def test_all_that_is_wrong_is_said_at_once() -> None:
    sections = fused(head={"classes": ["a"]}, encoders={"net": MOTION | {"kind": "mation"}})
    error = refusal(sections | {"camera": {"webcam": SCRIPTED}}, ProfileError)
    assert all(
        key in error for key in ("fusion.inputs.camera", "fusion.encoders.net.kind", "fusion.head.classes")
    )


# --- its facts about models, without loading them, are correct ---


@pytest.mark.parametrize("kind", KINDS)
def test_options_without_torch_are_those_of_the_encoder(kind: str) -> None:
    found = encoder_class(kind)
    assert found.Options is KINDS[kind]
    assert found.modality == KINDS[kind].modality


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        *((kind, {}) for kind in ("faces", "motion", "level", "silero", "aruco", "mfcc")),
        ("aruco", {"ids": [1, 2, 3]}),
        ("mfcc", {"coefficients": 3}),
        ("cnn-image", {"dim": 7}),
        ("cnn-sound", {"dim": 7}),
        ("tfidf", {"intents": {"stop": ["halt"], "go": ["move"]}}),
        ("tfidf", {"intents": {"stop": ["halt"], "other": ["hello"]}}),
    ],
)
def test_features_are_counted_as_the_encoder_counts_them(kind: str, given: dict[str, Any]) -> None:
    options = KINDS[kind].model_validate(given)
    built = encoder_class(kind)(options, device=torch.device("cpu"), seed=0, weights="random")
    assert options.features == built.dim


def test_names_read_from_torchvisions_source_are_those_it_registers() -> None:
    assert set(torchvision_classifiers()) == set(torchvision.models.list_models(module=torchvision.models))


def test_dictionaries_are_those_of_opencv() -> None:
    for name in (entry for entry in dir(cv2.aruco) if entry.startswith("DICT_")):
        assert MarkerOptions(dictionary=name).dictionary == name


def test_it_imports_no_model_package() -> None:
    code = (
        "import sys; from perception.graph.check import require; from perception.profile import load; "
        "require(load('demo'), 'demo'); "
        "print(sorted({'torch', 'torchvision', 'transformers', 'cv2', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- commands use it ---


RENAMED = "domain = 'check'\n[camera.webcam]\nsource = 'scripted'\n[fusion]\nbase = 'demo'\n"


@pytest.mark.parametrize("command", ["up", "record"])
def test_commands_refuse_before_they_start_anything(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RENAMED)
    out = ["--out", str(tmp_path / "x.mcap")] if command == "record" else []
    assert run([command, str(file), *out]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith(f"perception: {file}: fusion.inputs.camera.topic: nobody publishes camera/front")
    assert errors.count("\n") == 1
    assert not (tmp_path / "x.mcap").exists()


def test_the_doctor_says_the_same(tmp_path: Path) -> None:
    renamed = parse({"camera": {"webcam": SCRIPTED}, "fusion": fused()["fusion"]}, where="test")
    (finding,) = check_profile(renamed, "mine")
    assert (finding.level, finding.check) == ("fail", "profile")
    assert "there is camera/webcam" in finding.detail
    assert [finding.level for finding in check_profile(Profile(), "mine")] == ["ok"]
