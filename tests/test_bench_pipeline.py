"""The pipeline bench: a real graph of processes, the delays of its states, and the models alone."""

from perception.bench import pipeline
from perception.bench.rounds import interleave


def test_a_graph_is_measured_from_capture_to_state() -> None:
    figures = interleave(pipeline.cases(seconds=1.0, profiles=("demo",)), 1)
    alone, row = figures["demo limit: models alone"], figures["demo"]
    assert alone["p50_ms"].median > 0
    assert 0 < row["p50_ms"].median <= row["p95_ms"].median
    assert row["align_p50_ms"].median > 0
    assert row["models_p50_ms"].median < row["p95_ms"].median
