"""What tests of several files are given."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from perception.bus.api import close
from tests.bus import Bus

FAST: Final = {
    "bus_codec", "bus_keys", "bus_mailbox", "bus_packet", "clock", "clock_remote", "devices_camera",
    "devices_media", "devices_pixels", "devices_signal_sound", "devices_text",
    "features_audio", "features_image", "features_jpeg", "features_logmel", "features_mfcc",
    "features_resample", "features_window", "fusion_core", "fusion_decoder", "models_checkpoint",
    "host_times", "models_fusion", "models_pooling", "out_file", "panel", "profile", "profile_hosts",
    "progress",
    "session_format", "session_mcap", "session_perturb", "session_selection", "suite", "summary",
    "signal_camera", "training_labels"
}  # fmt: skip
"""The files of `pytest -m fast`: they start no process and load no large model."""
_STARTS: Final = frozenset({"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"})
_running_fast = False


# Processes that tests start would compile the whole package, for up to 3 s each, if it were stored nowhere.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Threads of torch wait asleep: those that spin take the cores that other workers of the tests compute on.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure() -> None:
    """Let tests interrupt what they start, also where the suite was started by `nohup` or in the background.

    A shell lets such programs ignore these signals, and what they start inherits that.
    No test of the fast part may start anything.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.addaudithook(_refuse_processes)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores, as many tests wait for processes; at most 8, each of 1.5 GB."""
    return min(8, len(os.sched_getaffinity(0)) + 1)


def _refuse_processes(event: str, _: tuple[object, ...]) -> None:
    if event in _STARTS and _running_fast:
        raise AssertionError("a test of the fast part starts a process")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only the files of the fast part if only they are asked for: the others import every library."""
    other = collection_path.suffix == ".py" and not _is_fast(collection_path)
    return True if other and config.option.markexpr == "fast" else None


def _is_fast(path: Path) -> bool:
    return path.stem.removeprefix("test_") in FAST


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the fast part."""
    if _is_fast(item.path):
        item.add_marker("fast")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let torch compute in one thread unless a test wants more: small models gain nothing by more."""
    global _running_fast
    _running_fast = _is_fast(item.path)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let workers report what is no text, which some tests log: they send UTF-8."""
    return _as_text((yield))


def _as_text(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _as_text(item) for key, item in value.items()}
        case list() | tuple():
            return [_as_text(item) for item in value]
    return value


@pytest.fixture
def bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:  # a short path: sockets lie in it
        yield Bus(Path(folder))


@pytest.fixture(autouse=True, scope="session")
def runtime_directory_of_all() -> Iterator[None]:
    """Where processes meet that fixtures of many tests start."""
    with tempfile.TemporaryDirectory(prefix="run") as folder, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PERCEPTION_RUNTIME_DIR", folder)
        environment.delenv("PERCEPTION_DOMAIN", raising=False)
        yield


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where processes that a test starts meet: nowhere near the graphs of whoever runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="run"))
    monkeypatch.setenv("PERCEPTION_RUNTIME_DIR", str(folder))
    yield folder
    close()
    shutil.rmtree(folder, ignore_errors=True)
