"""Files of somebody else are data: what they name is not opened, and what they declare takes no memory."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from perception.cli.main import run
from perception.errors import SessionError, WeightsError
from perception.fusion.build import cores
from perception.messages import HeadUse
from perception.models.checkpoint import load_head
from perception.models.feature_cache import Cache
from perception.profile import LAUNCH_DIR, Profile, load
from perception.retrieval import index
from perception.session import SessionWriter
from perception.session.recompute import foreign
from perception.session.recompute.journal import Survey
from tests import streams

GOLDEN = Path(__file__).with_name("golden")
DEMO = load("demo")


def changed(**update: Any) -> dict[str, Any]:
    """The demo's profile as a session holds it, its fusion changed."""
    values = json.loads(DEMO.model_dump_json())
    values["fusion"] |= update
    return dict(values)


def encoder(**update: Any) -> dict[str, Any]:
    given = {"input": "camera", "kind": "transformers-vision", "options": {}} | update
    return {"encoders": {"evil": given}}


HOSTILE = {
    "a head": {"head": {"weights": "/tmp/evil"}},
    "a head above the profiles": {"head": {"weights": "../../evil"}},
    "a head of the working directory": {"head": {"weights": "evil_head"}},
    "weights of an encoder": encoder(weights="/tmp/evil.pth"),
    "weights of all encoders": {"weights": "/tmp/evil"},
    "a model of the Hub": encoder(options={"model": "evil/model"}),
    "a revision of a model": encoder(options={"revision": "evil"}),
    "a file of an option": encoder(kind="vggish", options={"pca": "/tmp/evil.npz"}),
}


@pytest.fixture
def evil_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head in the working directory, where a foreign session may lie too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_head").mkdir()
    (tmp_path / "evil_head" / "config.json").write_text("{}")
    (tmp_path / "demo_head").mkdir()
    (tmp_path / "demo_head" / "config.json").write_text("{}")


def session(path: Path, profile: dict[str, Any]) -> Path:
    with SessionWriter(path) as writer:
        writer.add_metadata("profile", profile)
        for message in streams.arrivals([streams.camera_stream(1)], lambda message: 0):
            writer.write(message)
    return path


@pytest.mark.usefixtures("evil_head")
@pytest.mark.parametrize("update", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("command", ["verify", "fuse"])
def test_attack_a_session_opens_nothing_that_it_names(
    tmp_path: Path, update: dict[str, Any], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = session(tmp_path / "s.mcap", changed(**update))
    out = ["--out", str(tmp_path / "out.mcap")] if command == "fuse" else []
    assert run(["session", command, str(file), *out]) == (7 if out else 2)
    error = capsys.readouterr().err
    assert "names what this package does not provide" in error
    assert "--trust" in error
    assert not (tmp_path / "out.mcap").exists()


@pytest.mark.usefixtures("evil_head")
def test_attack_the_head_that_ships_is_not_replaced_by_one_of_the_working_directory(tmp_path: Path) -> None:
    fusion = foreign.checked(DEMO, "x").required_fusion()
    assert Path(fusion.head.weights) == (LAUNCH_DIR / "demo_head").resolve()


def test_attack_journals_name_no_folders_and_no_threads() -> None:
    known = Survey()
    known.heads["fusion#1"] = [HeadUse(head_hash="a" * 64, folder="/tmp/evil", from_tick=3)]
    known.facts = {"threads": 10**9, "device": "cpu"}
    foreign.without_names(known)
    assert known.heads["fusion#1"][0].folder == ""
    assert known.facts == {"device": "cpu"}
    for threads in (-1, 0, cores() + 1, "many", 1e300):
        assert foreign.bounded({"threads": threads}) == {}
    assert foreign.bounded({"threads": 1}) == {"threads": 1}


def test_a_session_of_a_shipped_profile_is_verified_without_trust() -> None:
    assert foreign.checked(Profile(domain="d"), "x").fusion is None
    assert foreign.checked(DEMO, "x").required_fusion().encoders == DEMO.required_fusion().encoders
    evil = DEMO.required_fusion().model_copy(update={"weights": "/tmp/evil"})
    changed_profile = DEMO.model_copy(update={"fusion": evil})
    with pytest.raises(SessionError, match=r"fusion\.weights = /tmp/evil"):
        foreign.checked(changed_profile, "x")


def test_attack_a_crash_is_not_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RecursionError("too deep\nsame: 3 of 3 states compared are equal")

    monkeypatch.setattr("perception.session.recompute.verify.verify", crash)
    assert run(["session", "verify", "x.mcap"]) == 2
    assert capsys.readouterr().err == "cannot verify: RecursionError: too deep\n"


BASE = {"kind": "feature", "dims": {"a": 2}, "classes": ["x", "y"]}
HEADS: dict[str, dict[str, Any]] = {
    "dims of 10^9": {"dims": {"a": 10**9}},
    "a billion in many": {"dims": {f"a{n}": 10**6 for n in range(1000)}},
    "hidden of 10^9": {"hidden": 10**9, "head": "mlp"},
    "wide and hidden": {"dims": {"a": 10**6}, "hidden": 10**5, "head": "mlp"},
    "a memory of 10^6": {"gru": 10**6, "dims": {"a": 10**5}},
    "components": {"pca": 10**6, "dims": {"a": 10**6}},
    "classes": {"classes": [str(n) for n in range(200_000)]},
    "long classes": {"classes": ["x" * 10**6, "y"]},
    "negative": {"dims": {"a": -5}},
    "no number": {"dims": {"a": "2"}},
    "true": {"dims": {"a": True}},
    "no names": {"classes": [1, 2]},
    "model level": {"kind": "model", "dims": {"a": 10**9}},
}


@pytest.mark.parametrize("update", HEADS.values(), ids=HEADS)
def test_attack_the_configuration_of_a_head_takes_no_memory(tmp_path: Path, update: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE | update))
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    begun_s = time.process_time()
    with pytest.raises(WeightsError, match="not the configuration of a"):
        load_head(tmp_path)
    assert time.process_time() - begun_s < 5


@pytest.mark.parametrize("text", ["[" * 200_000, "{" * 10, '{"kind": ' + "9" * 5000 + "}", "\0", "[]"])
def test_attack_a_malformed_configuration_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError) as error:
        load_head(tmp_path)
    assert len(str(error.value)) < 1000


HEADERS = {
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "a header beyond the file": struct.pack("<Q", 10_000) + b"{}",
    "a tensor of 2^40 bytes": b'{"w":{"dtype":"F32","shape":[274877906944],'
    b'"data_offsets":[0,1099511627776]}}',
    "a shape that overflows": b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
    "overlapping": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],'
    b'"data_offsets":[0,4]}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_attack_the_header_of_a_weights_file_takes_no_memory(tmp_path: Path, header: bytes) -> None:
    whole = header if header[:1] not in (b"{", b"[") else struct.pack("<Q", len(header)) + header
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "model.safetensors").write_bytes(whole + bytes(8))
    with pytest.raises(WeightsError):
        load_head(tmp_path)


INDEXES: dict[str, dict[str, torch.Tensor]] = {
    "of nothing": {"x": torch.zeros(1)},
    "of one dimension": {
        "vectors": torch.zeros(3),
        "stamps_ns": torch.zeros(3, dtype=torch.int64),
        "received_ns": torch.zeros(3, dtype=torch.int64),
    },
    "of other lengths": {
        "vectors": torch.zeros(3, 4),
        "stamps_ns": torch.zeros(1, dtype=torch.int64),
        "received_ns": torch.zeros(3, dtype=torch.int64),
    },
    "of other numbers": {
        "vectors": torch.zeros(3, 4),
        "stamps_ns": torch.full((3,), float("nan")),
        "received_ns": torch.zeros(3, dtype=torch.int64),
    },
}


@pytest.mark.parametrize("stored", INDEXES.values(), ids=INDEXES)
def test_attack_a_file_beside_a_session_is_an_index_only_if_it_is_whole(
    stored: dict[str, torch.Tensor],
) -> None:
    assert not index._is_index(stored)


@pytest.mark.parametrize("counts", ["[", "[1, 2]", '{"a": 5}', '{"a": {"b": {}}}', "[" * 100_000])
def test_attack_counters_of_an_index_may_hold_anything(tmp_path: Path, counts: str) -> None:
    save_file({"v": torch.from_numpy(np.zeros(2))}, tmp_path / "a.safetensors", metadata={"counts": counts})
    assert not Cache(tmp_path).counts("a") or counts.startswith('{"a"')


@pytest.mark.parametrize("name", ["demo.mcap"])
def test_the_golden_session_of_the_demo_needs_no_trust(name: str) -> None:
    from perception.session.recompute.source import Recording

    with Recording(GOLDEN / name, trust=False) as recording:
        assert recording.profile.fusion is not None
