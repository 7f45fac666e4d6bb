"""The tick bench: every stage is timed, and what is around the models adds up."""

from perception.bench import tick
from perception.bench.rounds import interleave


def test_every_stage_of_a_tick_is_timed_beside_the_models_alone() -> None:
    figures = interleave(tick.cases(seconds=0.5, profiles=("demo",)), 1)
    assert set(figures) == {"demo limit: models alone", "demo"}
    row = figures["demo"]
    assert {f"{name}_us" for name in (*tick.STAGES, "models", "decode")} < set(row)
    assert all(figure.median > 0 for figure in row.values())
    assert row["overhead_p50_us"].median <= row["p50_us"].median
