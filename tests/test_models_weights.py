"""Weights: reproducible at random, checked when loaded, clear when missing; the encoder registry."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perception.errors import ProfileError, WeightsError
from perception.models import build_encoder
from perception.models.registry import KINDS
from perception.models.weights import hub_folder, load_into, local_state, seeded, url_state, weights_hash
from perception.profile import EncoderConfig

CPU = torch.device("cpu")
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.5, -0.5])}


def test_the_same_seed_gives_the_same_bytes_and_the_global_generator_goes_on_undisturbed() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)

    torch.manual_seed(123)
    hashes = []
    for seed in (7, 7, 8):
        with seeded(seed):
            hashes.append(weights_hash(nn.Linear(5, 4).state_dict()))

    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.rand(3), expected)


def test_the_hash_covers_names_dtypes_shapes_and_bytes_but_not_the_order() -> None:
    variants = [
        STATE,
        {**STATE, "extra": torch.zeros(0)},
        {"weights": STATE["weight"], "bias": STATE["bias"]},
        {**STATE, "weight": STATE["weight"].reshape(3, 2)},
        {**STATE, "weight": STATE["weight"].double()},
        {**STATE, "bias": torch.tensor([0.5, -0.25])},
        {**STATE, "bias": STATE["bias"].bfloat16()},
        {**STATE, "bias": torch.tensor(0.5)},
    ]
    assert len({weights_hash(state) for state in variants}) == len(variants)
    assert weights_hash(dict(reversed(STATE.items()))) == weights_hash(STATE)
    strided = {**STATE, "weight": STATE["weight"].T.contiguous().T}
    assert weights_hash(strided) == weights_hash(STATE)


@pytest.mark.parametrize("name", ["model.safetensors", "head.pth"])
def test_a_state_dict_is_read_from_safetensors_pth_or_a_folder(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name) if name.endswith("safetensors") else torch.save(STATE, tmp_path / name)
    assert weights_hash(local_state(tmp_path / name)) == weights_hash(STATE)
    if name == "model.safetensors":
        assert weights_hash(local_state(tmp_path)) == weights_hash(STATE)


def test_a_file_that_would_have_to_be_unpickled_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("anything but tensors")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth: refused: only plain tensors"):
        local_state(tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such weights file"), (b"not safetensors at all", "not a safetensors file")],
)
def test_a_missing_or_broken_file_is_one_clear_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        local_state(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "bias is missing"),
        ({"gain": torch.zeros(1)}, "gain is unknown"),
        ({"bias": torch.zeros(3)}, r"bias is \(3,\) instead of \(2,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in {**STATE, **change}.items() if tensor is not None}
    with pytest.raises(WeightsError, match=rf"here: not the weights of this Linear: {message}"):
        load_into(nn.Linear(3, 2), state, "here")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name upstream
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _publish(folder: Path, *, digest: str | None = None) -> str:
    torch.save(STATE, folder / "new.pth")
    digest = digest or hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    return (folder / "new.pth").rename(folder / f"tiny-{digest}.pth").name


def test_a_download_is_checked_against_its_hash_and_then_kept(
    tmp_path: Path, served: tuple[Path, str]
) -> None:
    folder, address = served
    name = _publish(folder)
    assert weights_hash(url_state(f"{address}/{name}", tmp_path / "cache")) == weights_hash(STATE)

    (folder / name).unlink()
    assert weights_hash(url_state(f"{address}/{name}", tmp_path / "cache")) == weights_hash(STATE)

    (tmp_path / "cache" / name).write_bytes(b"rotten")
    with pytest.raises(WeightsError, match="does not match its hash; delete it"):
        url_state(f"{address}/{name}", tmp_path / "cache")


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(
    tmp_path: Path, served: tuple[Path, str]
) -> None:
    folder, address = served
    name = _publish(folder, digest="00000000")
    with pytest.raises(WeightsError, match="the download does not match its hash"):
        url_state(f"{address}/{name}", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_missing_and_offline_says_what_where_and_what_to_do(tmp_path: Path) -> None:
    nothing_answers = "http://127.0.0.1:9"
    with pytest.raises(WeightsError, match=r"tiny\.pth: not in .*go online once, put the file there"):
        url_state(f"{nothing_answers}/tiny.pth", tmp_path)
    with pytest.raises(WeightsError, match=r"some/model: not in the Hugging Face cache and not reachable"):
        hub_folder("some/model", cache=tmp_path, endpoint=nothing_answers)
    with pytest.raises(WeightsError, match="neither a folder here nor a Hub name"):
        hub_folder("no such/folder/here", cache=tmp_path, endpoint=nothing_answers)


def test_a_cached_hub_model_needs_no_network_and_its_blobs_are_checked(tmp_path: Path) -> None:
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "abc"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    save_file(STATE, tmp_path / "blob")
    digest = hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest()
    blob = (tmp_path / "blob").rename(repository / "blobs" / digest)
    (snapshot / "model.safetensors").symlink_to(blob)

    assert hub_folder("some/model", cache=tmp_path, endpoint="http://127.0.0.1:9") == snapshot

    blob.write_bytes(b"rotten")
    with pytest.raises(WeightsError, match="does not match its hash; delete"):
        hub_folder("some/model", cache=tmp_path, endpoint="http://127.0.0.1:9")


def test_an_unknown_kind_of_encoder_lists_the_kinds() -> None:
    config = EncoderConfig(input="front", kind="oracle")
    with pytest.raises(ProfileError, match=r"fusion\.encoders\.eye\.kind: 'oracle' is no kind") as error:
        build_encoder("eye", config, device=CPU, seed=0)
    assert all(kind in str(error.value) for kind in KINDS)


def test_small_encoders_do_not_load_the_large_packages() -> None:
    script = """
import sys, torch
from perception.models import build_encoder
from perception.profile import EncoderConfig
for kind, options in {"faces": {}, "aruco": {}, "motion": {}, "tfidf": {"intents": {"a": ["b"]}}}.items():
    config = EncoderConfig(input="any", kind=kind, options=options)
    build_encoder("small", config, device=torch.device("cpu"), seed=0)
sys.exit(", ".join({"transformers", "torchvision", "torchaudio", "silero_vad"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, r"fusion\.encoders\.eye\.options\.colour: no such option; options are width, blur"),
        ({"width": "wide"}, r"fusion\.encoders\.eye\.options\.width: .*integer.* \(got 'wide'\)"),
    ],
)
def test_a_wrong_option_names_encoder_and_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        build_encoder("eye", EncoderConfig(input="front", kind="motion", options=options), device=CPU, seed=0)
