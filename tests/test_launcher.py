"""What a profile starts, when a crashed node is restarted, and that no process is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.devices.backoff import Backoff
from perception.errors import PerceptionError, ProfileError
from perception.graph import processes
from perception.graph.domain_lock import DomainLock
from perception.graph.lines import Lines
from perception.graph.plan import Node, plan
from perception.graph.restart import Decision, RestartPolicy
from perception.graph.supervisor import Supervisor
from perception.profile import Profile, parse
from tests.waiting import LONG_S, eventually

FUSION = {"inputs": {"camera": {"topic": "camera/front"}}, "encoders": {}, "head": {"weights": "random"}}


def profile(**sections: object) -> Profile:
    return parse(dict(sections), where="test")


def script(name: str, code: str, *, capture: bool = True, **environment: str) -> Node:
    return Node(name, (sys.executable, "-u", "-c", code), environment, capture)


def run_until(supervisor: Supervisor, done: Callable[[list[str]], bool]) -> list[str]:
    """Drive the supervisor until its lines satisfy `done`; return the lines."""
    lines: list[str] = []
    deadline_s = time.monotonic() + LONG_S
    while not done(lines):
        assert time.monotonic() < deadline_s, lines
        supervisor.poll()
        lines += [f"{name}: {line}" for name, line in supervisor.lines()]
        time.sleep(0.005)
    return lines


def test_each_stream_of_a_profile_is_one_process_started_by_name() -> None:
    nodes = plan(
        profile(
            camera={"front": {"source": "scripted"}, "rear": {"source": 0}},
            microphone={"head": {"source": "scripted"}},
            text={"console": {"source": "scripted"}},
            fusion=FUSION,
        ),
        "robot.toml",
        ("fusion.hop_ms=200",),
        origin_ns=42,
    )
    assert [node.name for node in nodes] == [
        "fusion",
        "camera-front",
        "camera-rear",
        "microphone-head",
        "text-console",
    ]
    module, options = "perception.nodes.camera", ("--set", "fusion.hop_ms=200")
    assert nodes[1].command == (
        *(sys.executable, "-P", "-m", module, "robot.toml", "--name=front"),
        *options,
    )
    assert nodes[0].command == (sys.executable, "-P", "-m", "perception.nodes.fusion", "robot.toml", *options)
    assert {node.environment["PERCEPTION_ORIGIN_NS"] for node in nodes} == {"42"}
    assert [node.environment.get("OMP_NUM_THREADS") for node in nodes] == [None] + ["1"] * 4
    assert [node.capture for node in nodes] == [False] + [True] * 4


def test_only_the_text_node_that_reads_the_terminal_gets_it() -> None:
    nodes = plan(profile(text={"typed": {}, "file": {"source": "lines.txt"}}), "p", origin_ns=0)
    assert [node.terminal for node in nodes] == [True, False]


def test_two_readers_of_one_terminal_are_refused() -> None:
    with pytest.raises(ProfileError, match="only one text source can read the terminal, not text-a, text-b"):
        plan(profile(text={"a": {}, "b": {}}), "p", origin_ns=0)


def test_a_profile_without_nodes_is_refused() -> None:
    with pytest.raises(ProfileError, match="nothing to start"):
        plan(profile(), "p", origin_ns=0)


def test_restarts_back_off_to_ten_seconds() -> None:
    policy = RestartPolicy()
    delays = [policy.decide(1, worked_s=0.1) for _ in range(7)]
    assert delays == [(Decision.RESTART, delay) for delay in (0.5, 1, 2, 4, 8, 10, 10)]


def test_ten_healthy_seconds_forgive_earlier_crashes() -> None:
    policy = RestartPolicy()
    delays = [policy.decide(139, worked_s)[1] for worked_s in (0.1, 0.1, 9.9, 10.0, 0.1)]
    assert delays == [0.5, 1, 2, 0.1, 1]


def test_a_node_that_works_for_a_while_each_time_is_down_for_at_most_half_of_it() -> None:
    policy = RestartPolicy()
    assert [policy.decide(139, 4.0)[1] for _ in range(5)] == [0.1, 1, 2, 2, 2]


def test_a_node_counts_as_failing_whatever_moment_one_asks() -> None:
    policy = RestartPolicy()
    assert not policy.failing(None)
    policy.decide(3, worked_s=0)
    assert policy.failing(None)
    assert not policy.failing(0.1), "it crashed once, and reports that it works again"
    policy.decide(3, worked_s=2)
    assert policy.failing(None)
    assert policy.failing(2.0), "it crashes every other second"
    assert not policy.failing(10.0)
    policy.decide(0, worked_s=0)
    assert not policy.failing(None)


def test_what_a_restart_cannot_mend_stops_everything() -> None:
    assert RestartPolicy().decide(2, worked_s=100)[0] is Decision.STOP_ALL
    assert RestartPolicy().decide(4, worked_s=1)[0] is Decision.STOP_ALL


def test_exit_code_zero_is_a_finished_node() -> None:
    assert RestartPolicy().decide(0, worked_s=0.1)[0] is Decision.FINISHED


@given(st.lists(st.tuples(st.sampled_from([1, 3, 5, 134, 137]), st.floats(0, 1e6)), max_size=100))
def test_no_history_of_crashes_leaves_the_bounds(history: list[tuple[int, float]]) -> None:
    policy = RestartPolicy()
    for code, worked_s in history:
        decision, delay_s = policy.decide(code, worked_s)
        assert decision is Decision.RESTART
        assert 0.1 <= delay_s <= 10


def test_lines_of_all_nodes_arrive_under_their_names() -> None:
    out = script("out", "import os; print('hello', os.environ['WHO'])", WHO="robot")
    err = script("err", r"import sys; sys.stderr.buffer.write(b'bad \xff\n')")
    with Supervisor([out, err]) as supervisor:
        lines = run_until(supervisor, lambda lines: len(lines) == 2)
    assert sorted(lines) == ["err: bad \N{REPLACEMENT CHARACTER}", "out: hello robot"]


def test_a_line_without_end_is_cut_not_collected() -> None:
    with Supervisor([script("loud", "print('x' * 10_000)")]) as supervisor:
        lines = run_until(supervisor, lambda lines: sum(map(len, lines)) > 10_000)
    assert max(map(len, lines)) <= 4096 + len("loud: ")


def test_a_crashed_node_comes_back_and_the_others_run_on() -> None:
    crashing = script("crashing", "import os; print('up'); os.abort()")
    steady = script("steady", "import time; print('steady'); time.sleep(60)")
    with Supervisor([crashing, steady], policy=lambda: RestartPolicy(Backoff(first_s=0.05))) as supervisor:
        lines = run_until(
            supervisor, lambda lines: lines.count("crashing: up") >= 3 and "steady: steady" in lines
        )
        assert supervisor.status()["steady"] == "running"
    assert lines.count("steady: steady") == 1
    restarts = [line for line in lines if "restarts in" in line]
    assert restarts[:2] == [
        "crashing: ended with SIGABRT; restarts in 0.05 s",
        "crashing: ended with SIGABRT; restarts in 0.1 s",
    ]


def test_a_node_that_crashes_again_and_again_is_failing_also_while_it_is_started_once_more() -> None:
    crashing = script("camera", "print('up'); raise SystemExit(3)")
    with Supervisor([crashing], policy=lambda: RestartPolicy(Backoff(first_s=0.01))) as supervisor:
        assert supervisor.failing() == 0
        run_until(supervisor, lambda lines: any("restarts in" in line for line in lines))
        assert supervisor.status() == {"camera": "ended with 3, restarts"}
        stopped = []
        while supervisor.crashes("camera") < 4:
            supervisor.poll()
            stopped.append(supervisor.failing())
        assert set(stopped) == {3}


def test_a_node_that_crashed_once_and_says_it_works_is_not_failing(tmp_path: Path) -> None:
    code = (
        f"import pathlib, sys, time; first = pathlib.Path({str(tmp_path / 'first')!r})\n"
        "if not first.exists(): first.touch(); sys.exit(3)\n"
        "print('again'); time.sleep(60)"
    )
    with Supervisor([script("camera", code)], policy=lambda: RestartPolicy(Backoff(0.01))) as supervisor:
        supervisor.poll()
        supervisor.works("camera", "camera#1")
        run_until(supervisor, lambda lines: "camera: again" in lines)
        supervisor.works("camera", "camera#1")  # reported by the ended process, received late
        assert supervisor.failing() == 3
        supervisor.works("camera", "camera#2")
        assert supervisor.failing() == 0


def test_a_node_that_fails_while_it_is_stopped_is_the_exit_code() -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "print('up')\ntime.sleep(60)"
    )
    with Supervisor([script("camera", code)]) as supervisor:
        run_until(supervisor, lambda lines: lines == ["camera: up"])
    assert supervisor.failing() == 3


def test_a_fusion_that_loads_says_so_until_it_works() -> None:
    loading = Node("fusion", (sys.executable, "-c", "import time; time.sleep(60)"), loading="loading models")
    with Supervisor([loading]) as supervisor:
        assert supervisor.status() == {"fusion": "starting"}
        supervisor.poll()
        assert supervisor.status() == {"fusion": "loading models, 0 s"}
        supervisor.works("fusion", "fusion#1")
        assert supervisor.status() == {"fusion": "running"}


def test_a_file_that_cannot_be_read_is_not_tried_again_but_a_device_is() -> None:
    nodes = plan(
        profile(
            camera={
                "film": {"source": "film.mp4"},
                "web": {"source": 0},
                "net": {"source": "rtsp://host/a"},
                "usb": {"source": "/dev/v4l/by-id/usb"},
            },
            microphone={"file": {"source": "talk.wav"}, "desk": {"source": "USB Audio v1.2"}},
            text={"file": {"source": "lines"}},
        ),
        "p",
        origin_ns=0,
    )
    assert [3 in node.stay_down for node in nodes] == [True, False, False, False, True, False, True]
    assert all(9 in node.stay_down for node in nodes), "a missing package stays missing"


def test_a_device_that_no_restart_can_repair_is_given_up_while_the_others_run_on() -> None:
    broken = Node("camera", (sys.executable, "-c", "raise SystemExit(3)"), stay_down=frozenset({3}))
    steady = script("steady", "import time; time.sleep(60)")
    with Supervisor([broken, steady]) as supervisor:
        lines = run_until(supervisor, lambda lines: bool(lines))
        assert lines == ["camera: ended with exit code 3, which a restart cannot repair; the others run on"]
        assert supervisor.poll()
        assert supervisor.status() == {"camera": "ended with 3", "steady": "running"}
        assert supervisor.failing() == 3


def test_lines_of_many_threads_are_shown_or_counted() -> None:
    lines = Lines(most=100)
    taken: list[str] = []

    def write() -> None:
        for number in range(2000):
            lines.put("node", str(number))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            taken += [line for _, line in lines.take()]
        taken += [line for _, line in lines.take()]
    finally:
        sys.setswitchinterval(before)
    dropped = [int(line.split()[0]) for line in taken if line.endswith("could be shown")]
    assert len(taken) - len(dropped) + sum(dropped) == 8000


def test_a_wrong_profile_stops_the_run_with_its_exit_code() -> None:
    wrong = script("wrong", "raise SystemExit(2)")
    steady = script("steady", "import time; time.sleep(60)")
    with Supervisor([wrong, steady]) as supervisor:
        run_until(supervisor, lambda lines: bool(lines))
        assert not supervisor.poll()
        assert supervisor.exit_code == 2


def test_what_no_restart_can_mend_is_the_exit_code_even_if_found_out_while_stopping() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n"
        "print('up')\n"
        "while True: time.sleep(1)"
    )
    with Supervisor([script("fusion", code)]) as supervisor:
        run_until(supervisor, lambda lines: lines == ["fusion: up"])
        assert supervisor.exit_code is None
    assert supervisor.exit_code == 4


def test_a_recorder_that_cannot_write_never_stops_the_others() -> None:
    recorded = plan(profile(camera={"a": {"source": 0}}, record=True), "p", origin_ns=0)
    recorder = next(node for node in recorded if node.name == "recorder")
    failing = Node("recorder", (sys.executable, "-c", "raise SystemExit(7)"), stay_down=recorder.stay_down)
    steady = script("steady", "import time; time.sleep(60)")
    with Supervisor([failing, steady]) as supervisor:
        run_until(supervisor, lambda lines: bool(lines))
        assert supervisor.poll()
        assert supervisor.status() == {"recorder": "ended with 7", "steady": "running"}
        assert supervisor.failing() == 7


def test_the_run_is_over_when_every_capture_has_finished() -> None:
    capture = script("capture", "pass")
    fusion = script("fusion", "import time; time.sleep(60)", capture=False)
    with Supervisor([capture, fusion]) as supervisor:
        assert supervisor.poll()
        eventually(lambda: not supervisor.poll())
        assert supervisor.exit_code is None
        assert supervisor.status() == {"capture": "finished", "fusion": "running"}


def test_stopping_takes_no_longer_than_the_nodes_need() -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('stopped')))\n"
        "print('ready')\ntime.sleep(60)"
    )
    with Supervisor([script("polite", code)]) as supervisor:
        run_until(supervisor, lambda lines: "polite: ready" in lines)
        start_s = time.monotonic()
        supervisor.stop()
        assert time.monotonic() - start_s < 3.0  # forced after 4 s
        assert list(supervisor.lines()) == [("polite", "stopped")]


def test_a_node_deaf_to_all_signals_is_gone_within_five_seconds_and_so_are_its_children() -> None:
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN)"
    code = (
        f"{deaf}; import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', '{deaf}; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with Supervisor([script("deaf", code)]) as supervisor:
        lines = run_until(supervisor, lambda lines: bool(lines))
        pids = [supervisor.pids()["deaf"], int(lines[0].removeprefix("deaf: "))]
        start_s = time.monotonic()
        supervisor.stop()
        while any(map(processes.runs, pids)):  # the kernel needs some time to end killed processes
            assert time.monotonic() - start_s < 5.0
            time.sleep(0.01)


ENDING = "from perception.graph.processes import end_with_supervisor\n"


@pytest.mark.parametrize("body", ["", "signal.signal(15, lambda *_: None)\n"], ids=["ready", "hangs"])
def test_nodes_die_with_a_launcher_that_was_killed_on_a_machine_without_setpriv(body: str) -> None:
    """One whose main thread does not end, too: it catches the signal and goes on."""
    node = f"import signal, time\n{ENDING}{body}end_with_supervisor(grace_s=0.1)\nprint(1, flush=True)\n"
    node += "while True: time.sleep(60)"
    code = (
        "import sys, time; from perception.graph.plan import Node\n"
        "from perception.graph.supervisor import Supervisor\n"
        f"node = Node('n', (sys.executable, '-c', {node!r}))\n"
        "with Supervisor([node]) as s:\n"
        "    s.poll()\n"
        "    while not list(s.lines()): time.sleep(0.01)\n"
        "    print(s.pids()['n'], flush=True); time.sleep(60)"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PATH": ""}
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        pid = int(launcher.stdout.readline())
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    eventually(lambda: not processes.runs(pid))


def test_a_node_whose_launcher_has_ended_before_it_could_ask_dies_as_well() -> None:
    code = f"import time\n{ENDING}end_with_supervisor()\nwhile True: time.sleep(60)"
    environment = os.environ | {processes.SUPERVISOR_VARIABLE: str(_ended())}
    node = subprocess.Popen([sys.executable, "-c", code], env=environment)
    assert node.wait(LONG_S) == -signal.SIGTERM


def test_a_process_id_that_another_process_has_now_is_not_the_process() -> None:
    since = processes.started(os.getpid())
    assert processes.runs(os.getpid(), since)
    assert not processes.runs(os.getpid(), str(int(since) - 1))
    assert not processes.runs(_ended())


def _ended() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_domain_is_launched_once(tmp_path: Path) -> None:
    with DomainLock(tmp_path / "up.lock", "demo"):
        expected = rf"domain 'demo' is already up \(process {os.getpid()}\): stop it, or use --domain"
        with pytest.raises(PerceptionError, match=expected):
            DomainLock(tmp_path / "up.lock", "demo")
    assert not any(tmp_path.iterdir())
    with DomainLock(tmp_path / "up.lock", "demo"):
        pass


def test_a_node_that_still_runs_keeps_its_domain_taken(tmp_path: Path) -> None:
    steady = script("steady", "import time; time.sleep(60)")
    lock = DomainLock(tmp_path / "up.lock", "demo")
    with Supervisor([steady], inherit=[lock.fileno()]) as supervisor:
        supervisor.poll()
        lock._file.close()  # as if this launcher had been killed
        (tmp_path / "up.lock").write_text(f"{os.getpid()} 1")  # another process has its number now
        names = rf"already up \(nodes of an ended one: process {supervisor.pids()['steady']}\)"
        with pytest.raises(PerceptionError, match=names):
            DomainLock(tmp_path / "up.lock", "demo")
    with DomainLock(tmp_path / "up.lock", "demo"):
        pass
