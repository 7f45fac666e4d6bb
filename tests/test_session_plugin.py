"""The pytest plugin as a user's tests meet it, on a session of some seconds made by the scripted devices."""

import importlib
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from perception.devices.scripted import messages
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig, parse
from perception.session import SessionWriter, replay

pytest_plugins = ["pytester"]

PROFILE = """
[fusion]
threads = 1
[fusion.inputs]
camera = { topic = "camera/front" }
microphone = { topic = "microphone/main" }
text = { topic = "text/*" }
[fusion.encoders]
motion = { input = "camera", kind = "motion" }
level = { input = "microphone", kind = "level" }
[fusion.head]
classes = ["calm", "lively"]
"""
HEADER = """
from pathlib import Path

import pytest
from perception.session.recompute.perturb import delay, drift, drop, freeze, noise, stamp_leap, without
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def session_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sessions") / "room.mcap"
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=20)
    with SessionWriter(file) as writer:
        for message in messages(ScriptConfig(seed=3), camera, MicrophoneConfig(source="scripted"), 3.0):
            writer.write(message)
    # what a run inside this process loads first is unloaded after it, which torch does not survive
    profile = parse(tomllib.loads(PROFILE), where="test")
    assert list(replay(file, profile))
    importlib.import_module("torch._dynamo")  # which the first seed anywhere loads
    return file


@pytest.fixture
def run(pytester: pytest.Pytester, session_file: Path, pytestconfig: pytest.Config) -> Run:
    """Run a test file beside the session and its profile, in this process."""
    (pytester.path / "room.mcap").write_bytes(session_file.read_bytes())
    (pytester.path / "room.toml").write_text(PROFILE)
    installed = pytestconfig.pluginmanager.has_plugin("perception")
    plugin = () if installed else ("-p", "perception.session.recompute.pytest_plugin")

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(HEADER + dedent(source))
        return pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", "--strict-markers", *arguments)

    return run


def test_a_test_gets_the_states_of_its_session(run: Run) -> None:
    result = run(
        """
        @pytest.mark.session("room.mcap", profile="room.toml")
        def test_room(states):
            assert len(states) == 29
            assert states[-1].modalities["camera"].presence == "present"
            assert states[-1].modalities["microphone"].presence == "present"
            assert states[5].modalities["microphone"].reason == "filling"
        """
    )
    result.assert_outcomes(passed=1)


def test_every_perturbation_is_one_line_and_does_what_it_says(run: Run) -> None:
    result = run(
        """
        def reasons(states, name):
            return {state.modalities[name].reason for state in states[15:]}

        @pytest.mark.session(Path("room.mcap"), without("camera"), profile=Path("room.toml"))
        def test_blind(states):
            assert reasons(states, "camera") == {"never"}
            assert len(states) == 29

        @pytest.mark.session("room.mcap", delay("microphone", ms=150), profile="room.toml")
        def test_late(states):
            assert "late" in reasons(states, "microphone")

        @pytest.mark.session("room.mcap", delay("microphone", ms=10), profile="room.toml")
        def test_a_little_late(states):
            assert "late" not in reasons(states, "microphone")

        @pytest.mark.session("room.mcap", drop(rate=0.1, seed=1), profile="room.toml")
        def test_gaps(states):
            assert reasons(states, "microphone") & {"gap"}

        @pytest.mark.session("room.mcap", freeze("camera"), profile="room.toml")
        def test_frozen(states):
            assert all(s.modalities["camera"].branches["motion"].scores == (0.0,) for s in states)

        @pytest.mark.session("room.mcap", stamp_leap("camera", ms=5000, at_s=1.5), profile="room.toml")
        def test_leap(states):
            assert len(states) == 29

        @pytest.mark.session("room.mcap", noise(snr_db=5), drift(ppm=100), profile="room.toml")
        def test_two_at_once(states):
            assert reasons(states, "microphone") == {""}
        """
    )
    result.assert_outcomes(passed=7)


GOLDEN = """
@pytest.mark.session("room.mcap", profile="room.toml")
def test_room(assert_states):
    assert_states(golden="room.jsonl", tolerance=1e-9)
"""


def test_golden_states_are_written_compared_and_their_first_difference_told(run: Run) -> None:
    missing = run(GOLDEN)
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["*room.jsonl: no such golden file; write it with: pytest --update-golden"])
    run(GOLDEN, "--update-golden").assert_outcomes(passed=1)
    run(GOLDEN).assert_outcomes(passed=1)
    file = Path("room.jsonl")
    states = [json.loads(line) for line in file.read_text().splitlines()]
    states[3]["fused"]["probabilities"][1] += 1e-6
    file.write_text("".join(f"{json.dumps(state)}\n" for state in states))
    result = run(GOLDEN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*1 of 29 states differ, first number 3 (tick *): fused.probabilities.1: expected *, actual *"]
    )
    file.write_text("".join(f"{json.dumps(state)}\n" for state in states[:-2]))
    run(GOLDEN.replace("1e-9", "1e-3")).stdout.fnmatch_lines(["*27 states are expected, 29 were computed*"])


def test_the_golden_file_is_named_after_the_test_by_default(run: Run) -> None:
    source = """
        @pytest.mark.session("room.mcap", profile="room.toml")
        def test_room(assert_states):
            assert_states()
        """
    run(source, "--update-golden").assert_outcomes(passed=1)
    assert Path("golden/test_room.jsonl").is_file()
    run(source).assert_outcomes(passed=1)


def test_a_fixture_may_make_the_session(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def recorded(request):
            return request.path.parent / "room.mcap"

        @pytest.mark.session("recorded", profile="room.toml")
        def test_room(states):
            assert states
        """
    )
    result.assert_outcomes(passed=1)


def test_mistakes_are_one_clear_line(run: Run) -> None:
    result = run(
        """
        def test_no_marker(states):
            pass

        @pytest.mark.session("missing.mcap")
        def test_no_file(states):
            pass

        @pytest.mark.session("room.mcap")
        def test_no_profile(states):
            pass
        """
    )
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "*the fixture 'states' needs @pytest.mark.session(PATH)*",
            "*missing.mcap: no such session*",
            "*contains no profile; give the one it was recorded with*",
        ]
    )


PROBLEMS = {
    'profile="lapdog"': "*room.mcap: *lapdog*",
    'profile="none.toml"': "*room.mcap: *none.toml*",
    'profile="key.toml"': "*room.mcap: *key.toml: fusion.hops: *",
    'profile="fusionless.toml"': "*room.mcap: *fusionless.toml: the profile has no [[]fusion] table*",
    'profile="kind.toml"': "*room.mcap: *kind.toml: fusion.encoders.motion.kind: 'smell' is no kind*",
    'profile="weights.toml"': "*room.mcap: *weights.toml: *no/such/weights*",
    'profile="head.toml"': "*room.mcap: *no/such/head*",
    'without("camera", from_s=900), profile="room.toml"': "*room.mcap: without('camera', *) changes nothing; "
    "the recording is from 0.000 to *",
    'without("nose"), profile="room.toml"': "*room.mcap: without('nose', *) changes nothing; inputs there "
    "are camera/front, microphone/main",
}


def test_a_wrong_profile_or_missing_weights_are_one_line(run: Run) -> None:
    changed = {
        "key": PROFILE.replace("threads", "hops"),
        "fusionless": 'domain = "x"\n',
        "kind": PROFILE.replace('kind = "motion"', 'kind = "smell"'),
        "weights": PROFILE.replace('kind = "motion"', 'kind = "torchvision", weights = "no/such/weights"'),
        "head": PROFILE + 'weights = "no/such/head"\n',
    }
    for name, text in changed.items():
        Path(f"{name}.toml").write_text(text)
    result = run(
        "\n".join(
            f"""
@pytest.mark.session("room.mcap", {profile})
def test_{number}(states):
    pass
"""
            for number, profile in enumerate(PROBLEMS)
        )
    )
    result.assert_outcomes(errors=len(PROBLEMS))
    for number, line in enumerate(PROBLEMS.values()):
        result.stdout.fnmatch_lines_random(line)
        assert len(report_of(result, f"test_{number}")) == 1


def report_of(result: pytest.RunResult, test: str) -> list[str]:
    """The lines on a test's error between its heading and the next."""
    start = next(at for at, line in enumerate(result.outlines) if f"ERROR at setup of {test} _" in line)
    rest = result.outlines[start + 1 :]
    return rest[: next(at for at, line in enumerate(rest) if line[:1] in "_=" and line[-1:] in "_=")]


def test_a_damaged_session_or_golden_file_and_a_fixture_that_is_not_there_are_one_line(run: Run) -> None:
    Path("broken.mcap").write_bytes(b"no session")
    Path("broken.jsonl").write_text("{")
    result = run(
        """
        @pytest.mark.session("broken.mcap", profile="room.toml")
        def test_session(states):
            pass

        @pytest.mark.session("recorded")
        def test_fixture(states):
            pass

        @pytest.mark.session("room.mcap", profile="room.toml")
        def test_golden(assert_states):
            assert_states(golden="broken.jsonl")
        """
    )
    result.assert_outcomes(errors=2, failed=1)
    assert report_of(result, "test_fixture") == ["recorded: no such session, and no such fixture"]
    (line,) = report_of(result, "test_session")
    assert line.endswith("broken.mcap: not an MCAP file")
    result.stdout.fnmatch_lines(["*broken.jsonl: no states, one as JSON a line (*; write it with: pytest *"])
    nowhere = GOLDEN.replace("room.jsonl", "room.mcap/room.jsonl")
    run(nowhere, "--update-golden").stdout.fnmatch_lines(["*room.mcap/room.jsonl: cannot be written: *"])


def test_the_plugin_costs_other_tests_nothing(pytester: pytest.Pytester) -> None:
    code = "import sys, perception.session.recompute.pytest_plugin\n"
    code += "print('numpy' in sys.modules, 'torch' in sys.modules)"
    assert pytester.run(sys.executable, "-c", code).outlines[-1] == "False False"


def test_what_was_refused_is_said_at_the_end_and_nothing_at_all_is_one_line(run: Run) -> None:
    result = run(
        """
        from perception.session.recompute.perturb import stamp_leap

        @pytest.mark.session("room.mcap", stamp_leap("camera", ms=9000, at_s=1, count=3), profile="room.toml")
        def test_leap(states):
            assert len(states) == 29

        @pytest.mark.session("room.mcap", without("*"), profile="room.toml")
        def test_nothing(states):
            pass

        @pytest.mark.session("room.mcap", profile="none.toml")
        def test_no_profile(states):
            pass
        """
    )
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*room.mcap: messages: no state computed: the recording of * is shorter than a tick of 100 ms",
            "*none.toml: no such profile file",
            "room.mcap, stamp_leap(*): camera/front: refused: stamp ahead (3 times)",
        ]
    )
    assert len(result.stdout.lines) < 40
