"""Scores of search by the labels of sessions: mean average precision and recall by class."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perception.errors import SessionError
from perception.retrieval import APART_S
from perception.retrieval.ranking import RECALL_AT, RankingMetrics, best, mean, ranking_metrics
from perception.retrieval.search import Query, SearchIndex, Show, find_sessions, open_indexes
from perception.retrieval.streams import Step
from perception.session.labels import Span, of_session


def evaluate(
    index: SearchIndex, spans: Mapping[Path, Sequence[Span]], *, apart_s: float
) -> dict[str, RankingMetrics]:
    """Return the metrics of the rankings for the classes of the labels, by class.

    The query is the name of the class; items in its spans are relevant. Recorded labels are not ranked.
    """
    scored = {}
    index = index.without("label/")
    for name in sorted({span.name for each in spans.values() for span in each}):
        own = {path: [span for span in each if span.name == name] for path, each in spans.items()}
        relevant = index.relevant(own)
        if relevant.any():
            scores = index.scores(Query(name.replace("_", " ")))
            scored[name] = ranking_metrics(
                scores,
                relevant,
                best(scores, index.stamps_ns, index.groups, max(RECALL_AT), round(apart_s * 1e9)),
            )
    return scored


def labelled(sessions: Sequence[Path], track: str) -> dict[Path, list[Span]]:
    """Return the labels of one track by session; SessionError if there are none."""
    spans = {path: [one for one in of_session(path) if one.track == track] for path in sessions}
    if not any(spans.values()):
        raise SessionError(f"no labels of track '{track}' in these sessions or beside them")
    return spans


def score_sessions(
    paths: Sequence[Path], track: str, models: Mapping[str, str], *, show: Show
) -> dict[str, Any]:
    """Return the scores of search by these models for the classes of a track, as plain data."""
    sessions = find_sessions(paths)
    spans = labelled(sessions, track)
    indexes = open_indexes(sessions, tuple(models), models, Step(), show=show)
    return as_json([(index, evaluate(index, spans, apart_s=APART_S)) for index in indexes])


def as_json(found: Sequence[tuple[SearchIndex, Mapping[str, RankingMetrics]]]) -> dict[str, Any]:
    """Return metrics as plain data, by kind."""
    return {
        index.kind: {
            "model": index.model,
            "mean": mean(scored),
            "queries": {name: asdict(one) for name, one in scored.items()},
        }
        for index, scored in found
    }
