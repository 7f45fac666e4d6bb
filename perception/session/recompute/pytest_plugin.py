"""A pytest plugin: tests run on recorded sessions, as they are or perturbed.

    from perception.session.recompute.perturb import delay, without

    @pytest.mark.session("kitchen.mcap", without("camera"), profile="robot")
    def test_hears_the_command(states, assert_states):
        assert states[-1].fused.label == "come"
        assert_states(golden="kitchen-blind.jsonl", tolerance=1e-6)

`pytest --update-golden` writes the current states as the expected ones.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

from perception.errors import PerceptionError, located
from perception.io.text_file import read_text

if TYPE_CHECKING:
    from perception.messages import FusedState
    from perception.session.recompute.perturb import Perturbation

_FOLDER: Final = "golden"
_UPDATE: Final = "--update-golden"
_Made = TypeVar("_Made")
_Kind = type[Exception] | tuple[type[Exception], ...]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-golden`."""
    group = parser.getgroup("perception")
    group.addoption(_UPDATE, action="store_true", help="write the current states as the expected ones")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "session(path, *perturbations, profile=None): run on a recorded session. The path is relative to the "
        "test file, or the name of a fixture that returns one; without a profile, the recorded one is used.",
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    path: Path
    modified_ns: int
    profile: str | None
    """Name of a shipped profile or path of a file."""
    perturbations: "tuple[Perturbation, ...]"

    def __str__(self) -> str:
        return ", ".join([self.path.name, *map(str, self.perturbations)])


_LOST: Final = pytest.StashKey[dict[_Wanted, list[str]]]()
"""Lines about what did not enter the windows, by session."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what of the sessions did not enter the windows."""
    lines = [f"{wanted}: {line}" for wanted, lost in config.stash.get(_LOST, {}).items() for line in lost]
    if lines:
        terminalreporter.section("perception sessions")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def states(request: pytest.FixtureRequest) -> "list[FusedState]":
    """The states of the test's session, measured fields at their defaults."""
    mark = request.node.get_closest_marker("session")
    if mark is None or not mark.args:
        pytest.fail("the fixture 'states' needs @pytest.mark.session(PATH)", pytrace=False)
    source, *perturbations = mark.args
    path = request.path.parent / str(source)
    if not path.suffix and not path.exists():
        path = _from_fixture(request, str(source))
    if not path.is_file():
        pytest.fail(f"{path}: no such session", pytrace=False)
    profile = mark.kwargs.get("profile")
    if profile is not None:
        beside = str(profile).endswith(".toml")
        profile = str(request.path.parent / profile) if beside else str(profile)
    # wrong profile, missing weights, damaged session: the code under test is not the cause
    wanted = _Wanted(path, path.stat().st_mtime_ns, profile, tuple(perturbations))
    found, lost = _or_fail(
        lambda: _replayed(wanted),
        PerceptionError,
        lambda error: f"{path}: {str(error).removeprefix(f'{path}: ')}",
    )
    request.config.stash.setdefault(_LOST, {})[wanted] = lost
    return list(found)


def _from_fixture(request: pytest.FixtureRequest, name: str) -> Path:
    return _or_fail(
        lambda: Path(request.getfixturevalue(name)),
        pytest.FixtureLookupError,
        lambda error: f"{name}: no such session, and no such fixture",
    )


def _or_fail(make: Callable[[], _Made], kind: _Kind, text: Callable[[Exception], str]) -> _Made:
    """Return the result of `make`; on an error of this kind the test fails with one line."""
    try:
        return make()
    except kind as error:
        line = " ".join(text(error).split())
    pytest.fail(line, pytrace=False)  # outside of `except`, or pytest would show the error itself too


@pytest.fixture
def assert_states(request: pytest.FixtureRequest, states: "list[FusedState]") -> Callable[..., None]:
    """Compare the states with a golden file: `assert_states(golden=..., tolerance=...)`."""

    def check(golden: str | Path | None = None, tolerance: float = 0.0) -> None:
        """Fail unless the states are those of the file.

        Args:
            golden: relative to the test file; `golden/<test>.jsonl` if not given.
            tolerance: how far floats may be apart; 0 means equal in every bit.
        """
        __tracebackhide__ = True
        file = request.path.parent / (golden or f"{_FOLDER}/{request.node.name}.jsonl")
        actual = [_plain(state) for state in states]
        if request.config.getoption(_UPDATE, default=False):
            _or_fail(
                lambda: _write(file, actual), OSError, lambda error: f"{file}: cannot be written: {error}"
            )
        elif not file.is_file():
            pytest.fail(f"{file}: no such golden file; write it with: pytest {_UPDATE}", pytrace=False)
        else:
            expected = _read(file)
            if problem := compare_states(expected, actual, tolerance):
                pytest.fail(f"{file}: {problem}; if that is meant: pytest {_UPDATE}", pytrace=False)

    return check


def _write(file: Path, states: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(one)}\n" for one in states), encoding="utf-8")


def _read(file: Path) -> list[dict[str, Any]]:
    return _or_fail(
        lambda: [json.loads(line) for line in read_text(file).splitlines()],
        (OSError, ValueError),
        lambda error: f"{file}: no states, one as JSON a line ({error}); write it with: pytest {_UPDATE}",
    )


def compare_states(
    expected: Sequence[dict[str, Any]], actual: Sequence[dict[str, Any]], tolerance: float = 0.0
) -> str:
    """Return in one line how plain states differ, empty if they do not."""
    from perception.session.recompute.compare import first_difference

    found = [first_difference(one, other, tolerance) for one, other in zip(expected, actual, strict=False)]
    differing = [(index, difference) for index, difference in enumerate(found) if difference is not None]
    if differing:
        index, first = differing[0]
        return (
            f"{len(differing)} of {len(expected)} states differ, first number {index} "
            f"(tick {actual[index]['tick']}): {first}"
        )
    if len(expected) != len(actual):
        return f"{len(expected)} states are expected, {len(actual)} were computed; the others are the same"
    return ""


@lru_cache(maxsize=8)
def _replayed(wanted: _Wanted) -> "tuple[tuple[FusedState, ...], list[str]]":
    """Return the states, and lines about what did not enter their windows."""
    # imported here: every pytest run loads this plugin, and few need torch
    from perception.profile import load
    from perception.session.recompute.cutting import account
    from perception.session.recompute.engines import replay
    from perception.session.recompute.perturb import Perturbed
    from perception.session.recompute.source import Recording
    from perception.units import Counts

    counts: Counts = defaultdict(Counter)
    with located(wanted.profile), Recording(wanted.path) as recording:
        profile = recording.profile if wanted.profile is None else load(wanted.profile)
        source = Perturbed(recording, *wanted.perturbations) if wanted.perturbations else wanted.path
        return tuple(replay(source, profile, counts=counts)), account(counts)


def _plain(state: "FusedState") -> dict[str, Any]:
    """Return the unmeasured fields as plain JSON data, without the model's hashes."""
    from perception.session.recompute.compare import unmeasured_fields

    plain: dict[str, Any] = json.loads(json.dumps({**unmeasured_fields(state), "model": None}))
    del plain["model"]
    return plain
