"""What search finds, judged by the labels of sessions: mean average precision and recall by class."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perception.errors import SessionError
from perception.retrieval import APART_S
from perception.retrieval.ranking import RECALL_AT, Worth, best, mean, worth
from perception.retrieval.search import Query, Say, Shelf, find_sessions, open_shelves
from perception.retrieval.streams import Step
from perception.session.labels import Span, of_session


def evaluate(shelf: Shelf, spans: Mapping[Path, Sequence[Span]], *, apart_s: float) -> dict[str, Worth]:
    """Judge the rankings for the classes that labels name, by class.

    The query is the name of the class; what lies in a span of it is relevant. Recorded labels themselves
    are not among what is ranked.
    """
    judged = {}
    shelf = shelf.without("label/")
    for name in sorted({span.name for each in spans.values() for span in each}):
        own = {path: [span for span in each if span.name == name] for path, each in spans.items()}
        relevant = shelf.relevant(own)
        if relevant.any():
            scores = shelf.scores(Query(name.replace("_", " ")))
            judged[name] = worth(
                scores,
                relevant,
                best(scores, shelf.stamps_ns, shelf.groups, max(RECALL_AT), round(apart_s * 1e9)),
            )
    return judged


def labelled(sessions: Sequence[Path], track: str) -> dict[Path, list[Span]]:
    """Return the labels of one track by session; SessionError if there are none."""
    spans = {path: [one for one in of_session(path) if one.track == track] for path in sessions}
    if not any(spans.values()):
        raise SessionError(f"no labels of track '{track}' in these sessions or beside them")
    return spans


def judge(paths: Sequence[Path], track: str, models: Mapping[str, str], *, say: Say) -> dict[str, Any]:
    """Return what search in sessions by these models is worth for the classes of a track, as plain data."""
    sessions = find_sessions(paths)
    spans = labelled(sessions, track)
    shelves = open_shelves(sessions, tuple(models), models, Step(), say=say)
    return as_json([(shelf, evaluate(shelf, spans, apart_s=APART_S)) for shelf in shelves])


def as_json(found: Sequence[tuple[Shelf, Mapping[str, Worth]]]) -> dict[str, Any]:
    """Return what rankings are worth as plain data, by kind."""
    return {
        shelf.kind: {
            "model": shelf.model,
            "mean": mean(judged),
            "queries": {name: asdict(one) for name, one in judged.items()},
        }
        for shelf, judged in found
    }
