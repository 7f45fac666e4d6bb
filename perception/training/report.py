"""The report on trained heads: a JSON file, and an HTML page that needs no other file."""

import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from perception.errors import SessionError
from perception.io.beside import replace_file
from perception.io.text_file import read_text
from perception.training import evaluate, scores
from perception.training.card import REPORT
from perception.training.examples import Examples
from perception.training.heads import Split
from perception.training.model import FusionModel

ALPHA: Final = 0.1
_SPREAD: Final = ("accuracy", "macro_recall", "macro_f1", "nll", "ece")


def assess(
    models: Sequence[FusionModel],
    validation: Examples | None,
    test: Examples,
    inputs: Mapping[str, str],
    singles: Mapping[str, FusionModel] | None = None,
) -> dict[str, Any]:
    """Return all scores of heads of several seeds, as plain data; the first head is the one that is stored.

    Args:
        models: one per seed.
        validation: conformal thresholds are chosen on it; without it there are none.
        test: other sessions.
        inputs: the input each branch reads.
        singles: by input, a head trained on it alone, for the paired test.
    """
    model, truth = models[0], evaluate.truth_of(test)
    p = evaluate.probabilities(model, test)
    delay, delay_left_out = evaluate.delay_sweep(model, test, inputs)
    chosen_by = {} if validation is None else evaluate.named_sources(validation)
    return {
        "classes": list(test.classes),
        "windows": len(truth),
        "sessions": len(set(test.sources.tolist())),
        "tested_on_validation": test is validation,
        "majority": float(np.bincount(truth).max() / len(truth)),
        "empty_windows": _empty_windows(test),
        "subsets": scores.as_json(evaluate.by_subset(model, test, inputs)),
        "left_out": evaluate.left_out(test, inputs),
        "per_class": scores.per_class(truth, p, test.classes),
        "confusion": scores.confusion(truth, p),
        "per_session": scores.as_json(evaluate.by_source(truth, p, test)),
        "by_clip": evaluate.by_clip(truth, p, test),
        "shuffle_drop": evaluate.shuffle_drops(model, test, inputs),
        "noise": evaluate.noise_sweep(model, test, inputs),
        "delay": delay,
        "delay_left_out": delay_left_out,
        "conformal": {} if validation is None else _conformal(model, validation, test, inputs),
        "threshold_sessions": sorted(chosen_by.values()),
        "calibration": _reliability(truth, p),
        "seeds": _over_seeds(models, test),
        "single": _against_singles(p, test, inputs, singles or {}),
    }


def _empty_windows(test: Examples) -> dict[str, int]:
    """Return how many labelled windows were left out because nothing is present: in the test, in all."""
    tested = sum(test.empty[source] for source in set(test.sources.tolist())) if test.empty else 0
    return {"tested": tested, "all": sum(test.empty)}


def _conformal(
    model: FusionModel, validation: Examples, test: Examples, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Return one threshold per set of inputs: without a camera, the head needs another one."""
    found = {}
    for kept in evaluate.subsets(sorted(set(inputs.values()))):
        own = [evaluate.shown(part, inputs, kept) for part in (validation, test)]
        if len(own[1].labelled):
            scored = [(evaluate.truth_of(part), evaluate.probabilities(model, part)) for part in own]
            found["+".join(kept)] = scores.as_json(scores.conformal(scored[0], scored[1], ALPHA))
    return found


def _reliability(labels: scores.Labels, p: scores.Probabilities) -> list[dict[str, float]]:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    number = np.minimum((confidence * scores.ECE_BINS).astype(int), scores.ECE_BINS - 1)
    return [
        {
            "confidence": float(confidence[number == bin_].mean()),
            "accuracy": float(right[number == bin_].mean()),
            "rows": int((number == bin_).sum()),
        }
        for bin_ in np.unique(number)
    ]


def _over_seeds(models: Sequence[FusionModel], test: Examples) -> dict[str, Any]:
    truth = evaluate.truth_of(test)
    scored = [scores.metrics(truth, evaluate.probabilities(model, test)) for model in models]
    return {name: scores.spread([getattr(one, name) for one in scored]) for name in _SPREAD}


def over_folds(folds: Iterable[tuple[Split, FusionModel]]) -> dict[str, Any]:
    """Return the spread over folds of sessions; each fold is tested by a head trained without it."""
    scored = [
        scores.metrics(evaluate.truth_of(parts.test), evaluate.probabilities(model, parts.test))
        for parts, model in folds
    ]
    return {name: scores.spread([getattr(one, name) for one in scored]) for name in _SPREAD}


def _against_singles(
    p: scores.Probabilities, test: Examples, inputs: Mapping[str, str], singles: Mapping[str, FusionModel]
) -> dict[str, Any]:
    truth, sources = evaluate.truth_of(test), evaluate.sources_of(test)
    rows = {}
    for name, model in singles.items():
        own = test.select([branch for branch in test.branches if inputs[branch] == name]).without_empty()
        if not len(own.labelled):
            continue
        alone = evaluate.probabilities(model, own)
        there = (own.labels[test.labelled] >= 0).numpy()  # fused and alone are compared on the same windows
        gain, low, high = scores.paired_bootstrap(truth[there], p[there], alone, sources[there])
        rows[name] = {
            "accuracy": scores.metrics(truth[there], alone).accuracy,
            "gain": gain,
            "gain_low": low,
            "gain_high": high,
            "mcnemar_p": scores.mcnemar(truth[there], p[there], alone),
        }
    return rows


def write(folder: Path, report: Mapping[str, Any], title: str) -> Path:
    """Write `report.json` and `report.html`; return the page. OSError if they cannot be written."""
    texts = (json.dumps(report, indent=1) + "\n", as_html(report, title))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        for name, text in zip(REPORT, texts, strict=True):
            replace_file(folder / name, text.encode())
    finally:
        with suppress(OSError):
            folder.rmdir()  # removes only a folder without a report
    return folder / REPORT[1]


def refuse_training(folder: Path) -> None:
    """Raise SessionError if the report in a folder is of a training: an evaluation must not replace it."""
    try:
        stored = json.loads(read_text(folder / REPORT[0]))
    except (OSError, ValueError):
        return
    if isinstance(stored, dict) and "training" in stored:
        raise SessionError(f"{folder} holds the report of a training; give another folder by --out")


_STYLE: Final = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .6rem;border-bottom:1px solid #8884;
text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"""


def as_html(report: Mapping[str, Any], title: str) -> str:
    """Return the page: tables, and plots as SVG inside it."""
    which = "that training did not use"
    if report["tested_on_validation"]:
        which = "that chose and calibrated the head, as no share was kept for a test: the figures flatter"
    empty = report["empty_windows"]
    summary = (
        f"{report['windows']} windows of {report['sessions']} sessions {which}. "
        f"The most common class alone would score {report['majority']:.1%}. Labelled windows left out "
        f"because nothing is present in them: {empty['tested']} of these sessions, {empty['all']} of all."
    )
    sections = [
        ("Every set of inputs", _subsets(report)),
        ("Over seeds, with all inputs", _table(report["seeds"])),
        ("Over folds of sessions, each tested once", _table(report.get("folds", {}))),
        ("Against the best head of one input alone", _table(report["single"])),
        ("Accuracy lost when an input is shuffled", _table({"lost": report["shuffle_drop"]})),
        ("Per class", _table(report["per_class"])),
        ("Confusion: true class by row, predicted class by column", _confusion(report)),
        ("Every session or clip counted once", _table({"all inputs": report["by_clip"]})),
        ("Per session", _table(report["per_session"])),
        ("Calibration", _calibration(report["calibration"])),
        ("Noise on the features, in their standard deviations", _curves(report["noise"], "noise")),
        ("One input late, in ticks", _delay(report)),
        (f"Conformal sets for {1 - ALPHA:.0%} coverage, a threshold per set", _conformal_sets(report)),
        ("Cost of the models of a tick", _cost(report["cost"])),
        ("Search for the classes by their names", _retrieval(report.get("retrieval", {}))),
    ]
    return page(title, summary, dict(sections))


def page(title: str, intro: str, sections: Mapping[str, str]) -> str:
    """Return a page that needs no other file; title and intro are text, sections HTML by heading."""
    body = "\n".join(f"<h2>{html.escape(head)}</h2>\n{content}" for head, content in sections.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>{body}</html>\n"
    )


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    heads = list(next(iter(rows.values())))
    lines = ["<table><tr><th></th>", *(f"<th>{html.escape(head)}</th>" for head in heads), "</tr>"]
    for name, cells in rows.items():
        values = "".join(f"<td>{_number(cells[head])}</td>" for head in heads)
        lines.append(f"<tr><td>{html.escape(name)}</td>{values}</tr>")
    return "".join([*lines, "</table>"])


def _number(value: Any) -> str:
    whole = isinstance(value, int) or float(value).is_integer()
    return f"{value:.0f}" if whole and abs(value) > 1 else f"{value:.3f}"


def _subsets(report: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in report["left_out"].items())
    return _table(report["subsets"]) + f"<p>Windows left out, as all of the set are absent: {counts}.</p>"


def _delay(report: Mapping[str, Any]) -> str:
    missed = ", ".join(
        f"{name} {count} at {lag}"
        for name, counts in report["delay_left_out"].items()
        for lag, count in counts.items()
        if count
    )
    curves = _curves(report["delay"], "ticks late")
    return curves + (f"<p>Windows left out, as nothing is present: {missed}.</p>" if missed else "")


def _confusion(report: Mapping[str, Any]) -> str:
    names = report["classes"]
    rows = {
        name: dict(zip(names, row, strict=True)) for name, row in zip(names, report["confusion"], strict=True)
    }
    return _table(rows)


def _conformal_sets(report: Mapping[str, Any]) -> str:
    names = ", ".join(report["threshold_sessions"]) or "no session, because a single one is used for the test"
    return f"<p>Thresholds come from {html.escape(names)}.</p>" + _table(report["conformal"])


def _cost(cost: Mapping[str, Any]) -> str:
    text = (
        f"<p>{cost['models_ms_per_tick']:.2f} ms per tick: encoders {cost['encoders_ms_per_tick']:.2f}, "
        f"averaged over {cost['windows']} windows, an encoder runs only where its input has changed; "
        f"head {cost['head_ms_per_tick']:.2f}, with {cost['head_parameters']} parameters.</p>"
    )
    return text + _table({"ms when it runs": cost["encoder_ms_when_it_runs"]})


def _retrieval(kinds: Mapping[str, Any]) -> str:
    return _table({f"{kind} ({found['model']})": found["mean"] for kind, found in kinds.items()})


def _curves(curves: Mapping[str, Mapping[str, float]], label: str) -> str:
    figure = Figure((6, 3), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot([float(x) for x in points], list(points.values()), marker="o", label=name)
    axes.set(xlabel=label, ylabel="accuracy", ylim=(0, 1.02))
    axes.legend()
    return svg(figure)


def _calibration(bins: Sequence[Mapping[str, float]]) -> str:
    figure = Figure((4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    return svg(figure)


def svg(figure: Figure) -> str:
    """Return a figure as an element of a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
