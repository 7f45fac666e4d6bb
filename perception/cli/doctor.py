"""`perception doctor`: what this machine lacks for a graph, and what to do. One line per finding."""

import ctypes
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from perception import profile as profiles
from perception.bus.host import HostClock, Runtime, base_directory
from perception.cli.device_checks import check_cameras, check_microphones, microphone_devices
from perception.cli.finding import Finding, Level
from perception.cli.package_checks import Outcome, probe, probe_all
from perception.cli.requirement_checks import check_distribution, check_imports
from perception.errors import DISTRIBUTION, BusError, PerceptionError
from perception.errors.credentials import without_credentials
from perception.graph.check import check, served
from perception.io.home import home
from perception.io.progress import progress
from perception.profile import Profile
from perception.profile.endpoint import parse

_MIN_RUNTIME_BYTES: Final = 16 << 20
_MIN_HOME_BYTES: Final = 2 << 30
"""Pretrained weights of the `robot` profile take 1.2 GB."""
_MAX_DRIFT_S: Final = 0.1
_TIME_ERROR: Final = 5
"""adjtimex(2) returns it while nothing synchronises the system clock."""


def examine(profile_name: str | None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield every finding about the machine, then about a profile; ProfileError if the profile is wrong."""
    profile = profiles.load(profile_name, tuple(overrides)) if profile_name else Profile()
    yield from check_distribution(DISTRIBUTION)
    outcomes = probe_all()
    yield from check_imports(outcomes, microphone_needed=bool(microphone_devices(profile)))
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


def check_gpu(torch: Outcome, *, needed: bool, driver: bool | None = None) -> Finding:
    """Return what torch computes on; a warning if there is a GPU driver but torch cannot use the GPU."""
    if gpus := torch.facts.get("gpus"):
        return Finding("gpu", "ok", f"{', '.join(gpus)} (CUDA {torch.facts['cuda']})")
    driver = shutil.which("nvidia-smi") is not None if driver is None else driver
    if not driver:
        advice = "set fusion.device to auto or cpu" if needed else ""
        return Finding("gpu", "fail" if needed else "ok", "none; models run on the CPU", advice)
    built = torch.facts.get("cuda") or "none"
    detail = f"there is a driver, but torch (built for CUDA {built}) cannot use it"
    return Finding("gpu", "fail" if needed else "warn", detail, "compare with the version nvidia-smi shows")


def check_profile(profile: Profile, where: str) -> Iterator[Finding]:
    """Yield what `perception up` would refuse or warn of before it starts a node."""
    fits = True
    for problem in check(profile, Runtime(profile.domain).topics()):
        fits = False
        yield Finding("profile", "warn" if problem.error is None else "fail", f"{where}: {problem.text}")
    if fits:
        yield Finding("profile", "ok", f"{where}: inputs, encoders, head, endpoints and files fit together")


def check_weights(profile: Profile, profile_name: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """Build the models of the profile as the fusion node would, but in a process without a network."""
    if profile.fusion is None:
        return
    # No server listens on the discard port, so that every download fails at once.
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
        yield Finding(
            f"weights {name}", "fail" if problem else "ok", problem or "found, and they fit the profile"
        )


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
            advice = "another program or this graph uses it already: choose another port"
            yield Finding(key, "fail", f"{endpoint}: {error.strerror}", advice)


def check_runtime() -> Iterator[Finding]:
    """Check the rights of the runtime directory and the free space of its disk."""
    try:
        directory = base_directory()
    except BusError as error:
        yield Finding("runtime directory", "fail", str(error))
        return
    yield Finding("runtime directory", "ok", f"{directory}, no other user has access")
    yield _room(directory, _MIN_RUNTIME_BYTES)


def check_home() -> Finding:
    """Check the free space of the disk that stores weights and features."""
    own = home()
    if own is None or not own.is_dir():
        advice = "set HOME; or HF_HOME, TORCH_HOME and --cache to where weights and features are stored"
        return Finding("home", "warn", "this user has no home directory", advice)
    return _room(own, _MIN_HOME_BYTES)


def _room(where: Path, least: int) -> Finding:
    free = shutil.disk_usage(where).free
    level: Level = "ok" if free >= least else "warn"
    advice = "" if level == "ok" else "free some space for sockets, weights and recordings"
    return Finding("disk", level, f"{free / 1e9:.1f} GB free for {where}", advice)


def check_clock() -> Iterator[Finding]:
    """Compare the host clock with the wall clock, and check whether the wall clock is synchronised."""
    try:
        drift_s = (HostClock().now_ns() - time.time_ns()) / 1e9
    except BusError as error:
        yield Finding("clock", "fail", str(error))
        return
    yield drift_finding(drift_s)
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    # With modes, the first member, zero, the call only reads. struct timex has 208 bytes on 64-bit Linux.
    if adjtimex is not None and adjtimex(ctypes.create_string_buffer(512)) == _TIME_ERROR:
        advice = "matters only for graphs that span hosts: run chrony or systemd-timesyncd"
        yield Finding("ntp", "warn", "nothing synchronises the wall clock", advice)


def drift_finding(drift_s: float) -> Finding:
    """Return a finding on the distance of the host clock, which never steps, from the wall clock."""
    if abs(drift_s) <= _MAX_DRIFT_S:
        return Finding("clock", "ok", f"host clock within {abs(drift_s) * 1e3:.1f} ms of the wall clock")
    detail = f"the wall clock was set while perception ran: stamps read {drift_s:+.3f} s against it"
    return Finding(
        "clock", "warn", detail, "harmless; stamps read as wall time again once all graphs restart"
    )
