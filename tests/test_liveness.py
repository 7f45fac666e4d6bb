"""What hangs, ends or is missing is noticed in time, by everyone, and is not shown as if it worked."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from msgspec import structs

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.cli.panel import Board, node_table, standings
from perception.cli.summary import Summary
from perception.cli.summary_tables import print_report
from perception.graph import processes
from perception.graph.liveness import SILENT_S, Progress, Pulse, Standing, standing
from perception.graph.plan import Node
from perception.graph.supervisor import Supervisor
from perception.messages import PROCESS, Health, Message
from tests.test_panel import health, panel_of, state, text_of
from tests.test_up import up
from tests.waiting import LONG_S, eventually

SECOND: Final = 1_000_000_000
TWO_STREAMS: Final = (
    "domain = 'test'\n[text.script]\nsource = 'scripted'\n"
    "[camera.front]\nsource = 'scripted'\nwidth = 64\nheight = 48\n"
)


def silent(pulse: Pulse, *samples: tuple[float, Progress | None]) -> list[bool]:
    """Return what a pulse that beat at 0 decides at each time."""
    pulse.beat(0.0)
    return [pulse.hangs(at_s, iter([progress]).__next__) for at_s, progress in samples]


def test_a_main_thread_without_any_progress_hangs_after_two_and_a_half_seconds() -> None:
    for still in (Progress("T", 7), Progress("S", 7)):
        found = silent(Pulse(), (1.4, still), (1.5, still), (2.4, still), (2.6, still))
        assert found == [False, False, False, True]


def test_what_only_lacks_a_processor_or_waits_for_a_disk_is_given_ten_seconds() -> None:
    changes = [(Progress(one, 7), Progress(two, 7)) for one, two in (("R", "R"), ("S", "R"), ("S", "D"))]
    for before, after in (*changes, (Progress("S", 7), Progress("S", 8)), (None, None)):
        found = silent(Pulse(), (1.5, before), (2.6, after), (9.9, after), (10.1, after))
        assert found == [False, False, False, True]


def test_a_debugger_and_a_stopped_supervisor_are_no_hang() -> None:
    traced = Progress("t", 7)
    assert silent(Pulse(), (1.5, traced), (2.6, traced), (100.0, traced)) == [False] * 3
    pulse = Pulse()
    pulse.beat(0.0)
    pulse.pause(60.0)
    assert pulse.silent_s(61.0) == 1.0


def test_a_start_may_take_minutes_as_long_as_something_happens() -> None:
    loading, hung = Pulse(), Pulse()
    for second in range(200):
        assert not loading.hangs(float(second), iter([Progress("S", second)]).__next__)
    found = [hung.hangs(float(second), iter([Progress("T", 7)]).__next__) for second in range(70)]
    assert found.index(True) == 60


def test_a_signal_that_interrupts_a_wait_or_another_handler_never_blocks_the_node() -> None:
    """Thousands of signals while the main thread waits; an event of `threading` deadlocks here."""
    code = (
        "import os, signal, threading, time\nfrom perception.graph.processes import StopEvent\n"
        "stopped, end = StopEvent(), StopEvent()\n"
        "signal.signal(signal.SIGTERM, lambda *_: stopped.set())\n"
        "def shower():\n"
        "    for _ in range(20_000): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    end.set()\n"
        "threading.Thread(target=shower, daemon=True).start()\n"
        "while not end.is_set():\n"
        "    stopped.wait(0.001); stopped.is_set()\n"
        "assert stopped.is_set() and stopped.wait() and not StopEvent().wait(0.01)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=LONG_S, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_how_a_node_stands_is_decided_by_its_age_and_its_process() -> None:
    works, dim = Health(stamp_ns=0, node="a"), Health(stamp_ns=0, node="a", status="degraded", reason="dim")
    assert standing(works, SILENT_S) == Standing("ok")
    assert standing(dim, 0.1) == Standing("degraded", "dim")
    assert standing(works, 9.0) == Standing("lost", "no sign of life for 9.0 s")
    assert standing(None, 9.0) == Standing("lost", "no sign of life for 9.0 s")
    assert standing(works, 0.1, "ended with 137, restarts") == Standing("lost", "ended with 137, restarts")
    assert standing(works, 0.1, "lost: no sign of life for 3.0 s").status == "lost"
    assert standing(works, 9.0, "finished") == Standing("ok", "finished")
    assert standing(None, 9.0, "loading models, 9 s") == Standing("ok", "loading models, 9 s")


def test_nothing_that_is_nine_seconds_old_is_shown_as_if_it_worked() -> None:
    filled = Board()
    for second in (1, 2):
        filled.add(structs.replace(health(second, published=30 * second), received_ns=second * SECOND))
    for tick in range(3):
        filled.add(structs.replace(state(tick), received_ns=2 * SECOND))
    filled.now_ns = 2 * SECOND
    fresh = "\n".join(panel_of(filled, {"camera-front": "running"}, width=120))
    assert "present" in fresh
    assert "30.0 Hz" in fresh
    filled.now_ns = 11 * SECOND
    stale = panel_of(filled, {"camera-front": "running"}, width=120)
    for line in stale[2:4]:
        assert "unknown" in line
        assert "Hz" not in line
    ages = [int(found[1]) for line in stale if (found := re.search(r"(\d+) ms +unknown", line))]
    assert min(ages) >= 9000
    assert "no state for 9.0 s" in stale[4]
    assert any("camera-front no sign of life for 9.0 s" in line for line in stale)
    assert "lost: no sign of life for 9.0 s" in text_of(node_table(filled))


def test_nodes_that_the_profile_names_and_that_are_missing_are_listed() -> None:
    processes_now: dict[str, str | float] = {
        "fusion": "ended with 137, restarts",
        "camera-front": "running",
        PROCESS: 12,
    }
    supervisor = Health(stamp_ns=SECOND, node="supervisor", device=processes_now)
    elsewhere = Health(stamp_ns=SECOND, node="supervisor-base", device={"camera-rear": "ended with 3"})
    filled = Board()
    for one in (supervisor, elsewhere):
        filled.add(Message("health/supervisor", one, received_ns=SECOND))
    filled.now_ns = 4 * SECOND // 2
    found = standings(filled, published=["text-a"], since_ns=0)
    assert found["fusion"] == Standing("lost", "ended with 137, restarts")
    assert found["camera-front"] == Standing("ok", "starting")
    assert found["camera-rear"] == Standing("lost", "ended with 3")
    filled.now_ns = 3 * SECOND
    assert standings(filled, published=["text-a"], since_ns=0)["text-a"].status == "lost"
    shown = text_of(node_table(filled, published=["text-a"], since_ns=0))
    assert "ended with 137, restarts" in shown
    assert "no sign of life for 3.0 s" in shown


def test_the_summary_names_what_did_not_work_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(hop_ns=SECOND // 10, lateness_ns=0)
    lost = "lost: no sign of life for 3.0 s"
    summary.add_nodes({"fusion": lost, "text-a": "finished", "camera": "running"})
    report = summary.report()
    assert report.as_dict()["missing"] == {"fusion": lost}
    print_report(report, sys.stdout)
    assert "nodes that did not work at the end:\n" in capsys.readouterr().out


HANGING: Final = (
    "import sys, time\nfrom perception.graph.processes import show_stacks_on_signal\n"
    "show_stacks_on_signal()\ndef blocked_in_the_driver():\n    print('up', flush=True)\n    time.sleep(60)\n"
    "blocked_in_the_driver()"
)


@pytest.mark.parametrize("stopped", [False, True], ids=["sleeps", "SIGSTOP"])
def test_a_node_that_hangs_is_lost_shows_where_is_killed_and_started_again(stopped: bool) -> None:
    node = Node("camera", (sys.executable, "-u", "-c", HANGING))
    lines: list[str] = []
    with Supervisor([node]) as supervisor:

        def says(text: str) -> bool:
            supervisor.poll()
            lines.extend(line for _, line in supervisor.lines())
            return text in "\n".join(lines)

        eventually(lambda: says("up"))
        pid = supervisor.pids()["camera"]
        elsewhere = Health(stamp_ns=0, source="other#1", node="other", device={PROCESS: pid})
        supervisor.beat(elsewhere)  # of another host, where this number is another process
        assert supervisor._running[0].pulse.beat_s is None
        supervisor.beat(Health(stamp_ns=0, source="camera#1", node="camera", device={PROCESS: pid}))
        hung_s = time.monotonic()
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: says("it hangs and is killed"))
        noticed_s = time.monotonic() - hung_s
        assert supervisor.status()["camera"].startswith("lost: no sign of life for ")
        assert supervisor.health().status == "degraded"
        eventually(lambda: says("restarts in"))
        assert not processes.runs(pid)
        assert supervisor.health().counts == {"camera hung": 1, "camera restarted": 1}
        eventually(lambda: says("restarts in") and lines.count("up") == 2)
        assert supervisor.status() == {"camera": "running"}
    assert SILENT_S <= noticed_s < 6.0  # long before the ten seconds of one that only lacks a processor
    assert stopped or any("in blocked_in_the_driver" in line for line in lines)


@pytest.fixture
def graph(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    profile = tmp_path / "graph.toml"
    profile.write_text(TWO_STREAMS)
    with up(profile) as process:
        yield process


def test_a_stopped_node_is_lost_for_everyone_and_comes_back(graph: "subprocess.Popen[str]") -> None:
    """Real processes: the supervisor's health names all nodes, and `nodes` lists the one that hangs."""
    with Subscriber("health/*", runtime=Runtime("test"), clock=HostClock().now_ns) as subscriber:
        pids: dict[str, int] = {}
        while len(pids) < 3:
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert isinstance(message.header, Health)
            pids[message.header.node] = int(message.header.device[PROCESS])
        assert pids.keys() == {"supervisor", "text-script", "camera-front"}
        assert pids["supervisor"] == graph.pid
        os.kill(pids["camera-front"], signal.SIGSTOP)
        stopped_s = time.monotonic()
        lost = next_health(subscriber, lambda one: one.node == "supervisor" and one.status != "ok")
        assert time.monotonic() - stopped_s < 6.0
        assert lost.reason.startswith("camera-front: lost: no sign of life for ")
        next_health(
            subscriber,
            lambda one: one.node == "camera-front" and one.device[PROCESS] != pids["camera-front"],
        )


def next_health(subscriber: Subscriber, wanted: Callable[[Health], bool]) -> Health:
    while (message := subscriber.receive(LONG_S)) is not None:
        if isinstance(message.header, Health) and wanted(message.header):
            return message.header
    raise AssertionError("none came")
