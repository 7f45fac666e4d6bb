"""`perception search`; it imports models when it runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from perception.cli.options import setting
from perception.cli.standard_streams import show
from perception.io.out_path import OutFile, OutFolder
from perception.retrieval import APART_S

if TYPE_CHECKING:
    from perception.retrieval.ranking import RankingMetrics
    from perception.retrieval.search import Hit, Query, SearchIndex

KINDS = ("frames", "sounds", "commands", "states")
_existing = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="SESSION... [QUERY]")
@click.option(
    "--in",
    "kinds",
    type=click.Choice([*KINDS, "all"]),
    default="all",
    show_default=True,
    help="What to search.",
)
@click.option("--image", type=_existing, help="Instead of QUERY: find frames like this picture.")
@click.option("--sound", type=_existing, help="Instead of QUERY: find sounds like the one in this file.")
@click.option(
    "--evaluate",
    metavar="TRACK",
    help="Instead of QUERY: search for each class of this label track; print recall and AP.",
)
@setting("--top", "N", click.IntRange(min=1), 10, "Print the N best results of each kind.")
@click.option(
    "--floor",
    metavar="SCORE",
    type=click.FloatRange(-1, 1),
    help="Omit results below this score. Default: words 0.3, CLIP 0.2, CLAP 0.1, other models none.",
)
@setting("--apart", "S", click.FloatRange(min=0), APART_S, "Least seconds between two results of a session.")
@setting("--every", "S", click.FloatRange(0.02, 60), 0.5, "Index one frame every S seconds.")
@setting("--length", "S", click.FloatRange(1, 60), 2.0, "Index sounds of S seconds each.")
@click.option(
    "--model",
    "models",
    metavar="KIND=MODEL",
    multiple=True,
    help="Model folder or Hub name: frames=CLIP, sounds=CLAP, commands=a sentence model or 'lexical'; "
    "may be repeated.",
)
@click.option(
    "--index", metavar="DIR", type=OutFolder(), help="Folder of the indexes. Default: beside each session."
)
@click.option("--sheet", metavar="FILE", type=OutFile(), help="Write a contact sheet: .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def search(
    words: tuple[str, ...],
    kinds: str,
    image: Path | None,
    sound: Path | None,
    evaluate: str | None,
    top: int,
    floor: float | None,
    apart: float,
    every: float,
    length: float,
    models: tuple[str, ...],
    index: Path | None,
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Find when something was seen, heard or said in sessions.

    Example:  perception search kitchen.mcap "a red cup"

    A SESSION is a file or a folder of sessions. Commands, labels and names in states (fused classes, faces,
    speech) are found by their words. Frames and sounds need a model; they are embedded once, into an index
    beside each session. Results are listed by kind: scores compare within one kind and model only.
    """
    from perception.retrieval import search as engine
    from perception.retrieval.streams import Step

    sessions = engine.find_sessions(_paths(words, instead=(image, sound, evaluate)))
    query = _query(words[-1], image, sound)
    indexes = engine.open_indexes(
        sessions,
        [kind for kind in query.kinds if kinds in (kind, "all")],
        engine.chosen(models),
        Step(every, length),
        folder=index,
        show=lambda text: show(f"perception: {text}", err=True),
    )
    if evaluate is not None:
        from perception.retrieval import evaluation

        spans = evaluation.labelled(sessions, evaluate)
        _show_metrics([(one, evaluation.evaluate(one, spans, apart_s=apart)) for one in indexes], as_json)
        return
    floors = [engine.floor_of(one, query) if floor is None else floor for one in indexes]
    results = [
        (one, engine.search(one, query, top=top, apart_s=apart, floor=least))
        for one, least in zip(indexes, floors, strict=True)
    ]
    _show_hits(results, floors, as_json)
    if sheet is not None:
        from perception.retrieval import sheet as contact

        contact.write(sheet, str(image or sound or words[-1]), dict(results), length)
        show(f"perception: {sheet} written", err=True)


def _paths(words: Sequence[str], instead: Sequence[object]) -> list[Path]:
    """Return the sessions among the words; UsageError if there is not one query, or it is a session."""
    given = sum(option is not None for option in instead)
    if given > 1 or (not given and len(words) < 2):
        raise click.UsageError("give sessions and one of: QUERY, --image, --sound, --evaluate")
    if not given and (Path(words[-1]).exists() or words[-1].endswith(".mcap")):
        raise click.UsageError(f"'{words[-1]}' is a session or file; the QUERY comes last")
    return [Path(word) for word in (words if given else words[:-1])]


def _query(text: str, image: Path | None, sound: Path | None) -> "Query":
    from perception.retrieval.search import Query, picture_query, sound_query

    if image is not None:
        return picture_query(image)
    return Query(text) if sound is None else sound_query(sound)


def _show_hits(
    found: "Sequence[tuple[SearchIndex, Sequence[Hit]]]", floors: "Sequence[float | None]", as_json: bool
) -> None:
    if as_json:
        rows = {one.kind: {"model": one.model, "hits": list(map(asdict, hits))} for one, hits in found}
        click.echo(json.dumps(rows, default=str))
        return
    for (one, hits), floor in zip(found, floors, strict=True):
        least = "" if floor is None else f", score {floor:g} or more"
        show(f"{one}: {len(hits)} of {len(one)}{least}")
        for rank, hit in enumerate(hits, 1):
            show(f"{rank:4}  {hit}")


def _show_metrics(found: "Sequence[tuple[SearchIndex, Mapping[str, RankingMetrics]]]", plain: bool) -> None:
    from perception.retrieval.evaluation import as_json
    from perception.retrieval.ranking import RECALL_AT, mean

    if plain:
        click.echo(json.dumps(as_json(found)))
        return
    for one, by_query in found:
        show(
            f"{one}: mean of {len(by_query)} queries: "
            + ", ".join(f"{name} {value:.3f}" for name, value in mean(by_query).items())
        )
        for name, metrics in by_query.items():
            at = next((f"among the best {k}" for k in RECALL_AT if metrics.found_at[k]), "not found")
            show(f"  {name:24}  AP {metrics.average_precision:.3f}  chance {metrics.chance:.3f}  {at}")
