"""Profiles: shipped ones are valid, one fusion can extend another, errors name file and key."""

import re
from pathlib import Path

import pytest

from perception.errors import ProfileError
from perception.profile import LAUNCH_DIR, load, parse, source_kind

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
        ("[camera.a]\nsource = 0\nrate_hz = 1e-300\n", r"camera\.a\.rate_hz: "),
        ("[connect]\n'text/a' = 'tcp://-:5000'\n", r"connect\.\"text/a\": 'tcp://-:5000' is no endpoint"),
        (f"x = {'[' * 2000}", "nested too deeply"),
        (f"x = {'9' * 5000}", "not valid TOML"),
        (f"[fusion]\nbase = '{'x' * 300}.toml'\n", "no such profile file"),
        (f"[fusion]\nbase = '{'x' * 300}'\n", "is no profile"),
        ("[camera.'front left']\nsource = 0\n", r'camera\."front left": a name has .*letters'),
        ("[microphone.'k\u00fcche']\n", r'microphone\."k\u00fcche": a name has'),
        ("[text.'']\n", r'text\."": a name has 1 to 46'),
        (f"[camera.{'x' * 47}]\nsource = 0\n", r"camera\.x+: a name has 1 to 46"),
        (
            "[camera.a]\nsource = 0\n[camera.'a/b']\nsource = 0\n",
            "camera/a/b cannot be .* beside camera/a",
        ),
        (
            "[camera.a]\nsource = 0\nendpoint = 'tcp//127.0.0.1:5'\n",
            r"camera\.a\.endpoint: .*expected tcp://HOST",
        ),
        (
            "[microphone.a]\nendpoint = 'tcp://host:99999'\n",
            r"microphone\.a\.endpoint: .*is no endpoint",
        ),
        ("[text.a]\nendpoint = 'ipc:///tmp/x'\n", r"text\.a\.endpoint: .*is no endpoint"),
        ("[fusion]\nbase = 'demo'\nendpoint = '0.0.0.0:5600'\n", r"fusion\.endpoint: .*is no endpoint"),
        ("[fusion]\nbase = 'demo'\nname = 'a b'\n", r"fusion\.name: a name has"),
        ("[fusion]\nbase = 'demo'\nhop_ms = 1e-9\n", r"fusion\.hop_ms: .*greater than or equal to 1"),
        (
            "[fusion]\nbase='demo'\ninputs.camera.topic = 'camra/front'\n",
            "topic: 'camra/front' is not a topic",
        ),
        (
            "[fusion]\nbase='demo'\ninputs.camera.topic = 'camera/*'\n",
            "topic: only text topics may have",
        ),
        (
            "[fusion]\nbase='demo'\ninputs.camera.topic = 'label/truth'\n",
            "'label/truth' cannot be fused",
        ),
        ("[fusion]\nbase = 'demo'\nlateness_ms = 1e300\n", r"fusion\.lateness_ms: .*less than or equal to"),
        ("[camera.a]\nsource = -1\n", r"camera\.a\.source: .*greater than or equal to 0"),
        *(
            (f"[{kind}.a]\nsource = 'a\\0.mp4'\n".replace("'", '"').replace("\\0", "\\u0000"), says)
            for kind in ("camera", "microphone", "text")
            for says in [rf"{kind}\.a\.source: .*names of devices and files cannot contain a zero byte"]
        ),
        *(
            (f"[{kind}.a]\nsource = 99999999999999\n", rf"{kind}\.a\.source: .*less than or equal to 1023")
            for kind in ("camera", "microphone")
        ),
        ("[camera.a]\nsource = true\n", r"camera\.a\.source: cannot be true"),
        ("[microphone.a]\nsource = ''\n", r"microphone\.a\.source: .*at least 1 character"),
        ("[text.a]\nsource = 'scripted'\n[text.b]\nsource = 'scripted'\n", "label/truth would be .* twice"),
        ("[recorder]\ntopics = ['camra/*']\n", r"recorder\.topics\.0: 'camra/\*' matches no topic"),
        ("[recorder]\ntopics = ['camera/a b*']\n", r"recorder\.topics\.0: 'camera/a b\*' matches no topic"),
        ("[replay]\nfile = 'x'\ntopics = ['camra/*']\n", r"replay\.topics\.0: matches no topic"),
        ("[connect]\n'camra/*' = 'tcp://host:5600'\n", r'connect\."camra/\*": .*matches no topic'),
        ("[connect]\n'camera/*' = 'tcp://*:5600'\n", r'connect\."camera/\*": is not a single address'),
        ("[connect]\n'camera/a' = 'host:5600'\n", r'connect\."camera/a": .*is no endpoint'),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ProfileError, match=says) as caught:
        load(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ring", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_bases_in_a_ring_are_one_line(tmp_path: Path, ring: list[str]) -> None:
    for name, base in zip(ring, [*ring[1:], ring[0]], strict=True):
        (tmp_path / f"{name}.toml").write_text(f"[fusion]\nbase = './{base}.toml'\n")
    with pytest.raises(ProfileError, match="cannot be its own base") as caught:
        load(str(tmp_path / "a.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["fusion = 3\n", "[camera.a]\nsource = 0\n", "[fusion]\nbase = 3\n"])
def test_a_base_without_a_fusion_is_one_line(tmp_path: Path, base: str) -> None:
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "mine.toml").write_text("[fusion]\nbase = 'base.toml'\n")
    with pytest.raises(ProfileError, match=r"base\.toml"):
        load(str(tmp_path / "mine.toml"))


def test_a_base_lies_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "robots" / "shared"
    folder.mkdir(parents=True)
    (folder / "theirs.toml").write_text("[fusion]\nbase = 'demo'\nhop_ms = 200\n")
    (folder / "between.toml").write_text("[fusion]\nbase = 'theirs.toml'\n")
    (tmp_path / "robots" / "mine.toml").write_text("[fusion]\nbase = 'shared/between.toml'\n")
    monkeypatch.chdir(tmp_path)
    fusion = load("robots/mine.toml").fusion
    assert fusion is not None
    assert fusion.hop_ms == 200


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "windows.toml"
    file.write_bytes(b"\xef\xbb\xbf[camera.front]\nsource = 0\n")
    assert list(load(str(file)).camera) == ["front"]


NO_HOSTS = {
    "tcp://[:::::1]:5000": "[:::::1] is no IPv6 address",
    "tcp://[fe80::12345]:5000": "[fe80::12345] is no IPv6 address",
    "tcp://[10.0.0.1]:5000": "[10.0.0.1] is no IPv6 address",
    "tcp://[::1%]:5000": "[::1%] is no IPv6 address",
    "tcp://10.0.0.256:5000": "'10.0.0.256' is no host",
    "tcp://10.0.1:5000": "'10.0.1' is no host",
    "tcp://cam-.local:5000": "'cam-.local' is no host",
    "tcp://cam..local:5000": "'cam..local' is no host",
}


@pytest.mark.parametrize("endpoint", NO_HOSTS)
def test_an_endpoint_names_a_host_wherever_it_is_given(endpoint: str, tmp_path: Path) -> None:
    says = re.escape(f"'{endpoint}' is no endpoint: {NO_HOSTS[endpoint]}")
    for text in (f"[connect]\n'text/a' = '{endpoint}'\n", f"[text.a]\nendpoint = '{endpoint}'\n"):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(ProfileError, match=says):
            load(str(tmp_path / "a.toml"))
    for key in ("text.say.endpoint", "connect.text/a"):
        with pytest.raises(ProfileError, match=rf"--set {re.escape(key)}: {says}"):
            load("demo", (f"{key}={endpoint}",))


@pytest.mark.parametrize(
    "host", ["[::1]", "[fe80::1%eth0]", "[::ffff:10.0.0.1]", "10.0.0.1", "cam_1", "a-b.local.", "eth0.1"]
)
def test_hosts_of_every_form_are_connected_to(host: str) -> None:
    profile = parse({"connect": {"text/a": f"tcp://{host}:5000"}}, where="test")
    assert profile.connect == {"text/a": f"tcp://{host}:5000"}


@pytest.mark.parametrize("host", ["[::]", "[0:0::0]", "0.0.0.0", "*"])
def test_no_place_is_connected_to(host: str) -> None:
    with pytest.raises(ProfileError, match="is not a single address"):
        parse({"connect": {"text/a": f"tcp://{host}:5000"}}, where="test")


def test_an_override_that_is_wrong_is_named_as_such() -> None:
    with pytest.raises(ProfileError, match=r"--set camera\.front\.rate_hz: .*valid number"):
        load("demo", ("camera.front.rate_hz=abc",))


def test_names_that_topics_may_have_are_names_of_devices() -> None:
    names = ("front", "front-left_2.5", "stereo/left", "7", "x" * 46)
    profile = parse({"camera": {name: {"source": 0} for name in names}}, where="test")
    assert profile.published() == [f"camera/{name}" for name in names]


SOURCES: dict[str, list[int | str]] = {
    "scripted": ["scripted"],
    "device": [0, 7, "/dev/video0", "/dev/v4l/by-id/usb"],
    "address": ["http://camera.local/stream.mjpg", "rtsp://host/a"],
    "file": ["clip.mp4", "clip.3gp", "talk.h264", "./kitchen", "recordings/kitchen", "/data/speech"],
    "name": [
        *("default", "pulse", "USB Audio: #1 (hw:1,0)", "HDA Intel PCH"),
        *("USB Audio v1.2 Mic", "Yeti Nano 2.02"),
    ],
}


def test_one_rule_tells_files_from_devices_and_addresses() -> None:
    assert {kind: {source_kind(one) for one in given} for kind, given in SOURCES.items()} == {
        kind: {kind} for kind in SOURCES
    }


def test_an_override_is_toml_or_else_a_plain_string() -> None:
    profile = load("demo", ("camera.front.rate_hz=5", "camera.front.source=cam.mp4"))
    assert (profile.camera["front"].rate_hz, profile.camera["front"].source) == (5.0, "cam.mp4")


@pytest.mark.parametrize(
    ("written", "expected"), [("keys", "{folder}/keys"), ("../k", "{folder}/../k"), ("/etc/k", "/etc/k")]
)
def test_keys_lie_beside_the_profile(
    written: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "graph" / "mine.toml"
    file.parent.mkdir()
    file.write_text(f'keys = "{written}"\n[camera.a]\nsource = "scripted"\n')
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "graph/mine.toml"):
        found = load(name).keys
        assert found is not None
        assert found.resolve() == Path(expected.format(folder=file.parent)).resolve()
    assert load(str(file), ("keys=here",)).keys == Path("here")


def test_a_profile_without_fusion_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bare.toml"
    file.write_text("[camera.front]\nsource = 0\n")
    with pytest.raises(ProfileError, match=r"bare\.toml: the profile has no \[fusion\] table"):
        load(str(file)).required_fusion()
