"""`perception doctor`: is this machine fit, and if not, what to do. One line per finding."""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TextIO

from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from perception import profile as profiles
from perception.bus.host import HostClock, Runtime, base_directory
from perception.cli.package_checks import Outcome, probe, probe_all
from perception.errors import DISTRIBUTION, INSTALL, BusError, PerceptionError
from perception.errors.credentials import harmless, without_credentials
from perception.graph.check import check, served
from perception.io.home import home
from perception.io.progress import progress
from perception.profile import Profile, is_file_name
from perception.profile.endpoint import parse

Level = Literal["ok", "warn", "fail"]
_STYLE: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_MIN_RUNTIME_BYTES: Final = 16 << 20
_MIN_HOME_BYTES: Final = 2 << 30
"""Pretrained weights of the `robot` profile take 1.2 GB."""
_MAX_DRIFT_S: Final = 0.1
_TIME_ERROR: Final = 5
"""adjtimex(2) returns it while nothing synchronises the system clock."""
_SYNTHETIC: Final = ("scripted", "terminal")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    check: str
    level: Level
    detail: str
    advice: str = ""


def examine(profile_name: str | None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield every finding, about the machine and about what a profile needs of it; ProfileError if wrong."""
    profile = profiles.load(profile_name, tuple(overrides)) if profile_name else Profile()
    yield from check_distribution(DISTRIBUTION)
    outcomes = probe_all()
    yield from check_imports(outcomes, microphone_needed=bool(_devices(profile)))
    yield check_gpu(outcomes["torch"], needed=bool(profile.fusion and "cuda" in profile.fusion.device))
    yield from check_cameras(profile, Path("/dev"))
    yield from check_microphones(profile, outcomes["sounddevice"])
    if profile_name:
        yield from check_profile(profile, profile_name)
        yield from check_weights(profile, profile_name, overrides)
        yield from check_ports(profile)
    yield from check_runtime()
    yield check_home()
    yield from check_clock()


def print_findings(findings: Iterable[Finding], file: TextIO) -> int:
    """Print findings as they come; return 1 if anything failed, else 0."""
    console = Console(file=file, soft_wrap=True, highlight=False)
    failed = False
    for finding in findings:
        failed |= finding.level == "fail"
        advice = f" -> {finding.advice}" if finding.advice else ""
        line = (f"{finding.level:<5}", _STYLE[finding.level])
        said = harmless(without_credentials(f"{finding.check}: {finding.detail}{advice}"))
        console.print(Text.assemble(line, said))
    return int(failed)


def check_distribution(name: str) -> Iterator[Finding]:
    """Compare this machine with what the installed package requires; run from source it is not known."""
    try:
        required = importlib.metadata.metadata(name)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("package", "warn", f"{name} is not installed: what it requires is not known", INSTALL)
        return
    yield check_python(sys.version_info[:3], required)
    yield from check_packages(importlib.metadata.requires(name) or [], _installed)


def check_python(version: tuple[int, int, int], required: str) -> Finding:
    """Compare the interpreter with what the package requires."""
    words = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if Requirement(f"python{required}").specifier.contains(".".join(map(str, version))):
        return Finding("python", "ok", words)
    return Finding("python", "fail", f"{words}, needs {required}", f"install such a Python, then {INSTALL}")


def check_packages(requirements: Iterable[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Compare installed versions with the package's own requirements; one finding if all fit."""
    fitting = 0
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            yield Finding("package", "fail", f"{requirement.name} is not installed", INSTALL)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding("package", "fail", f"{requirement.name} {version}, needs {requirement}", INSTALL)
        else:
            fitting += 1
    yield Finding("packages", "ok", f"{fitting} installed in the versions required")


def check_imports(outcomes: Mapping[str, Outcome], *, microphone_needed: bool) -> Iterator[Finding]:
    """Say of each probed package whether it works; sounddevice matters only with a microphone."""
    for package, outcome in outcomes.items():
        if not outcome.problem:
            version = outcome.facts.get("version", "")
            yield Finding(f"import {package}", "ok", f"works {version}".strip())
            continue
        optional = package == "sounddevice" and not microphone_needed
        yield Finding(f"import {package}", "warn" if optional else "fail", outcome.problem, outcome.advice)


def check_gpu(torch: Outcome, *, needed: bool, driver: bool | None = None) -> Finding:
    """Say what torch can compute on; a GPU whose driver answers but that torch cannot use is worth a word."""
    if gpus := torch.facts.get("gpus"):
        return Finding("gpu", "ok", f"{', '.join(gpus)} (CUDA {torch.facts['cuda']})")
    driver = shutil.which("nvidia-smi") is not None if driver is None else driver
    if not driver:
        advice = "set fusion.device to auto or cpu" if needed else ""
        return Finding("gpu", "fail" if needed else "ok", "none; models run on the CPU", advice)
    built = torch.facts.get("cuda") or "none"
    detail = f"there is a driver, but torch (built for CUDA {built}) cannot use it"
    return Finding("gpu", "fail" if needed else "warn", detail, "compare with the version nvidia-smi shows")


def check_cameras(
    profile: Profile, devices: Path, system: Path = Path("/sys/class/video4linux")
) -> Iterator[Finding]:
    """List the cameras with their drivers' and stable names, then look for those of the profile."""
    stable = {link.resolve(): link for link in sorted(devices.glob("v4l/by-id/*"))}
    found = sorted(devices.glob("video*"))
    for node in found:
        kind = _camera_name(system / node.name)
        name = f"{node}{f', {kind}' if kind else ''}"
        name += f", stable: {stable[node.resolve()]}" if node.resolve() in stable else ""
        if os.access(node, os.R_OK | os.W_OK):
            yield Finding("camera", "ok", name)
        else:
            yield Finding(
                "camera", "warn", f"{name}: no permission", "sudo usermod -aG video $USER, log in again"
            )
    if not found:
        yield Finding("camera", "ok", f"no {devices}/video*: no camera is plugged in")
    for name, camera in profile.camera.items():
        where = devices / f"video{camera.source}" if isinstance(camera.source, int) else Path(camera.source)
        yield from _present(f"camera.{name}", str(camera.source), where)


def _camera_name(folder: Path) -> str:
    """Return what the driver calls a camera, empty if it says nothing; `folder` is its own in sysfs."""
    try:
        return (folder / "name").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def check_microphones(profile: Profile, sounddevice: Outcome) -> Iterator[Finding]:
    """List the inputs that PortAudio sees, then look for those of the profile."""
    if sounddevice.problem:
        return
    inputs: list[str] = sounddevice.facts["inputs"]
    numbers: list[int] = sounddevice.facts["numbers"]
    for number, name in zip(numbers, inputs, strict=True):
        yield Finding("microphone", "ok", f"{number}: {name}")
    if not inputs:
        yield Finding("microphone", "ok", "no input")
    for name, microphone in profile.microphone.items():
        source = microphone.source
        if name not in _devices(profile):
            yield from _present(f"microphone.{name}", str(source), Path(str(source)))
        elif not inputs:
            advice = "plug one in, or set its source to 'scripted' or a sound file"
            yield Finding(f"microphone.{name}", "fail", f"no input for source {source!r}", advice)
        elif isinstance(source, int) and source not in numbers:
            yield Finding(f"microphone.{name}", "fail", f"no input {source}", "choose one listed above")
        elif isinstance(source, str) and source != "default" and not any(source in each for each in inputs):
            yield Finding(
                f"microphone.{name}", "fail", f"no input named {source!r}", "choose one listed above"
            )


def check_profile(profile: Profile, where: str) -> Iterator[Finding]:
    """Say what `perception up` would refuse or warn of before it starts anything."""
    fine = True
    for problem in check(profile, Runtime(profile.domain).topics()):
        fine = False
        yield Finding("profile", "warn" if problem.error is None else "fail", f"{where}: {problem.text}")
    if fine:
        yield Finding("profile", "ok", f"{where}: inputs, encoders, head, endpoints and files fit together")


def check_weights(profile: Profile, profile_name: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """Build the models of the profile as the fusion node would, but in a process without a network."""
    if profile.fusion is None:
        return
    # Nothing listens on the discard port: every download fails at once.
    environment = {
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),
    }
    with progress(f"building the models of {profile_name}"):
        outcome = probe(
            "torch",
            f"import os; os.environ.update({environment!r}); from perception.cli.doctor import build_models; "
            f"facts = build_models({profile_name!r}, {tuple(map(without_credentials, overrides))!r})",
        )
    if outcome.problem:
        yield Finding("weights", "fail", outcome.problem, outcome.advice)
    for name, problem in outcome.facts.items():
        yield Finding(f"weights {name}", "fail" if problem else "ok", problem or "there, and they fit")


def build_models(profile_name: str, overrides: tuple[str, ...]) -> dict[str, str]:
    """Build each encoder, then the head; return by name what is wrong with it, empty if nothing is.

    Imports torch: meant for a process of its own.
    """
    import torch

    from perception.models.checkpoint import build_head, with_own_encoders
    from perception.models.registry import build_encoder

    fusion = profiles.load(profile_name, overrides).fusion
    assert fusion is not None
    fusion = with_own_encoders(fusion)
    problems: dict[str, str] = {}
    dims: dict[str, int] = {}
    cpu = torch.device("cpu")
    for name, config in fusion.encoders.items():
        chosen = config.model_copy(update={"weights": config.weights or fusion.weights})
        try:
            dims[name] = build_encoder(name, chosen, device=cpu, seed=fusion.seed).dim
            problems[name] = ""
        except PerceptionError as error:
            problems[name] = str(error)
    if not any(problems.values()):
        try:
            build_head(fusion.head, dims, device=cpu, seed=fusion.seed)
            problems["head"] = ""
        except PerceptionError as error:
            problems["head"] = str(error)
    return problems


def check_ports(profile: Profile) -> Iterator[Finding]:
    """Try to bind every tcp endpoint that the profile publishes on."""
    for key, endpoint in served(profile).items():
        where = parse(endpoint)
        if where.port == "*":
            continue
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                where.host.replace("*", "0.0.0.0"), int(where.port), type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, kind, protocol) as probe_socket:
                probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe_socket.bind(address)
            yield Finding(key, "ok", f"{endpoint} is free")
        except OSError as error:
            advice = "another program has it, or this graph is up already: choose another port"
            yield Finding(key, "fail", f"{endpoint}: {error.strerror}", advice)


def check_runtime() -> Iterator[Finding]:
    """Check the runtime directory's rights and the room left there."""
    try:
        directory = base_directory()
    except BusError as error:
        yield Finding("runtime directory", "fail", str(error))
        return
    yield Finding("runtime directory", "ok", f"{directory}, yours alone")
    yield _room(directory, _MIN_RUNTIME_BYTES)


def check_home() -> Finding:
    """Check the room left where weights and features are kept."""
    own = home()
    if own is None or not own.is_dir():
        advice = "set HOME, or HF_HOME, TORCH_HOME and --cache, where weights or features are to be kept"
        return Finding("home", "warn", "this user has no home directory", advice)
    return _room(own, _MIN_HOME_BYTES)


def _room(where: Path, least: int) -> Finding:
    free = shutil.disk_usage(where).free
    level: Level = "ok" if free >= least else "warn"
    advice = "" if level == "ok" else "make room: sockets, weights and recordings need it"
    return Finding("disk", level, f"{free / 1e9:.1f} GB free for {where}", advice)


def check_clock() -> Iterator[Finding]:
    """Compare the host clock of this boot with the wall clock, and ask whether anything keeps that true."""
    try:
        drift_s = (HostClock().now_ns() - time.time_ns()) / 1e9
    except BusError as error:
        yield Finding("clock", "fail", str(error))
        return
    yield drift_finding(drift_s)
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    # Zeroed, the first member (modes) only asks; struct timex is 208 bytes on 64-bit Linux.
    if adjtimex is not None and adjtimex(ctypes.create_string_buffer(512)) == _TIME_ERROR:
        advice = "matters only for graphs that span hosts: run chrony or systemd-timesyncd"
        yield Finding("ntp", "warn", "nothing synchronises the wall clock", advice)


def drift_finding(drift_s: float) -> Finding:
    """Judge how far the host clock, which never steps, is from the wall clock, which may."""
    if abs(drift_s) <= _MAX_DRIFT_S:
        return Finding("clock", "ok", f"host clock within {abs(drift_s) * 1e3:.1f} ms of the wall clock")
    detail = f"the wall clock was set or slewed since boot: stamps read {drift_s:+.3f} s against it"
    return Finding("clock", "warn", detail, "harmless on one host; reboot if stamps must read as wall time")


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(profile: Profile) -> list[str]:
    """Return the microphones that are devices, not scripts or files."""
    return [
        name
        for name, microphone in profile.microphone.items()
        if microphone.source not in _SYNTHETIC and not is_file_name(str(microphone.source))
    ]


def _present(check: str, source: str, path: Path) -> Iterator[Finding]:
    if source in _SYNTHETIC:
        yield Finding(check, "ok", source)
    elif "://" in source:
        yield Finding(check, "ok", f"{without_credentials(source)}: not tried")
    elif path.exists():
        yield Finding(check, "ok", str(path))
    else:
        yield Finding(check, "fail", f"{path} does not exist", "plug it in, or correct its source")
