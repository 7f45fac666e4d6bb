"""`[host.NAME]`: which nodes run where, and where each topic is bound and read."""

from typing import Any

import pytest

from perception.bus import keys
from perception.errors import BusError, ProfileError
from perception.graph.check import check, require
from perception.graph.plan import plan
from perception.profile import Profile, parse
from perception.profile.hosts import RemoteHost

FUSION = {
    "head": {"classes": ["a", "b"]},
    "inputs": {"camera": {"topic": "camera/front"}, "microphone": {"topic": "microphone/desk"}},
    "encoders": {
        "motion": {"input": "camera", "kind": "motion"},
        "level": {"input": "microphone", "kind": "level"},
    },
}
ROBOT = {"address": "127.0.0.1", "nodes": ["camera-front", "text-operator"]}
DESK = {"address": "127.0.0.1", "port": 5700, "nodes": ["fusion", "recorder", "microphone-desk"]}


def graph(*, here: str | None = None, robot: object = ROBOT, desk: object = DESK, **more: Any) -> Profile:
    tables: dict[str, Any] = {
        "camera": {"front": {"source": "scripted"}},
        "microphone": {"desk": {"source": "scripted"}},
        "text": {"operator": {"source": "scripted"}},
        "fusion": FUSION,
        "record": True,
        "host": {"robot": robot, "desk": desk},
    }
    return parse({**tables, **more} | ({} if here is None else {"here": here}), where="graph.toml")


def nodes(*names: str) -> dict[str, object]:
    return {**ROBOT, "nodes": names}


def names(profile: Profile) -> list[str]:
    return [node.name for node in plan(profile, "graph.toml", origin_ns=0)]


def test_each_host_starts_its_nodes_and_one_that_answers_for_its_clock() -> None:
    assert names(graph(here="robot")) == ["camera-front", "text-operator", "clock-robot"]
    assert names(graph(here="desk")) == ["fusion", "recorder", "microphone-desk", "clock-desk"]


def test_a_host_that_reads_others_runs_on_when_its_own_devices_have_ended() -> None:
    ends = {
        here: [node.name for node in plan(graph(here=here), "graph.toml", origin_ns=0) if node.capture]
        for here in ("robot", "desk")
    }
    assert ends == {"robot": ["camera-front", "text-operator"], "desk": []}


def test_endpoints_follow_from_the_profile() -> None:
    robot, desk = graph(here="robot"), graph(here="desk")
    assert robot.endpoint_of("camera/front") == "tcp://127.0.0.1:5601"
    assert robot.endpoint_of("state/fused") is None, "published elsewhere"
    assert desk.other_hosts() == {
        "robot": RemoteHost(
            "tcp://127.0.0.1:5600",
            {
                "camera/front": "tcp://127.0.0.1:5601",
                "health/camera-front": "tcp://127.0.0.1:5602",
                "text/operator": "tcp://127.0.0.1:5603",
                "label/truth": "tcp://127.0.0.1:5604",
                "health/text-operator": "tcp://127.0.0.1:5605",
                "health/clock-robot": "tcp://127.0.0.1:5606",
            },
        )
    }
    (seen,) = robot.other_hosts().values()
    assert {"state/fused", "journal/fusion", "clock/fusion", "head/fusion", "health/fusion"} <= set(
        seen.connect
    )
    assert all(desk.endpoint_of(topic) == endpoint for topic, endpoint in seen.connect.items())
    assert len(set(seen.connect.values())) == len(seen.connect)


def test_what_readers_of_one_host_may_ask_for_includes_its_supervisor() -> None:
    ports = graph().ports("robot")
    assert ports["health/supervisor"] == 5607
    assert graph(here="robot").endpoint_of("health/supervisor") == "tcp://127.0.0.1:5607"


@pytest.mark.parametrize(
    ("address", "bound", "connected"),
    [
        ("robot.local", "tcp://*:5600", "tcp://robot.local:5600"),
        ("10.0.0.2", "tcp://*:5600", "tcp://10.0.0.2:5600"),
        ("fd00::2", "tcp://*:5600", "tcp://[fd00::2]:5600"),
        ("::1", "tcp://[::1]:5600", "tcp://[::1]:5600"),
        ("localhost", "tcp://127.0.0.1:5600", "tcp://localhost:5600"),
    ],
)
def test_a_host_listens_where_others_reach_it(address: str, bound: str, connected: str) -> None:
    host = graph(robot={**ROBOT, "address": address}).host["robot"]
    assert (host.bound(5600), host.endpoint(5600)) == (bound, connected)
    one = graph(robot={**ROBOT, "address": address, "bind": "192.0.2.1"}).host["robot"]
    assert one.bound(5600) == "tcp://192.0.2.1:5600"


@pytest.mark.parametrize(("address", "connected"), [("10.0.0.2", "10.0.0.2"), ("fd00::2", "[fd00::2]")])
def test_a_host_may_have_a_key_of_its_own(address: str, connected: str) -> None:
    desk = graph(here="desk", robot={**ROBOT, "address": address, "key": "robot"}).other_hosts()
    assert desk["robot"].clock == f"tcp://robot@{connected}:5600"
    assert desk["robot"].connect["camera/front"] == f"tcp://robot@{connected}:5601"
    with pytest.raises(ProfileError, match=r"host\.robot\.key: String should match pattern"):
        graph(robot={**ROBOT, "key": "a b"})


def test_without_hosts_nothing_changes() -> None:
    alone = graph(host={})
    assert alone.on_this_host() is alone
    assert (alone.endpoint_of("camera/front"), alone.other_hosts()) == (None, {})
    assert "clock-robot" not in names(alone)


def test_a_host_must_be_named_where_there_are_several() -> None:
    with pytest.raises(
        ProfileError, match=r"graph\.toml: it describes the hosts robot, desk; name this one: --host"
    ):
        names(graph())
    with pytest.raises(ProfileError, match="here: there is no host 'moon'; hosts are robot, desk"):
        graph(here="moon")


@pytest.mark.parametrize(
    ("robot", "desk", "expected"),
    [
        (nodes("camera-frnt"), DESK, "host.robot.nodes: there is no node 'camera-frnt'; nodes are fusion"),
        (nodes("camera-front", "fusion"), DESK, "host.desk.nodes: fusion runs on host.robot already"),
        (nodes("camera-front"), DESK, "text-operator: on no host; add it to the nodes of a [host.NAME]"),
        (ROBOT, {**DESK, "port": 5606}, "host.desk.port: host.robot has the ports 5600 to 5607 of 127.0.0.1"),
        (ROBOT, {**DESK, "port": 65530}, "host.desk.port: its topics need the ports up to 65540"),
        ({**ROBOT, "address": "0.0.0.0"}, DESK, "host.robot.address: is not a single address"),
        ({**ROBOT, "address": "a b"}, DESK, "host.robot.address: 'tcp://a b:1' is no endpoint"),
        ({**ROBOT, "port": 0}, DESK, "host.robot.port: Input should be greater than or equal to 1"),
        ({**ROBOT, "adress": "x"}, DESK, "host.robot.adress: no such key"),
        ({"nodes": []}, DESK, "host.robot.address: Field required"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(robot: object, desk: object, expected: str) -> None:
    with pytest.raises(ProfileError) as error:
        graph(robot=robot, desk=desk)
    assert str(error.value).startswith("graph.toml: ")
    assert expected in str(error.value)


def test_an_endpoint_of_a_device_follows_from_its_host() -> None:
    camera = {"front": {"source": "scripted", "endpoint": "tcp://127.0.0.1:5601"}}
    with pytest.raises(
        ProfileError, match=r"camera\.front\.endpoint: follows from \[host\.NAME\] here; remove it"
    ):
        graph(camera=camera)


def test_files_and_models_are_checked_where_they_are_used() -> None:
    camera = {"front": {"source": "/nowhere/film.mp4"}}
    fusion = {**FUSION, "head": "/nowhere/head"}
    assert [one.text for one in check(graph(here="robot", camera=camera, fusion=fusion)) if one.error] == [
        "camera.front.source: /nowhere/film.mp4: no such file; correct it, or give a device"
    ]
    (found,) = [one.text for one in check(graph(here="desk", camera=camera, fusion=fusion)) if one.error]
    assert "/nowhere/head" in found


def test_between_hosts_keys_are_needed(tmp_path: object) -> None:
    far = graph(here="desk", robot={**ROBOT, "address": "192.0.2.1"})
    with pytest.raises(BusError, match=r"host\.robot: tcp://192\.0\.2\.1:5600 leaves this host unencrypted"):
        require(far, "graph.toml")
    own = graph(here="robot", robot={**ROBOT, "address": "192.0.2.1"})
    with pytest.raises(BusError, match=r"host\.robot: tcp://\*:5600 leaves this host unencrypted"):
        require(own, "graph.toml")
    folder = keys.new_keys(f"{tmp_path}/keys")
    secured = graph(here="desk", robot={**ROBOT, "address": "192.0.2.1"}, keys=str(folder))
    assert require(secured, "graph.toml") == []
