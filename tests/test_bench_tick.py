"""The tick bench: every stage is timed, and what is around the models adds up."""

import pytest

from perception.bench import tick, tick_device
from perception.bench.rounds import interleave


def test_every_stage_of_a_tick_is_timed_beside_the_models_alone() -> None:
    figures = interleave(tick.cases(seconds=0.5, profiles=("demo",)), 1)
    assert set(figures) == {"demo limit: models alone", "demo"}
    row = figures["demo"]
    assert {f"{name}_us" for name in (*tick.STAGES, "models", "decode")} < set(row)
    assert all(figure.median > 0 for figure in row.values())
    assert row["overhead_p50_us"].median <= row["p50_us"].median


def test_on_a_device_the_trio_is_measured_beside_a_plain_loop_and_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tick_device, "CAMERAS", 2)
    monkeypatch.setattr(tick_device, "MICROPHONES", 1)
    figures = interleave(tick_device.cases(device="cpu", seconds=1.2), 1)
    assert set(figures) == {
        "trio",
        "trio, plain eager loop",
        "2 cameras, 1 microphones",
        "trio against the cpu",
    }
    assert figures["trio against the cpu"]["error"].median == 0
    assert figures["trio"]["per_second"].median > 0
