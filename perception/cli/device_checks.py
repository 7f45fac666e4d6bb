"""Which cameras and microphones this machine has, and whether those of a profile are among them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from perception.cli.finding import Finding
from perception.cli.package_checks import Outcome
from perception.errors.credentials import without_credentials
from perception.profile import Profile, source_kind

_SYNTHETIC: Final = ("scripted", "terminal")


def check_cameras(
    profile: Profile, devices: Path, system: Path = Path("/sys/class/video4linux")
) -> Iterator[Finding]:
    """Yield the cameras of this machine with driver and stable name, then those of the profile."""
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
        yield Finding("camera", "ok", f"no {devices}/video*: no camera is connected")
    for name, camera in profile.camera.items():
        where = devices / f"video{camera.source}" if isinstance(camera.source, int) else Path(camera.source)
        yield from _present(f"camera.{name}", str(camera.source), where)


def _camera_name(folder: Path) -> str:
    """Return the driver's name of a camera, empty if it has none; `folder` is that of the camera in sysfs."""
    try:
        return (folder / "name").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def check_microphones(profile: Profile, sounddevice: Outcome) -> Iterator[Finding]:
    """Yield the inputs that PortAudio lists, then those of the profile."""
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
        if name not in microphone_devices(profile):
            yield from _present(f"microphone.{name}", str(source), Path(str(source)))
        elif not inputs:
            advice = "connect one, or set its source to 'scripted' or a sound file"
            yield Finding(f"microphone.{name}", "fail", f"no input for source {source!r}", advice)
        elif isinstance(source, int) and source not in numbers:
            yield Finding(f"microphone.{name}", "fail", f"no input {source}", "choose one listed above")
        elif isinstance(source, str) and source != "default" and not any(source in each for each in inputs):
            yield Finding(
                f"microphone.{name}", "fail", f"no input named {source!r}", "choose one listed above"
            )


def microphone_devices(profile: Profile) -> list[str]:
    """Return the microphones that are devices, not scripts or files."""
    return [
        name
        for name, microphone in profile.microphone.items()
        if source_kind(microphone.source) not in ("scripted", "file")
    ]


def _present(check: str, source: str, path: Path) -> Iterator[Finding]:
    if source in _SYNTHETIC:
        yield Finding(check, "ok", source)
    elif "://" in source:
        yield Finding(check, "ok", f"{without_credentials(source)}: not tried")
    elif path.exists():
        yield Finding(check, "ok", str(path))
    else:
        yield Finding(check, "fail", f"{path} does not exist", "connect it, or correct its source")
