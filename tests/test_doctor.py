"""What the doctor says of a machine: the causes it knows by name, and what to do about them."""

import io
import os
import pty
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from perception.cli.device_checks import check_cameras, check_microphones
from perception.cli.doctor import (
    build_models,
    check_clock,
    check_gpu,
    check_ports,
    check_runtime,
    drift_finding,
)
from perception.cli.finding import Finding, print_findings
from perception.cli.package_checks import PROBES, Outcome, explain, probe, probe_all
from perception.cli.requirement_checks import check_imports, check_packages, check_python
from perception.profile import Profile, parse


def profile(**sections: object) -> Profile:
    return parse(dict(sections), where="test")


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    ("package", "message", "cause", "advice"),
    [
        (
            "torchvision",
            "RuntimeError: operator torchvision::nms does not exist",
            "built for another torch: a CPU-only torch beside PyPI's torchvision does this",
            "uv sync",
        ),
        (
            "torchaudio",
            "RuntimeError: Detected that PyTorch and TorchAudio were compiled with different CUDA versions.",
            "built for another torch or another CUDA",
            "uv sync",
        ),
        (
            "torchaudio",
            "OSError: libcudart.so.13: cannot open shared object file",
            "built for another torch or another CUDA",
            "uv sync",
        ),
        (
            "transformers",
            "ModuleNotFoundError: Could not import module 'BertModel'. Are this object's requirements met?",
            "cannot load its models, because torch, torchvision or torchaudio is broken",
            "repair those first",
        ),
        ("cv2", "AssertionError: no cascades", "version 5 dropped them", "opencv-python>=4.12,<5"),
        (
            "cv2",
            "AttributeError: module 'cv2' has no attribute 'CascadeClassifier'",
            "version 5 dropped them",
            "opencv-python>=4.12,<5",
        ),
        ("cv2", "ImportError: libGL.so.1: cannot open shared object", "system library", "libgl1"),
        ("sounddevice", "OSError: PortAudio library not found", "PortAudio is missing", "libportaudio2"),
        ("torch", "ModuleNotFoundError: No module named 'torch'", "a module is missing", "uv sync"),
        ("torch", "ValueError: something new", "ValueError: something new", "--reinstall"),
        ("torch", "", "no message", "--reinstall"),
    ],
)
def test_known_breakages_are_named(package: str, message: str, cause: str, advice: str) -> None:
    problem, remedy = explain(package, f"Traceback (most recent call last):\n{message}\n")
    if message:
        assert cause in problem
    assert advice in remedy
    assert "\n" not in problem


def test_a_probe_is_a_process_of_its_own() -> None:
    assert probe("cv2", "facts = {'answer': 42}").facts == {"answer": 42}
    assert "_ARRAY_API" in probe("cv2", "raise ImportError('_ARRAY_API not found')").problem
    assert probe("cv2", "import os; os.abort()").problem == "import ended with signal 6"
    assert "did not end within" in probe("cv2", "import time; time.sleep(60)", limit_s=0.2).problem


def test_every_package_is_probed_and_noise_on_stdout_does_not_matter() -> None:
    outcomes = probe_all(lambda package, code: probe(package, "print('noise'); facts = {}"))
    assert list(outcomes) == ["torch", "torchvision", "torchaudio", "transformers", "cv2", "sounddevice"]
    assert all(outcome == Outcome() for outcome in outcomes.values())


def test_versions_are_compared_with_the_packages_own_requirements() -> None:
    versions = {"torch": "2.15.0", "numpy": "2.4.1"}
    requirements = ["torch<2.15,>=2.11", "numpy<3,>=2.0", "av>=14", "rosbags>=0.10; extra == 'export'"]
    findings = list(check_packages(requirements, versions.get))
    assert [(finding.level, finding.detail) for finding in findings] == [
        ("fail", "torch 2.15.0, needs torch<2.15,>=2.11"),
        ("fail", "av is not installed"),
        ("ok", "1 installed in the versions required"),
    ]


def test_python_is_compared_with_what_is_required() -> None:
    assert check_python((3, 12, 1), ">=3.11,<3.14").level == "ok"
    assert check_python((3, 10, 0), ">=3.11,<3.14").level == "fail"


def test_portaudio_is_needed_only_for_a_microphone() -> None:
    broken = {"sounddevice": Outcome("PortAudio is missing", "apt-get install libportaudio2")}
    assert levels(list(check_imports(broken, microphone_needed=False))) == ["warn"]
    assert levels(list(check_imports(broken, microphone_needed=True))) == ["fail"]


def test_a_gpu_is_needed_only_where_the_profile_says_so() -> None:
    gpu = Outcome(facts={"gpus": ["H100"], "cuda": "13.0"})
    none = Outcome(facts={"gpus": [], "cuda": ""})
    assert check_gpu(gpu, needed=True).detail == "H100 (CUDA 13.0)"
    assert check_gpu(none, needed=False, driver=False).level == "ok"
    assert check_gpu(none, needed=False, driver=True).level == "warn"
    assert check_gpu(none, needed=True, driver=True).level == "fail"


def test_cameras_are_listed_with_the_name_that_stays(tmp_path: Path) -> None:
    (tmp_path / "v4l" / "by-id").mkdir(parents=True)
    (tmp_path / "video0").touch()
    link = tmp_path / "v4l" / "by-id" / "usb-Acme-video-index0"
    link.symlink_to(tmp_path / "video0")
    wanted = profile(camera={"front": {"source": 0}, "rear": {"source": 1}, "toy": {"source": "scripted"}})
    (tmp_path / "sys" / "video0").mkdir(parents=True)
    (tmp_path / "sys" / "video0" / "name").write_text("Acme Webcam: Acme\n")
    findings = {finding.check: finding for finding in check_cameras(wanted, tmp_path, tmp_path / "sys")}
    assert findings["camera"].detail == f"{tmp_path}/video0, Acme Webcam: Acme, stable: {link}"
    assert findings["camera.front"].level == "ok"
    assert findings["camera.rear"].detail == f"{tmp_path}/video1 does not exist"
    assert findings["camera.toy"].level == "ok"


def test_microphones_are_looked_for_by_name() -> None:
    wanted = profile(
        microphone={
            "desk": {"source": "USB"},
            "old": {"source": "USB Audio v1.2 Mic"},
            "head": {"source": "Array"},
            "third": {"source": 3},
            "fourth": {"source": 4},
            "file": {"source": "/nowhere/speech.wav"},
            "toy": {"source": "scripted"},
        }
    )
    heard = Outcome(facts={"inputs": ["USB Audio: hw:1,0", "pulse"], "numbers": [3, 7]})
    findings = list(check_microphones(wanted, heard))
    assert [finding.detail for finding in findings if finding.check == "microphone"] == [
        "3: USB Audio: hw:1,0",
        "7: pulse",
    ]
    failed = {finding.check for finding in findings if finding.level == "fail"}
    assert failed == {"microphone.head", "microphone.old", "microphone.file", "microphone.fourth"}
    deaf = list(check_microphones(wanted, Outcome(facts={"inputs": [], "numbers": []})))
    assert {finding.check for finding in deaf if finding.level == "fail"} == {
        "microphone.desk",
        "microphone.head",
        "microphone.old",
        "microphone.file",
        "microphone.third",
        "microphone.fourth",
    }


def test_a_busy_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        taken = f"tcp://127.0.0.1:{busy.getsockname()[1]}"
        camera = {"source": "scripted"}
        wanted = profile(
            camera={
                "front": camera | {"endpoint": taken},
                "rear": camera | {"endpoint": "tcp://127.0.0.1:0"},
                "top": camera,
            }
        )
        findings = list(check_ports(wanted))
    assert [(finding.check, finding.level) for finding in findings] == [
        ("camera.front.endpoint", "fail"),
        ("camera.rear.endpoint", "ok"),
    ]


def test_a_runtime_directory_open_to_others_fails(runtime_directory: Path) -> None:
    assert next(check_runtime()).level == "ok"
    assert next(check_clock()).level == "ok"
    runtime_directory.chmod(0o755)
    assert next(check_runtime()).level == "fail"


def test_a_wall_clock_that_was_set_since_boot_is_reported() -> None:
    assert drift_finding(0.05).level == "ok"
    assert drift_finding(-30.0).level == "warn"
    assert "-30.000 s" in drift_finding(-30.0).detail


def test_missing_weights_are_named_by_encoder(tmp_path: Path) -> None:
    file = tmp_path / "trio.toml"
    file.write_text(
        "[fusion.inputs]\ncamera = { topic = 'camera/front' }\n"
        "[fusion.head]\nweights = 'random'\nclasses = ['a', 'b']\n"
        "[fusion.encoders]\n"
        "motion = { input = 'camera', kind = 'motion' }\n"
        f"net = {{ input = 'camera', kind = 'torchvision', weights = '{tmp_path}/none.pth' }}\n"
    )
    problems = build_models(str(file), ())
    assert problems["motion"] == ""
    assert f"{tmp_path}/none.pth: no such weights file" in problems["net"]
    assert "head" not in problems
    complete = build_models(str(file), ("fusion.encoders.net.weights=random",))
    assert complete == {"motion": "", "net": "", "head": ""}


def test_a_terminal_shows_which_packages_have_been_tried() -> None:
    ours, theirs = pty.openpty()
    asked = []

    def tried(package: str, code: str) -> Outcome:
        asked.append(package)
        return Outcome()

    with open(theirs, "w") as terminal:
        outcomes = probe_all(tried, terminal)
    shown = ""
    with suppress(OSError):  # what a terminal says at its end
        while part := os.read(ours, 1 << 16):
            shown += part.decode(errors="replace")
    os.close(ours)
    assert set(outcomes) == set(asked) == set(PROBES)
    assert "importing packages" in shown
    assert f"{len(PROBES)}/{len(PROBES)}" in shown
    assert list(PROBES)[-1] in shown
    assert shown.rstrip().endswith("\x1b[2K"), "nothing of it stays above the findings"


def test_findings_are_a_line_each_and_a_failure_is_exit_code_1() -> None:
    out = io.StringIO()
    findings = [Finding("disk", "ok", "1 GB [free]"), Finding("cv2", "fail", "broken", "repair it")]
    assert print_findings(findings, out) == 1
    assert out.getvalue() == "ok   disk: 1 GB [free]\nfail cv2: broken -> repair it\n"
    assert print_findings(findings[:1], io.StringIO()) == 0


def test_the_doctor_itself_imports_no_model_package() -> None:
    outcome = probe("doctor", "import sys, perception.cli.doctor; facts = {'torch': 'torch' in sys.modules}")
    assert outcome.facts == {"torch": False}, sys.version
