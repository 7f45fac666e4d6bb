"""What tests of several files are given."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perception.bus.api import close
from tests.bus import Bus


def pytest_configure() -> None:
    """Let tests interrupt what they start, also where the suite was started by `nohup` or in the background.

    A shell lets such programs ignore these signals, and what they start inherits that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
