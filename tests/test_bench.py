"""The bench: rounds interleaved, medians and spread, budgets as ratios, an earlier run as a baseline."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perception.bench import features, nodes, report, scale, transport
from perception.bench.child import child
from perception.bench.rounds import Figure, interleave
from perception.cli.main import run
from perception.errors import INTERRUPTED, PerceptionError
from tests.waiting import LONG_S, eventually


def figure(value: float) -> Figure:
    return Figure(value, value, value, 1)


def test_every_case_runs_once_per_round_in_turn() -> None:
    order: list[str] = []

    def case(name: str, values: list[float]) -> dict[str, float]:
        order.append(name)
        return {"us": values.pop(0)}

    a, b = [3.0, 1.0, 2.0], [5.0, 5.0, 8.0]
    figures = interleave({"a": lambda: case("a", a), "b": lambda: case("b", b)}, 3)
    assert order == ["a", "b"] * 3
    assert figures == {"a": {"us": Figure(2.0, 1.0, 3.0, 3)}, "b": {"us": Figure(5.0, 5.0, 8.0, 3)}}


def test_a_ratio_over_its_budget_is_named() -> None:
    limit, own = "limit: numpy FFT of the same hops", "perception"
    assert report.over_budget("features", {limit: {"us": figure(10)}, own: {"us": figure(20)}}) == []
    (line,) = report.over_budget("features", {limit: {"us": figure(10)}, own: {"us": figure(90)}})
    assert line.startswith("perception / limit: numpy FFT of the same hops: us 9.00, at most ")
    assert report.over_budget("features", {own: {"us": figure(90)}}) == []


def test_a_budget_may_hold_one_quantity_against_another() -> None:
    alone = {"demo limit: models alone": {"cpu_us": figure(10_000)}}
    own = {"cpu_us": figure(12_000), "overhead_p50_us": figure(1_000)}
    assert report.over_budget("tick", alone | {"demo": own}) == []
    (line,) = report.over_budget("tick", alone | {"demo": own | {"overhead_p50_us": figure(4_000)}})
    assert line.startswith("demo / demo limit: models alone: overhead_p50_us 0.40")


def test_what_should_grow_in_proportion_is_held_against_a_straight_line() -> None:
    even = {f"cameras {count}": {"cpu_pct": figure(2 + 3 * count)} for count in (1, 2, 4, 8)}
    assert report.straight_lines("scale", even) == ["cameras: cpu_pct = 2 + 3 n, points up to 0.0% off"]
    assert report.over_budget("scale", even) == []
    (line,) = report.over_budget("scale", even | {"cameras 8": {"cpu_pct": figure(60)}})
    assert line.startswith("cameras: cpu_pct")
    assert line.endswith("at most 15% allowed")


def test_a_publisher_is_measured_with_as_many_readers_as_asked_for() -> None:
    found = scale.cases(seconds=0.5)["subscribers 8"]()
    assert found["received"] == 1.0
    assert found["cpu_us"] > 0


def test_only_a_doubling_counts_against_an_earlier_run(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    file.write_text(json.dumps(report.as_json("features", {"perception": {"us": figure(10)}})))
    assert report.against("features", {"perception": {"us": figure(19)}}, file) == []
    assert report.against("features", {"perception": {"us": figure(21)}}, file) == [
        "perception: us 21, was 10"
    ]
    for kind, other in (("startup", file), ("features", tmp_path / "none.json")):
        with pytest.raises(PerceptionError, match=f"no baseline of 'perception bench {kind}'"):
            report.against(kind, {}, other)


def test_a_message_crosses_from_process_to_process_on_every_lane() -> None:
    cases = transport.cases(peers=False, seconds=0.2, sizes=("480p", "state"))
    figures = interleave(cases, 1)
    assert set(figures) >= {
        "480p limit: memcpy",
        "480p perception-loan",
        "480p pyzmq",
        "state perception-state",
    }
    assert all(row["p50_us"].median > 0 for row in figures.values())


def test_features_are_measured_from_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_REPEATS", 3)
    file = tmp_path / "now.json"
    run(["bench", "features", "--rounds", "1", "--json", str(file)])
    assert "torchaudio, whole window" in capsys.readouterr().out
    assert "perception" in json.loads(file.read_text())["features"]


@pytest.mark.parametrize("kind", ["transport", "scale"])
def test_ctrl_c_ends_a_bench_and_its_processes_without_a_message(kind: str) -> None:
    command = (sys.executable, "-m", "perception", "bench", kind)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            eventually(children.read_text)
            os.killpg(process.pid, signal.SIGINT)
            _, printed = process.communicate(timeout=LONG_S)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in printed


def test_an_interrupt_while_a_process_is_started_leaves_none_running() -> None:
    """It comes at the moment at which only the kernel knows the process: between its fork and its program."""
    held, inherited = os.pipe()

    def interrupt() -> None:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.2)

    command = (sys.executable, "-c", "import time; time.sleep(60)")
    with (
        pytest.raises(KeyboardInterrupt),
        child(command, pass_fds=(inherited,), preexec_fn=interrupt) as process,
    ):
        pytest.fail(f"process {process.pid} is used although the bench was interrupted")
    os.close(inherited)
    ended, _, _ = select.select([held], [], [], LONG_S)  # end of file once no process holds the other end
    os.close(held)
    assert ended


def test_a_budget_may_name_a_bound_for_each_of_several_quantities() -> None:
    limit = {"cpu_ms": figure(5.0), "mebibytes": figure(60.0), "growth_kib_s": figure(1.0)}
    limit |= {name: figure(1.0) for name in ("log_bytes_s", "age_p99_ms", "period_ratio", "start_s")}
    camera = limit | {"mebibytes": figure(100.0), "cpu_ms": figure(2.0), "age_p99_ms": figure(40.0)}
    assert report.over_budget("nodes", {"limit": limit, "camera-front": camera}) == []
    lines = report.over_budget(
        "nodes",
        {"limit": limit, "camera-front": camera | {"cpu_ms": figure(50.0), "growth_kib_s": figure(900.0)}},
    )
    assert [line.split()[3] for line in lines] == ["cpu_ms", "growth_kib_s"]


def test_every_node_of_the_demo_has_budgets() -> None:
    from perception.graph.plan import plan
    from perception.profile import load

    names = {node.name for node in plan(load("demo", ("record=true",)), "demo", origin_ns=0)}
    assert set(nodes.NODES) == {*names, "supervisor"}
    budgets = report._budgets("nodes")
    assert {one["of"] for one in budgets} == set(nodes.NODES)
    for name in nodes.NODES:
        kinds = {one["quantity"].partition("_")[0] for one in budgets if one["of"] == name}
        assert kinds >= {"cpu", "mebibytes", "growth", "log", "age", "start"}


def test_growth_and_rate_of_a_node_are_those_of_its_samples() -> None:
    run = nodes._Run("none")
    node = run._nodes["camera-front"]
    node.memory = [(second / 2, 100 + second / 2) for second in range(20)]
    node.ages_ms = [float(age) for age in range(1000)]
    node.first_s, node.log_bytes = 2.0, 500
    figures = run._figures("camera-front", cpu_s=1.0, published=200, took_s=10.0)
    assert figures["growth_kib_s"] == pytest.approx(1024)
    assert figures["cpu_ms"] == pytest.approx(5)
    assert figures["period_ratio"] == pytest.approx(1)
    assert (figures["age_p99_ms"], figures["log_bytes_s"], figures["start_s"]) == (990, 50, 2)
