"""The commands: labels, train and evaluate on recorded sessions, down to a checkpoint a profile can load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perception import profile as profiles
from perception.cli.main import run
from perception.cli.mark import Marker
from perception.devices.script import CLASSES
from perception.devices.scripted import messages
from perception.errors import PerceptionError, ProfileError
from perception.fusion.build import build_engine
from perception.messages import Label, Message, TextCommand
from perception.models.checkpoint import head_hash, load_head, weights_hash, with_own_encoders
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from perception.session.edit import trim
from perception.session.file.writer import SessionWriter
from perception.session.labels import Span
from perception.training import card, dataset, encoding, heads
from perception.training import commands as training
from perception.training import plan as plans
from perception.training.copies import CopyPlan
from perception.training.dataset import build
from perception.training.examples import Examples
from perception.training.finetune import trainable
from perception.training.fit_config import TrainingConfig
from perception.training.sources import SessionSource

PROFILE = """
domain = "training-test"
[fusion]
hop_ms = 250
device = "cpu"
threads = 2
[fusion.inputs]
camera = { topic = "camera/front" }
microphone = { topic = "microphone/main" }
[fusion.encoders]
motion = { input = "camera", kind = "motion" }
level = { input = "microphone", kind = "level" }
[fusion.head]
weights = "random"
classes = ["a", "b"]
"""
PLAN = """
profile = "{profile}"
seeds = 2
[head]
use_ages = true
[training]
epochs = 6
input_dropout = 0.3
"""


def record(path: Path, seed: int, seconds: float) -> Path:
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=8)
    microphone = MicrophoneConfig(source="scripted")
    with SessionWriter(path) as writer:
        for message in messages(ScriptConfig(seed=seed), camera, microphone, seconds, origin_ns=10**18):
            writer.write(message)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "profile.toml").write_text(PROFILE)
    (folder / "plan.toml").write_text(PLAN.format(profile=folder / "profile.toml"))
    (folder / "sessions").mkdir()
    for seed in range(1, 6):
        record(folder / "sessions" / f"play-{seed}.mcap", seed, 16.0)
    return folder


def command(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_from_sessions_to_a_checkpoint_and_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--sessions", folder / "sessions", "--cache", folder / "cache")
    assert command("train", folder / "plan.toml", *options, "--out", folder / "head") == 0
    printed = capsys.readouterr().out
    assert "camera+microphone" in printed
    head = load_head(folder / "head")
    assert head.branches == ("level", "motion")
    report = json.loads((folder / "head" / "report.json").read_text())
    assert set(report["subsets"]) == {"camera+microphone", "camera", "microphone"}
    assert report["seeds"]["accuracy"]["n"] == 2
    once = report["by_clip"]
    each = [one["accuracy"] for one in report["per_session"].values()]
    assert (once["sources"], once["accuracy"]) == (len(each), pytest.approx(sum(each) / len(each)))
    assert f"each of {len(each)} sessions or clips counted once: accuracy {once['accuracy']:.3f}" in printed
    assert set(report["single"]) == {"camera", "microphone"}
    assert {"coverage", "size"} <= set(report["conformal"]["camera"])
    page = (folder / "head" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    card = (folder / "head" / "README.md").read_text()
    assert head_hash(head) in card
    assert "no source is in two of these" in card
    cached = sorted((folder / "cache").iterdir())
    assert len(cached) == 5
    arguments = (folder / "head", folder / "sessions", "--profile", folder / "profile.toml")
    again = ("--out", folder / "again", "--cache", folder / "cache")
    assert command("evaluate", *arguments, *again) == 0
    assert sorted((folder / "cache").iterdir()) == cached
    report = json.loads((folder / "again" / "report.json").read_text())
    cost = report["cost"]
    assert cost["windows"] == 50
    assert set(cost["encoder_ms_when_it_runs"]) == {"level", "motion"}
    assert cost["models_ms_per_tick"] == cost["encoders_ms_per_tick"] + cost["head_ms_per_tick"]
    assert f"{cost['models_ms_per_tick']:.2f} ms per tick" in (folder / "again" / "report.html").read_text()


@pytest.mark.parametrize("cores", [1, 2, 4, 64])
def test_train_and_evaluate_end_on_a_machine_of_any_size(folder: Path, tmp_path: Path, cores: int) -> None:
    profile, plan, head = tmp_path / "profile.toml", tmp_path / "plan.toml", tmp_path / "head"
    network = (
        'sound = { input = "microphone", kind = "cnn-sound", weights = "random" }'  # computes by threads
    )
    few_windows = PROFILE.replace("hop_ms = 250", "hop_ms = 1000")
    profile.write_text(few_windows.replace("level =", f"{network}\nlevel ="))
    plan.write_text(f'profile = "{profile}"\nseeds = 1\ntest = 0.0\n[training]\nepochs = 1\n')
    sessions = [record(tmp_path / f"play-{seed}.mcap", seed, 8.0) for seed in (1, 2)]
    build(
        [SessionSource(file) for file in sessions],
        profiles.load(str(profile)).required_fusion(),
        tmp_path / "here",
    )
    assert torch.get_num_threads() == 2
    torch.randn(512, 512) @ torch.randn(512, 512)  # both run now, before any worker is started

    # on the largest it is evaluate that encodes, on the others train
    first, second = ("here", "new") if cores == 64 else ("new", "new")
    options = {"workers": None, "show": print, "cores": cores}
    training.train(plan, sessions, head, cache=tmp_path / first, resume=False, **options)  # type: ignore[arg-type]
    training.evaluate(
        head, sessions, str(profile), tmp_path / "report", cache=tmp_path / second, track="truth",
        retrieval={}, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    assert (tmp_path / "report" / "report.json").exists()
    for file in (tmp_path / "here").iterdir():
        assert (tmp_path / "new" / file.name).read_bytes() == file.read_bytes()


def test_evaluate_reports_what_search_finds_as_search_itself_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, out = folder / "searched", folder / "searched-report"
    heads.new_head(plans.HeadPlan(), {"level": 11, "motion": 4}, CLASSES, 0).save_pretrained(head)
    options = ("--profile", folder / "profile.toml", "--cache", folder / "cache", "--out", out)
    assert command("evaluate", head, folder / "sessions", *options, "--retrieval", "commands=lexical") == 0
    assert "search, commands: mAP " in capsys.readouterr().out
    found = json.loads((out / "report.json").read_text())["retrieval"]
    arguments = ("--evaluate", "truth", "--in", "commands", "--model", "commands=lexical", "--json")
    assert command("search", folder / "sessions", *arguments) == 0
    assert found == json.loads(capsys.readouterr().out)
    assert "recall@5" in (out / "report.html").read_text()
    assert command("evaluate", head, folder / "sessions", *options, "--retrieval", "smells=x") == 2
    assert "smells=x: expected KIND=MODEL" in capsys.readouterr().err


def test_without_a_test_share_report_and_card_say_that_the_figures_flatter(folder: Path) -> None:
    text = PLAN.format(profile=folder / "profile.toml").replace("seeds = 2", "seeds = 1\ntest = 0.0")
    (folder / "untested.toml").write_text(text)
    options = ("--sessions", folder / "sessions", "--cache", folder / "cache")
    assert command("train", folder / "untested.toml", *options, "--out", folder / "untested") == 0
    page = (folder / "untested" / "report.html").read_text()
    assert "the figures flatter" in page
    assert "did not use" not in page
    card = (folder / "untested" / "README.md").read_text()
    assert "they flatter" in card
    assert "tested once" not in card


def test_labels_are_timed_from_the_beginning_of_a_session(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        for seq, (start_s, end_s) in enumerate([(10, 14), (13, 15)]):
            start_ns, end_ns = (10**18 + s * 10**9 for s in (start_s, end_s))
            if seq == 0:
                header = TextCommand(stamp_ns=10**18, source="t#1", text="go")
                writer.write(Message("text/say", header, received_ns=10**18))
            span = Label(stamp_ns=start_ns, source="l#1", seq=seq, start_ns=start_ns, end_ns=end_ns, name="a")
            writer.write(Message("label/truth", span, received_ns=end_ns))
    assert command("labels", tmp_path / "s.mcap") == 1
    printed = capsys.readouterr()
    assert "    10.000     14.000  truth  a" in printed.out
    assert "'a' at 10.00 s overlaps 'a' at 13.00 s" in printed.err


def test_labels_are_listed_and_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = next((folder / "sessions").glob("*.mcap"))
    assert command("labels", session) in (0, 1)
    assert "truth: " in capsys.readouterr().out
    track = folder / "bad.txt"
    track.write_text("0.0\t2.0\tleft\n1.0\t3.0\tright\n")
    assert command("labels", track) == 1
    assert "'left' at 0.00 s overlaps 'right' at 1.00 s" in capsys.readouterr().err


def test_a_wrong_plan_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = folder / "wrong.toml"
    arguments = ("train", plan, "--sessions", folder / "sessions", "--out", folder / "x")
    for text, problem in (("[head]\nlayers = 3", "head.layers"), ("test = 0.8", "no sessions to train on")):
        plan.write_text(f'profile = "demo"\n{text}\n')
        assert command(*arguments) == 2
        assert problem in capsys.readouterr().err


def test_a_table_given_in_part_keeps_every_other_default() -> None:
    whole = plans.TrainPlan(profile="demo")
    assert whole.training.input_dropout == 0.35
    for table, section in whole.model_dump().items():
        for key in section if isinstance(section, dict) else ():
            part = {"profile": "demo", table: {key: section[key]}}
            assert plans.TrainPlan.model_validate(part) == whole, f"{table}.{key}"


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_a_prediction_that_nothing_is_learned_for_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        f'profile = "demo"\n[head]\nkind = "{kind}"\nmissing = "predict"\n[training]\nauxiliary = 0\n'
    )
    if kind == "model":  # has no such prediction
        assert plans.load_plan(file).training.auxiliary == 0
        return
    with pytest.raises(ProfileError, match=r"head.missing = 'predict' .* give training.auxiliary above 0"):
        plans.load_plan(file)


def test_an_input_that_is_always_absent_has_no_head_of_its_own(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fusion = profiles.load(str(folder / "profile.toml")).required_fusion()
    data = build(
        [SessionSource(file) for file in sorted((folder / "sessions").iterdir())], fusion, folder / "cache"
    )
    plan = plans.TrainPlan(profile="demo", training=TrainingConfig(epochs=1))
    parts = heads.split(data.only(["motion"]).without_empty(), plan)
    assert list(heads.train_singles(parts, plan, fusion)) == ["camera"]
    assert "no head of microphone alone: 0 labelled windows to train on, 2 are needed" in caplog.text


def test_the_plan_that_a_run_followed_lies_beside_the_head_with_every_default(
    folder: Path, tmp_path: Path
) -> None:
    options = ("--sessions", folder / "sessions", "--cache", folder / "cache")
    plan = tmp_path / "plan.toml"
    plan.write_text(f'profile = "{folder / "profile.toml"}"\nseeds = 1\n[training]\nepochs = 2\n' + COPIES)
    assert command("train", plan, *options, "--out", tmp_path / "head") == 0
    written = json.loads((tmp_path / "head" / card.PLAN_FILE).read_text())
    assert written.keys() == plans.TrainPlan.model_fields.keys()
    assert written["training"].keys() == TrainingConfig.model_fields.keys()
    assert written["training"]["input_dropout"] == TrainingConfig().input_dropout
    head = load_head(tmp_path / "head")
    assert written["classes"] == list(head.classes)
    assert command("train", tmp_path / "head" / card.PLAN_FILE, *options, "--out", tmp_path / "again") == 0
    assert head_hash(load_head(tmp_path / "again")) == head_hash(head)


def test_wide_branches_of_frozen_encoders_are_reduced_by_default_and_no_others() -> None:
    fusion = profiles.load("demo").required_fusion()
    wide = Examples.of(
        {"mfcc": torch.randn(40, 120), "motion": torch.randn(40, 4)}, torch.arange(40) % 2, "ab"
    )

    def widths(**plan: Any) -> tuple[int, ...]:
        model, _ = heads.new_model(plans.TrainPlan(profile="demo", **plan), wide, 0, fusion)
        reduction = getattr(model.head, "reduction", None)
        return tuple(model.head.dims.values()) if reduction is None else reduction.widths

    assert widths() == (12, 4)
    assert widths(head={"pca": 0}) == widths(head={"kind": "model"}) == (120, 4)
    trained = plans.TrainPlan(profile="demo", train_encoders=("resnet",))
    assert trained.used.head.pca == 0
    assert trained.model_copy(update={"train_encoders": ()}).used.head.pca == 12
    with pytest.raises(ValueError, match=r"fitted to frozen encoders; with train_encoders give pca = 0"):
        plans.TrainPlan.model_validate({"profile": "demo", "train_encoders": ["a"], "head": {"pca": 8}})
    with pytest.raises(ValueError, match="need kind = 'feature'"):
        plans.TrainPlan.model_validate({"profile": "demo", "head": {"pca": 8, "kind": "model"}})


def test_keys_mark_spans() -> None:
    marker = Marker(("left", "right"), "truth")
    assert marker.press("1", 10) is None
    assert marker.current == "left"
    assert marker.press("x", 15) is None
    assert marker.press("2", 20) == Span(10, 20, "left")
    assert marker.press(" ", 30) == Span(20, 30, "right")
    assert marker.press("q", 40) is None
    with pytest.raises(PerceptionError, match="only 9 keys"):
        Marker([str(n) for n in range(10)], "truth")


def test_folds_test_every_session_once(folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("folds = 5\n" + PLAN.format(profile=folder / "profile.toml"))
    options = ("--sessions", folder / "sessions", "--cache", folder / "cache")
    assert command("train", plan, *options, "--out", tmp_path / "head") == 0
    report = json.loads((tmp_path / "head" / "report.json").read_text())
    assert report["folds"]["accuracy"]["n"] == 5
    assert "Over folds of sessions" in (tmp_path / "head" / "report.html").read_text()


COPIES = """
[[copies]]
noise_snr_db = 5.0
gain_db = -6.0
[[copies]]
late_ms = { camera = 600 }
lost = { "microphone/main" = 0.2 }
"""


def test_perturbed_copies_are_trained_on_and_named_in_the_card(folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    text = PLAN.format(profile=folder / "profile.toml").replace("seeds = 2", "seeds = 1\nfolds = 5")
    plan.write_text(text + COPIES)
    cache = tmp_path / "cache"
    options = ("--sessions", folder / "sessions", "--cache", cache)
    assert command("train", plan, *options, "--out", tmp_path / "head") == 0
    assert len(list(cache.iterdir())) == 5 * (1 + 2)
    report = json.loads((tmp_path / "head" / "report.json").read_text())
    assert [copy["noise_snr_db"] for copy in report["training"]["copies"]] == [5.0, None]
    assert "of 3 sources and perturbed copies of them" in (tmp_path / "head" / "README.md").read_text()
    assert command("evaluate", tmp_path / "head", folder / "sessions", "--profile", folder / "profile.toml",
                   "--out", tmp_path / "again", "--cache", cache) == 0  # fmt: skip


def test_an_interrupted_training_goes_on_with_the_same_copies_only(folder: Path, tmp_path: Path) -> None:
    fusion = profiles.load(str(folder / "profile.toml")).required_fusion()
    sources = [SessionSource(file) for file in sorted((folder / "sessions").glob("*.mcap"))]
    data = dataset.build(sources, fusion, folder / "cache", workers=1)
    copies = [CopyPlan(gain_db=gain_db) for gain_db in (-6.0, 6.0)]
    before, after = (
        plans.TrainPlan(profile="demo", seeds=1, copies=(one,), training=TrainingConfig(epochs=1))
        for one in copies
    )
    heads.train_heads(heads.split(data, before, [data]), before, fusion, state_folder=tmp_path)
    heads.train_heads(heads.split(data, before, [data]), before, fusion, state_folder=tmp_path)
    with pytest.raises(PerceptionError, match="another configuration, head, copies"):
        heads.train_heads(heads.split(data, after, [data]), after, fusion, state_folder=tmp_path)


@pytest.mark.parametrize(
    ("copy", "problem"),
    [
        ("seed = 1", "copies.0: perturbs nothing; give one of noise_snr_db"),
        ("noise_db = 5", "copies.0.noise_db: no such key"),
        ("typos = 2.0", "copies.0.typos: Input should be less than or equal to 1"),
        ("late_ms = { camra = 200 }", "copies.0.late_ms.camra: expected camera"),
        ("late_ms = { camera = -5 }", "copies.0.late_ms.camera: Input should be greater than or equal to 0"),
        ("typos = 0.1", "copies.0.typos: no input of the profile; there are camera/front, microphone/main"),
        ('lost = { "camera/rear" = 0.1 }', "copies.0.lost.camera/rear: no input of the profile"),
    ],
)
def test_a_wrong_copy_is_named_by_file_and_key(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], copy: str, problem: str
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(profile=folder / "profile.toml") + f"[[copies]]\n{copy}\n")
    assert command("train", plan, "--sessions", folder / "sessions", "--out", tmp_path / "x") == 2
    assert f"{plan}: {problem}" in capsys.readouterr().err


END_TO_END = """
profile = "{profile}"
seeds = 1
test = 0
train_encoders = ["picture", "sound"]
[head]
head = "linear"
dropout = 0
[augment]
flip = true
shift = 0.1
colour = 0.1
occlusion = 0.2
mask_time = 0.2
sound_shift = 0.1
[training]
epochs = 3
late = 0.2
learning_rate = 0.01
"""


def test_encoders_are_trained_end_to_end_and_load_in_a_profile(folder: Path, tmp_path: Path) -> None:
    profile, plan = tmp_path / "profile.toml", tmp_path / "plan.toml"
    own = """
picture = { input = "camera", kind = "cnn-image", weights = "random", options = { widths = [4] } }
sound = { input = "microphone", kind = "cnn-sound", weights = "random", options = { widths = [4] } }
"""
    text = PROFILE.replace("level =", own.strip() + "\nlevel =")
    profile.write_text(text)
    plan.write_text(END_TO_END.format(profile=profile))
    sessions = [
        part for number in (1, 2) for part in ("--sessions", folder / "sessions" / f"play-{number}.mcap")
    ]
    sources = (*sessions, "--cache", tmp_path / "cache")
    assert command("train", plan, *sources, "--out", tmp_path / "head") == 0
    live = text.partition("[fusion.head]")[0] + f'[fusion.head]\nweights = "{tmp_path / "head"}"\n'
    (tmp_path / "live.toml").write_text(live)
    fusion = with_own_encoders(profiles.load(str(tmp_path / "live.toml")).required_fusion())
    before, after = (
        build_engine(profiles.load(str(file)).required_fusion(), clock=lambda: 0)
        for file in (profile, tmp_path / "live.toml")
    )
    for name in ("picture", "sound"):
        assert weights_hash(before.encoders[name].weights()) != weights_hash(after.encoders[name].weights())
    # the live encoders return what the trained networks return on the same data
    source = SessionSource(folder / "sessions" / "play-1.mcap")
    raw = encoding.encode(source, fusion, ("picture", "sound"))
    live_features = encoding.encode(source, fusion)
    for name in ("picture", "sound"):
        encoder = trainable(fusion, [name], 0)[name]
        with torch.no_grad():
            trained = encoder.network.eval()(raw[f"feature.{name}"].float())
        present = raw["present"][:, list(after.encoders).index(name)]
        torch.testing.assert_close(
            trained[present], live_features[f"feature.{name}"][present], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(("text", "parts"), [("", 3), ("test = 0.0", 2), ("folds = 5", 5)])
def test_too_few_sessions_are_refused_before_anything_is_encoded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, parts: int
) -> None:
    whole = folder / "sessions" / "play-1.mcap"
    trim(whole, tmp_path / "part.mcap", start_s=2.0)
    (tmp_path / "plan.toml").write_text(f'profile = "{folder / "profile.toml"}"\n{text}\n')
    options = ("--sessions", whole, "--sessions", tmp_path / "part.mcap", "--cache", tmp_path / "cache")
    assert command("train", tmp_path / "plan.toml", *options, "--out", tmp_path / "x") == 7
    line = f"1 labelled sessions cannot be split into {parts} parts; record more"
    assert line in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('train_encoders = ["level"]', "'level' is of kind 'level', which cannot be trained"),
        ('train_encoders = ["nose"]', "no encoder 'nose'"),
        ("[augment]\nflip = true", "plan.toml: augment.flip: none of train_encoders takes camera"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_encoded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    (tmp_path / "plan.toml").write_text(f'profile = "{folder / "profile.toml"}"\n{text}\n')
    options = ("--sessions", folder / "sessions", "--cache", tmp_path / "cache")
    assert command("train", tmp_path / "plan.toml", *options, "--out", tmp_path / "x") == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
