"""The benchmarks' own pieces, on small made-up data; the sets themselves are not needed."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from perception.cli.main import run
from perception.errors import INTERRUPTED
from perception.io.progress import nothing
from perception.models.checkpoint import load_head
from perception.reproduce import avmnist, avmnist_data, avmnist_heads, esc10, grid, grid_results
from perception.reproduce.avmnist_recipes import DIM, INPUTS, OURS, SMIL, Recipe, featured
from perception.reproduce.grid_data import FRAME_RATE_HZ, Clip
from perception.reproduce.grid_experts import SINGLES, Experts, SoundExpert, Synchroniser, aligned
from perception.reproduce.grid_features import (
    LAGS_S,
    MOVED_S,
    OFFSETS_S,
    SNRS_DB,
    STEPS,
    TEST_NOISE,
    TRAINING_NOISE,
    Course,
    Material,
    interpolated,
    word_sound,
)
from perception.reproduce.grid_results import Hits
from perception.reproduce.results import Figures
from perception.training.examples import Examples
from perception.training.imbalance import REMEDIES, Imbalance
from perception.training.scores import gained
from tests.test_training_outputs import a_disk_that_takes
from tests.waiting import LONG_S


def pairs(per_class: int = 12) -> avmnist_data.Pairs:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(per_class)
    images = torch.rand(len(labels), 1, 28, 28, generator=generator)
    waveforms = torch.randn(len(labels), avmnist_data.SAMPLES, generator=generator) / 10
    return avmnist_data.Pairs(images, waveforms, labels)


def test_figures_have_mean_and_deviation_over_runs(tmp_path: Path) -> None:
    figures = Figures({"cost": 1})
    figures.add("accuracy", "head", "both", 0.8)
    figures.add("accuracy", "head", "both", 0.9)
    figures.add("cost", "head", "parameters", 1200)
    assert figures.rendered("accuracy") == [["accuracy", "both"], ["head", "85.00 +- 7.07"]]
    assert figures.rendered("cost")[1] == ["head", "1200.00"]
    file = figures.save(tmp_path, "toy", {"seeds": 2}, {"a curve": Figure()})
    assert json.loads(file.read_text())["tables"]["accuracy"]["head"]["both"]["values"] == [0.8, 0.9]
    page = (tmp_path / "toy.html").read_text()
    assert "85.00 +- 7.07" in page
    assert "<svg" in page
    assert "| head | 85.00 +- 7.07 |" in (tmp_path / "toy.md").read_text()


def test_figures_of_runs_are_stored_apart_and_joined_in_their_order(tmp_path: Path) -> None:
    joined = Figures()
    for seed, value in enumerate((0.8, 0.9, 0.1)):
        one = Figures()
        one.add("accuracy", "head", "both", value)
        one.write(tmp_path / f"{seed}.json")
        joined.extend(Figures.read(tmp_path / f"{seed}.json"))
    assert joined.as_json()["accuracy"]["head"]["both"]["values"] == [0.8, 0.9, 0.1]


@pytest.mark.parametrize("recipe", [OURS, SMIL], ids=lambda recipe: recipe.name)
def test_a_recipe_trains_encoders_once_and_finds_them_again(recipe: Recipe, tmp_path: Path) -> None:
    examples = recipe.examples(pairs(2))
    quick = recipe.training.model_copy(update={"epochs": 1})
    short = Recipe(recipe.name, recipe.pictures_of_sound, recipe.encoder, quick, recipe.disturbances)
    first = {branch: short.trained(tmp_path, "all", branch, examples, 0) for branch in INPUTS}
    again = {branch: short.trained(tmp_path, "all", branch, examples, 0) for branch in INPUTS}
    assert len(list(tmp_path.iterdir())) == 2
    features, same = featured(first, examples).features, featured(again, examples).features
    assert {name: x.shape for name, x in features.items()} == {"audio": (20, DIM), "image": (20, DIM)}
    assert all(torch.equal(features[name], same[name]) for name in features)
    short.trained(tmp_path, "all", "image", examples, 0, Imbalance(remedy="weights"))
    assert len(list(tmp_path.iterdir())) == 3, "another remedy is another encoder"


def test_parts_are_even_and_sound_is_kept_for_the_share_asked_for() -> None:
    examples = OURS.examples(pairs(20))
    kept = avmnist_data.thinned(examples, "audio", 0.1, 0).present
    assert kept[:, examples.branches.index("audio")].sum() == 20
    assert kept[:, examples.branches.index("image")].all()
    train, validation = avmnist_data.split(examples, 0)
    assert torch.bincount(train.labels).tolist() == [10] * 10
    assert torch.bincount(validation.labels).tolist() == [10] * 10


@pytest.mark.parametrize("strategy", avmnist_heads.STRATEGIES)
def test_every_strategy_of_the_table_has_a_head(strategy: str) -> None:
    head = avmnist_heads.head_of(strategy).eval()
    logits = head(
        {"audio": torch.zeros(2, DIM), "image": torch.zeros(2, DIM)}, torch.tensor([[True, False]] * 2)
    )
    assert logits.shape == (2, 10)


def test_a_strategy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy 'luck': expected one of drop rows"):
        avmnist_heads.head_of("luck")


def trial(folder: Path) -> avmnist.Trial:
    """All of avMNIST, but one epoch long, with few pairs, strategies and remedies."""
    training = OURS.training.model_copy(update={"epochs": 1})
    plan = avmnist.Plan(
        settings=(),
        head=avmnist_heads.HEAD.model_copy(update={"epochs": 1}),
        strategies=("token + modality dropout", "model-level pool"),
        remedied={name: avmnist_heads.REMEDIED[name] for name in ("oversample", avmnist_heads.AS_LONG)},
    )
    return avmnist.Trial(plan, replace(OURS, training=training), pairs(20), pairs(1), 0, folder)


def test_every_setting_of_avmnist_fills_its_tables(tmp_path: Path) -> None:
    figures = Figures()
    for setting in (avmnist.setting_b, avmnist.setting_a, avmnist.imbalance):
        setting(figures, trial(tmp_path))
    tables = figures.as_json()
    noise, recall = tables["noise (ours)"], tables["imbalance 1:50, macro recall"]
    assert set(noise) == {"token + modality dropout", "model-level pool", "product of experts"}
    assert len(noise["model-level pool"]) == 9
    assert set(tables["setting A, image only (ours)"]["model-level pool"]) == {"5%", "10%", "15%", "20%"}
    assert recall["chosen on validation"] == recall["oversample"], "what only trains longer is not chosen"


def test_avmnist_has_the_same_figures_on_every_run(tmp_path: Path) -> None:
    runs = []
    for folder in (tmp_path / "trained", tmp_path / "again"):
        figures = Figures()
        avmnist.setting_b(figures, trial(folder))
        tables = figures.as_json()
        del tables["cost (ours)"]  # how long a head takes
        runs.append(tables)
    assert runs[0] == runs[1]


def test_every_kind_of_head_of_esc10_infers_probabilities_of_every_clip() -> None:
    labels = torch.arange(40) % 2
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(40, esc10.FRAMES, 64, generator=generator) + 2 * labels[:, None, None]
    clips = esc10.Clips(Examples.of({"audio": pictures}, labels, ("a", "b")), np.arange(40) // 8 + 1)
    train, test = clips.without([1, 2]), clips.only(1)
    assert (len(train), len(test)) == (24, 8)
    plan = esc10.Plan(
        esc10.NETWORK.model_copy(update={"epochs": 1}), esc10.HEAD.model_copy(update={"epochs": 3})
    )
    for kind, predict in esc10.train_all(train, 0, plan).items():
        p = predict(test)
        assert p.shape == (8, 2), kind
        assert p.sum(axis=1) == pytest.approx(np.ones(8)), kind
        if "network" not in kind:  # one epoch is too little for that
            assert (p.argmax(axis=1) == test.labels.numpy()).all(), kind
    figures = Figures()
    esc10.imbalance(figures, clips.described(), 1, plan, nothing)
    assert set(figures.as_json()["imbalance 1:50"]) == set(REMEDIES)


def test_values_between_moments_are_interpolated_and_the_ends_go_on() -> None:
    values = np.array([[0.0], [1.0], [4.0]])
    at = np.array([[0.5, 1.5], [-3.0, 9.0]])
    assert interpolated(values, at)[..., 0] == pytest.approx(np.array([[0.5, 2.5], [0.0, 4.0]]), abs=0.01)


def test_the_synchroniser_finds_how_late_the_video_is() -> None:
    rng = np.random.default_rng(0)
    mouths, sounds, times_s = [], [], []
    for _ in range(24):
        motion = np.cumsum(rng.normal(size=(75, 8)), axis=0)
        motion -= motion.mean(axis=0)
        at_s = np.arange(0.9, 2.0, 1 / FRAME_RATE_HZ)
        mouths.append(motion.astype(np.float32))
        times_s.append(at_s)
        inputs = interpolated(motion, at_s * FRAME_RATE_HZ - 0.5)
        sounds.append((inputs + rng.normal(size=inputs.shape) / 5).astype(np.float32))
    course = Course(
        {(snr_db, seed): sounds for snr_db in SNRS_DB for seed in (*TRAINING_NOISE, TEST_NOISE)},
        mouths,
        times_s,
    )
    fits = Synchroniser().fit(course, np.arange(18))(course, np.arange(18, 24), 0.0)
    for offset_s in OFFSETS_S:
        shifts = [LAGS_S.index(round(offset_s + shift, 1)) for shift in OFFSETS_S]
        found = np.asarray(OFFSETS_S)[fits[:, shifts].argmax(axis=1)]
        assert found == pytest.approx(np.full(6, -offset_s))


def test_video_is_shifted_to_where_the_lag_fits_and_where_nothing_fits_better_as_it_is() -> None:
    lagged = np.zeros((1, len(LAGS_S), 2))
    in_step, late = LAGS_S.index(0.0), LAGS_S.index(0.3)
    lagged[0, in_step, 0] = lagged[0, late, 1] = 5.0
    fits = np.zeros((1, len(LAGS_S)))
    assert aligned(lagged, fits, 0.0).argmax() == 0
    fits[0, late] = 20.0
    for offset_s in (0.0, 0.2, -0.1):
        assert aligned(lagged, fits, offset_s).argmax() == 1


def test_a_sound_is_classified_by_the_noise_level_it_fits() -> None:
    rng, labels = np.random.default_rng(0), np.arange(400) % 3
    side = 3.0 * (labels - 1)[:, None]
    # the same means are of other classes at the other level
    at_level = {0.0: (side, 0.0), 10.0: (-side, 30.0)}
    inputs = [
        np.hstack([means, np.full((400, 1), floor)]) + rng.normal(size=(400, 2)) / 3
        for means, floor in at_level.values()
    ]
    components = PCA(2).fit(np.concatenate(inputs))
    expert = SoundExpert().fit([x[:200] for x in inputs], labels[:200], components)
    for x in inputs:
        everywhere = np.repeat(x[200:, None], len(MOVED_S), axis=1)
        assert (expert(everywhere).argmax(axis=1) == labels[200:]).mean() > 0.98


def test_a_word_is_looked_at_around_its_given_time() -> None:
    words = ((0.0, 1.0, "sil"), (1.0, 1.5, "bin"))
    clip = Clip("ramp", words, np.zeros(0, np.uint8), np.zeros(0, np.float32))
    places = word_sound(np.arange(300.0)[:, None], clip, 0)[:, :-1]
    later_by = np.repeat(100 * np.array(MOVED_S)[:, None], STEPS, axis=1)
    assert places - places[0] == pytest.approx(later_by, abs=1e-3)


def test_a_word_is_found_at_the_time_at_which_it_fits_one() -> None:
    rng, labels = np.random.default_rng(0), np.arange(400) % 3
    words = 6.0 * np.eye(3)[labels] + rng.normal(size=(400, 3))
    expert = SoundExpert().fit([words[:200]], labels[:200], PCA(3).fit(words[:200]))
    for place in range(len(MOVED_S)):
        inputs = rng.normal(size=(200, len(MOVED_S), 3)) - 9.0
        inputs[:, place] = words[200:]
        assert (expert(inputs).argmax(axis=1) == labels[200:]).mean() > 0.98


def test_the_benchmarks_pool_is_a_head_that_a_node_loads(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), np.arange(300) % 3
    truth = np.eye(3)[labels]
    logits = {
        name: 30 * truth + noise * rng.normal(size=(300, 3)) for name, noise in {"a": 5, "b": 40}.items()
    }
    branches = grid.as_features(logits, ("a", "b"))
    head = grid.fit_head(branches, ("x", "y", "z"), labels)
    head.save_pretrained(tmp_path)
    np.testing.assert_array_equal(grid.infer(load_head(tmp_path), branches), grid.infer(head, branches))
    np.testing.assert_allclose(
        grid.infer(head, branches),
        head.pool(torch.stack([*branches.values()], dim=1), torch.ones(300, 2, dtype=torch.bool)),
        atol=1e-4,
    )
    assert head.pool.temperature[1] > head.pool.temperature[0]


def spoken(count: int) -> tuple[Course, dict[str, Material]]:
    """Return clips whose classes sound and look unlike each other, and whose sound follows the mouth."""
    rng = np.random.default_rng(0)
    at_s = np.arange(0.9, 2.0, 1 / FRAME_RATE_HZ)
    motions = [np.cumsum(rng.normal(size=(75, 8)), axis=0).astype(np.float32) for _ in range(count)]
    follows = [interpolated(motion, at_s * FRAME_RATE_HZ - 0.5).astype(np.float32) for motion in motions]
    conditions = [(snr_db, seed) for snr_db in SNRS_DB for seed in (*TRAINING_NOISE, TEST_NOISE)]
    course = Course(dict.fromkeys(conditions, follows), motions, [at_s] * count)
    materials = {}
    for slot in grid.SCORED:
        labels = np.arange(count) % 3
        sounds = np.repeat(3 * rng.normal(size=(3, 90))[labels][:, None], len(MOVED_S), axis=1)
        audio = {key: (sounds + rng.normal(size=sounds.shape)).astype(np.float32) for key in conditions}
        faces = [(np.eye(3)[label] * 4 + rng.normal(size=(75, 3))).astype(np.float32) for label in labels]
        times_s = [np.linspace(1.2, 1.5, STEPS)] * count
        materials[slot] = Material(audio, labels, ("x", "y", "z"), faces, times_s)
    return course, materials


def test_grid_is_scored_under_every_condition_and_fusion_is_compared() -> None:
    course, materials = spoken(36)
    experts = Experts(course, materials, np.arange(18), grid.SCORED)
    heads = grid.fit_heads([(experts, np.arange(18, 27))], materials)
    conditions = [(snr_db, offset_s) for snr_db in SNRS_DB for offset_s in OFFSETS_S]
    hits: dict[str, Hits] = {slot: {condition: {} for condition in conditions} for slot in grid.SCORED}
    test = np.arange(27, 36)
    grid.score(hits, materials, experts, heads, test)
    figures = Figures()
    for slot, kinds in hits.items():
        grid_results.add(figures, slot, kinds)
        for kind in (*SINGLES, *grid_results.PRODUCTS, grid_results.FIXED, grid_results.FUSED):
            assert kinds[np.inf, 0.0][kind][test].all(), kind
            assert not kinds[np.inf, 0.0][kind][:27].any(), "only the test fold is scored"
    tables = figures.as_json()
    assert tables["digit, offset +0.0 s"][grid_results.FUSED]["clean"]["mean"] == 9 / 36
    assert set(tables[f"digit, gain of {grid_results.FUSED}"]) == {f"{at_s:+.1f} s" for at_s in OFFSETS_S}
    assert len(grid_results.plot(figures, grid.SCORED).axes) == 4


def test_a_gain_comes_with_its_interval_over_clips() -> None:
    better, clips = np.array([True] * 9 + [False]), np.arange(10)
    assert gained(better, better, clips) == (0, 0, 0)
    gain, low, high = gained(better, np.array([False] * 5 + [True] * 5), clips)
    assert gain == pytest.approx(0.4)
    assert low < 0.4 < high


def test_the_kind_right_most_often_over_all_folds_is_chosen_and_of_equals_the_one_of_least_nll() -> None:
    sure, unsure, wrong = [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]
    first = {"steady": [unsure, unsure], "bold": [sure, sure], "lucky": [sure, sure]}
    second = {"steady": [unsure, unsure], "bold": [sure, sure], "lucky": [sure, wrong]}
    parts = [
        (np.array([0, 0]), {kind: np.array(p) for kind, p in inferred.items()})
        for inferred in (first, second)
    ]
    assert esc10.best_kind(parts) == "bold"
    del parts[0][1]["bold"], parts[1][1]["bold"]
    assert esc10.best_kind(parts) == "steady"


def write_hwu64(folder: Path, copies: int = 1) -> None:
    """Write a small set of three intents, the training part so many times over."""
    phrases = {"lights": "turn the {} light on", "music": "play some {} music", "alarm": "wake me at {}"}
    fillers = ("red", "blue", "kitchen", "loud", "seven", "noon", "bedroom", "soft", "nine", "old")
    for part, count in (("train", 10), ("test", 3)):
        examples = [
            {"text": phrase.format(filler), "intent": intent}
            for intent, phrase in phrases.items()
            for filler in fillers[:count] * (copies if part == "train" else 1)
        ]
        text = json.dumps({"rasa_nlu_data": {"common_examples": examples}})
        (folder / f"{part}_fold1.json").write_text(text)


def test_hwu64_is_a_command_that_writes_its_tables(tmp_path: Path) -> None:
    write_hwu64(tmp_path)
    out = tmp_path / "out"
    assert run(["reproduce", "hwu64", "--data", str(tmp_path), "--out", str(out)]) == 0
    test = json.loads((out / "hwu64.json").read_text())["tables"]["hwu64, test fold 1"]
    chosen = next(iter(test))
    assert test[chosen]["accuracy"]["mean"] == 1
    assert "majority class" in test
    assert {file.suffix for file in out.iterdir()} == {".json", ".md", ".html"}


def test_the_old_name_runs_the_same_and_says_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hwu64(tmp_path)
    code, texts = {}, {}
    for name in ("reproduce", "benchmark"):
        arguments = [name, "hwu64", "--data", str(tmp_path), "--out", str(tmp_path / name)]
        code[name], texts[name] = run(arguments), capsys.readouterr()
    assert code == {"reproduce": 0, "benchmark": 0}
    assert texts["benchmark"].out == texts["reproduce"].out
    assert "perception reproduce" in texts["benchmark"].err
    assert "perception reproduce" not in texts["reproduce"].err
    made = [(tmp_path / name / "hwu64.json").read_bytes() for name in code]
    assert made[0] == made[1], "the same data give the same figures, to the last bit"
    assert (
        run(["benchmark", "hwu64", "--data", str(tmp_path / "reproduce"), "--out", str(tmp_path / "x")]) == 1
    )


def test_help_names_the_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "reproduce" in listed
    assert "benchmark" not in listed


@pytest.mark.parametrize("name", ["avmnist", "esc10", "hwu64", "grid"])
def test_a_folder_without_the_data_is_an_error_of_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reproduce", name, "--data", str(tmp_path), "--out", str(tmp_path)]) != 0
    assert str(tmp_path) in capsys.readouterr().err


def test_a_benchmark_shows_how_far_it_is_and_ctrl_c_leaves_nothing_half_made(tmp_path: Path) -> None:
    write_hwu64(tmp_path, copies=400)
    before = {file.name for file in tmp_path.iterdir()}
    names = ("--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1000")
    own, other = pty.openpty()
    command = (sys.executable, "-m", "perception", "reproduce", "hwu64", *names)
    with subprocess.Popen(command, stdout=other, stderr=other, start_new_session=True) as process:
        os.close(other)
        try:
            shown = ""
            while "SVM on words, seed 0" not in shown:
                shown += os.read(own, 1 << 16).decode(errors="replace")
            os.killpg(process.pid, signal.SIGINT)
            with suppress(OSError):  # a terminal ends with an error
                while part := os.read(own, 1 << 16):
                    shown += part.decode(errors="replace")
            assert process.wait(LONG_S) == INTERRUPTED
        finally:
            process.kill()
            os.close(own)
    assert "reproduce hwu64" in shown
    assert "Traceback" not in shown
    assert {file.name for file in tmp_path.iterdir()} == before


def test_the_pieces_a_benchmark_goes_on_from_are_whole(tmp_path: Path) -> None:
    training = OURS.training.model_copy(update={"epochs": 1})
    quick = Recipe(OURS.name, OURS.pictures_of_sound, OURS.encoder, training, OURS.disturbances)
    examples = quick.examples(pairs(2))
    with a_disk_that_takes(1000), pytest.raises(OSError, match="too large"):
        quick.trained(tmp_path / "encoders", "all", "image", examples, 0)
    assert list((tmp_path / "encoders").iterdir()) == []
