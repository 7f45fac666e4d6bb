"""Checks a profile as a whole, before anything starts: inputs, models, endpoints, files.

Files that the profile names are checked; no device or socket is opened, no model package imported. Errors
that only the models can detect (weights of the Hub, a GPU) are raised when they load.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from perception import topics
from perception.bus import endpoints
from perception.devices.device import no_file
from perception.errors import (
    BusError,
    DeviceError,
    PerceptionError,
    ProfileError,
    SessionError,
    WeightsError,
)
from perception.errors.credentials import without_credentials
from perception.io.out_path import unusable
from perception.messages import PIXEL_BYTES, SAMPLE_BYTES
from perception.models import head_config
from perception.models.options import options_of
from perception.profile import FusionConfig, Profile, RecorderConfig, source_kind
from perception.profile.endpoint import parse

_ANYWHERE: Final = ("*", "0.0.0.0", "::")
_MIB: Final = 1 << 20
_WITH_HOST: Final = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps")
"""Schemes whose addresses need a host; other schemes may listen, as `udp://:5000` does."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning."""

    text: str
    """Key, what is wrong with it, what to do."""
    error: type[PerceptionError] | None = None
    """Class of the error; None for a warning."""


def require(profile: Profile, where: str, published: Collection[str] = ()) -> list[str]:
    """Return the warnings about a profile that was read from `where`; see `check`.

    Raises:
        PerceptionError: all errors in one line; of the class of the first.
    """
    problems = list(check(profile, published))
    wrong = [problem for problem in problems if problem.error is not None]
    if wrong and wrong[0].error is not None:
        raise wrong[0].error(f"{where}: {'; '.join(problem.text for problem in wrong)}")
    return [f"{where}: {problem.text}" for problem in problems]


def check(profile: Profile, published: Collection[str] = ()) -> Iterator[Problem]:
    """Yield the problems of a profile; `published`: topics that other processes publish in its domain now."""
    for problem in _problems(profile, published):
        yield replace(problem, text=without_credentials(problem.text))


def _problems(profile: Profile, published: Collection[str]) -> Iterator[Problem]:
    here = profile.on_this_host()
    yield from _sources(here)
    yield from _sizes(profile)
    yield from _endpoints(profile)
    recorded: list[str] = []
    yield from _replay(here, recorded)
    if profile.fusion is not None:
        yield from _inputs(profile, profile.fusion, {*profile.published(), *recorded, *published})
    if here.fusion is not None:
        yield from _models(here.fusion)
    if here.recording is not None:
        yield from _recording(here.recording, here.domain)


def _sources(profile: Profile) -> Iterator[Problem]:
    """Files must exist; devices may be connected later."""
    for name, camera in profile.camera.items():
        yield from _source("camera", f"camera.{name}.source", camera.source)
    for name, microphone in profile.microphone.items():
        yield from _source("microphone", f"microphone.{name}.source", microphone.source)
    for name, text_config in profile.text.items():
        if text_config.source not in ("scripted", "terminal"):
            source = text_config.source
            if not os.path.exists(source) or os.path.isdir(source):  # a pipe is allowed
                yield from _absent(f"text.{name}.source", source, no_file(source))


def _source(device: str, key: str, source: int | str) -> Iterator[Problem]:
    """Yield the problems of a device source of a camera or microphone."""
    match source_kind(source), device:
        case "file", _:
            if not os.path.isfile(source):
                yield from _absent(key, str(source), no_file(str(source)))
        case "address", "camera":
            yield from _address(key, str(source))
        case "address", _:
            yield Problem(f"{key}: {source}: a microphone is a device or a file, not an address", DeviceError)
        case "name", "camera":
            text = f"{key}: '{source}' is neither a device index, /dev path, file nor URL"
            yield Problem(text, DeviceError)


def _sizes(profile: Profile) -> Iterator[Problem]:
    """No message may be larger than readers accept."""
    sizes = {
        f"camera.{name}": one.width * one.height * PIXEL_BYTES.get(one.encoding, 0)
        for name, one in profile.camera.items()
    } | {
        f"microphone.{name}": one.channels * one.rate_hz * one.block_ms / 1e3 * SAMPLE_BYTES[one.format]
        for name, one in profile.microphone.items()
    }
    for key, size in sizes.items():
        limit = topics.TOPICS[key.partition(".")[0]].max_payload_bytes
        if size > limit:
            text = f"{key}: its messages would be {size / _MIB:.0f} MiB; at most {limit / _MIB:.0f} are sent"
            yield Problem(text, ProfileError)


def _address(key: str, source: str) -> Iterator[Problem]:
    """Yield addresses that cannot be a camera; other errors are raised when it is opened."""
    try:
        parts = urlsplit(source)
        missing = parts.scheme in _WITH_HOST and not parts.hostname
        wrong = "names no host" if missing else "" if parts.port is None or parts.port else "port 0 is none"
    except ValueError as error:
        wrong = str(error)
    if source.lower().startswith("file:"):
        wrong = "is a file; give its path"
    if wrong:
        yield Problem(f"{key}: {source}: {wrong}", DeviceError)


def _absent(key: str, source: str, what: str) -> Iterator[Problem]:
    beside = "" if Path(source).is_absolute() else f" in {Path.cwd()}"
    yield Problem(f"{key}: {source}: {what}{beside}; correct it, or give a device", DeviceError)


def served(profile: Profile) -> dict[str, str]:
    """Return the endpoints that a profile binds, by key."""
    own = {name: one for name, one in profile.host.items() if name == profile.here}
    given = {
        **{f"camera.{name}.endpoint": camera.endpoint for name, camera in profile.camera.items()},
        **{f"microphone.{name}.endpoint": one.endpoint for name, one in profile.microphone.items()},
        **{f"text.{name}.endpoint": text.endpoint for name, text in profile.text.items()},
        "fusion.endpoint": profile.fusion.endpoint if profile.fusion else None,
        **{f"host.{name}": host.bound(host.port) for name, host in own.items()},
        **{
            f"host.{name} for {topic}": host.bound(port)
            for name, host in own.items()
            for topic, port in profile.ports(name).items()
        },
    }
    return {key: endpoint for key, endpoint in given.items() if endpoint is not None}


def _endpoints(profile: Profile) -> Iterator[Problem]:
    bound = served(profile)
    remote = {f'connect."{topic}"': endpoint for topic, endpoint in profile.connect.items()}
    remote |= {f"host.{name}": other.clock for name, other in profile.other_hosts().items()}
    for key, endpoint in (bound | remote).items():
        if not endpoints.is_safe(endpoint, encrypted=profile.keys is not None, insecure=profile.insecure):
            yield Problem(f"{key}: {endpoints.unsafe(endpoint)}", BusError)
    for (key, endpoint), (other, taken) in combinations(bound.items(), 2):
        one, two = parse(endpoint), parse(taken)
        alike = one.host == two.host or one.host in _ANYWHERE or two.host in _ANYWHERE
        if alike and one.port == two.port and one.port not in ("*", "0"):
            yield Problem(f"{other}: {taken} is taken by {key}; choose another port", BusError)
    if profile.keys is not None:
        from perception.bus.keys import load  # 40 ms of imports

        try:
            trust = load(profile.keys).trust
            for topic, endpoint in profile.connect.items():
                trust.publisher_key(parse(endpoint).name, topic)
        except BusError as error:
            yield Problem(f"keys: {error}", BusError)


def _replay(profile: Profile, recorded: list[str]) -> Iterator[Problem]:
    """Add the topics that the replay publishes to `recorded`; yield the problems of `[replay]`."""
    config = profile.replay
    if config is None:
        return
    from perception.session.file.reader import Session, matches  # loads numpy

    try:
        with Session(config.file) as session:
            held = session.topics
    except SessionError as error:
        yield Problem(f"replay.file: {error}", SessionError)
        return
    if held is None:  # a truncated recording: its topics are unknown before it is played
        recorded += [item.topic for item in profile.fusion.inputs.values()] if profile.fusion else []
        return
    recorded += [topic for topic in held if matches(topic, config.topics)]
    if not recorded:
        wanted, found = ", ".join(config.topics), ", ".join(held) or "nothing"
        text = f"replay.topics: {wanted} match nothing in {config.file}, which holds {found}"
        yield Problem(text, SessionError)
    if config.end_s is not None and config.end_s <= config.start_s:
        yield Problem(f"replay.end_s: ends at {config.end_s:g} s, before it starts", ProfileError)
    outputs = {*profile.published(), *_fused(profile.fusion)}
    if twice := sorted(outputs.intersection(recorded)):
        text = f"replay.topics: {', '.join(twice)} would be published twice; leave it out of one"
        yield Problem(text, ProfileError)


def _fused(fusion: FusionConfig | None) -> list[str]:
    own = [f"{kind}/fusion" for kind in ("clock", "journal", "health", "head")]
    return [] if fusion is None else [f"state/{fusion.name}", *own]


def _inputs(profile: Profile, fusion: FusionConfig, sources: Collection[str]) -> Iterator[Problem]:
    """Every input needs a publisher; the topics of `sources` have one."""
    used = {encoder.input for encoder in fusion.encoders.values()}
    for name, config in fusion.inputs.items():
        key, topic = f"fusion.inputs.{name}", config.topic
        if name not in used:
            yield Problem(f"{key}: no encoder reads it")
        known = any(topics.matches(topic, source) for source in sources)
        if known or any(topics.overlap(topic, pattern) for pattern in profile.connect):
            continue
        kind = topics.kind_of(topic)
        others = sorted(source for source in sources if topics.kind_of(source) == kind)
        if others and kind != "text":
            yield Problem(
                f"{key}.topic: nobody publishes {topic}; there is {', '.join(others)}: correct the topic, "
                f"or the name of the {kind}",
                ProfileError,
            )
        elif profile.replay is not None:
            yield Problem(f"{key}.topic: the session has no {topic}; it is absent in every state")
        else:
            who = "perception say" if kind == "text" else "another program"
            yield Problem(f"{key}.topic: nobody here publishes {topic}; it is absent until {who} does")
    if profile.recording is None:
        for pattern in profile.connect:
            if not any(topics.overlap(pattern, config.topic) for config in fusion.inputs.values()):
                yield Problem(f'connect."{pattern}": no input of the fusion takes it')


def _models(fusion: FusionConfig) -> Iterator[Problem]:
    if not fusion.encoders:
        yield Problem("fusion.encoders: a fusion needs at least one encoder", ProfileError)
    features: dict[str, int | None] = {}
    for name, encoder in fusion.encoders.items():
        features[name] = None
        try:
            options = options_of(name, encoder)
        except ProfileError as error:
            yield Problem(str(error), ProfileError)
            continue
        features[name] = options.features
        topic = fusion.inputs[encoder.input].topic
        if topics.kind_of(topic) != options.modality:
            text = f"fusion.encoders.{name}: '{encoder.kind}' takes {options.modality}, not {topic}"
            yield Problem(text, ProfileError)
        source, path = head_config.source_of(encoder.weights or fusion.weights)
        if source == "local" and not os.path.exists(path):
            yield Problem(f"fusion.encoders.{name}.weights: {path}: no such file or folder", WeightsError)
    try:
        yield from _head(fusion, features)
    except PerceptionError as error:
        yield Problem(f"fusion.head: {error}".replace("fusion.head: fusion.head", "fusion.head"), type(error))


def _head(fusion: FusionConfig, features: Mapping[str, int | None]) -> Iterator[Problem]:
    """Yield why a trained head does not fit the encoders; raise errors of the head itself."""
    source, _ = head_config.source_of(fusion.head.weights)
    if source == "pretrained":
        raise ProfileError("fusion.head.weights: give a checkpoint folder or 'random'")
    if source == "random":
        head_config.check_random_head(fusion.head)
        return
    folder = Path(head_config.head_folder(fusion.head))
    config = head_config.read_head_config(folder)
    if not os.path.isfile(folder / head_config.HEAD_WEIGHTS):
        raise WeightsError(f"{folder}: holds no {head_config.HEAD_WEIGHTS}")
    trained = config.get("dims")
    if not isinstance(trained, dict):
        raise WeightsError(f"{folder / 'config.json'}: dims are missing")
    if wrong := head_config.misfits(trained, features):
        yield Problem(f"fusion.head does not fit fusion.encoders: {'; '.join(wrong)}", ProfileError)


def _recording(config: RecorderConfig, domain: str) -> Iterator[Problem]:
    path = config.file(domain, datetime.now())
    folder = path.absolute().parent
    if not folder.is_dir():
        yield Problem(f"recorder.out: {folder}: no such folder; make it first", SessionError)
    elif not os.access(folder, os.W_OK):
        yield Problem(f"recorder.out: {folder}: no permission to write there", SessionError)
    elif reason := unusable(path):
        yield Problem(f"recorder.out: {path}: {reason}", SessionError)
    elif path.exists() and not path.is_file():
        what = "is a folder; give the name of a file in it" if path.is_dir() else "is no file"
        yield Problem(f"recorder.out: {path}: {what}", SessionError)
