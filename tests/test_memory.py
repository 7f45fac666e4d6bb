"""A head with a GRU over ticks: the same windows give the same answers, live, in batches and in training."""

from pathlib import Path

import pytest
import torch

from perception.devices.script import CLASSES
from perception.fusion.build import build_engine
from perception.fusion.core import FusionCore
from perception.fusion.window import Window
from perception.models.checkpoint import load_head
from perception.models.fusion import FeatureFusion
from perception.models.memory import TickMemory
from perception.profile import HeadConfig
from perception.training import dataset
from perception.training.evaluate import probabilities, truth_of
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.heads import new_head
from perception.training.model import FusionModel
from perception.training.plan import HeadPlan
from perception.training.scores import metrics
from tests.test_training_dataset import CHEAP, config, record, script

K = 5


def head_of(dims: dict[str, int]) -> FeatureFusion:
    torch.manual_seed(2)
    return FeatureFusion(dims, CLASSES, head="mlp", use_ages=True, gru=7, ticks=K).eval()


def test_it_is_torchs_cell_over_the_ticks_since_the_last_gap() -> None:
    torch.manual_seed(0)
    memory, x = TickMemory(3, 4), torch.randn(40, K, 3)
    cell = torch.nn.GRUCell(3, 4)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in memory.gru.state_dict().items()})
    known = torch.rand(40, K) < 0.8
    known[0] = True
    known[1:3, -1] = False
    state = torch.zeros(40, 4)
    for tick in range(K):
        state = torch.where(known[:, tick, None], cell(x[:, tick], state), 0.0)
    torch.testing.assert_close(memory(x, known), state)
    assert not memory(x, known)[1:3].any()


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    core = FusionCore(config(CHEAP))
    return [w for m in script(6.0) if not m.topic.startswith("label") for w in core.push(m)]


def test_ticks_one_by_one_give_what_a_batch_of_them_gives(tmp_path: Path, windows: list[Window]) -> None:
    fusion = config(CHEAP)
    head_of(build_engine(fusion, clock=lambda: 0).dims).save_pretrained(tmp_path)
    engine = build_engine(
        fusion.model_copy(update={"head": HeadConfig(weights=str(tmp_path))}), clock=lambda: 0
    )
    shed = windows[9].tick
    live = {w.end_ns: engine.run(w).fused.probabilities for w in windows if w.tick != shed}
    source = record(tmp_path / "a.mcap", script(6.0))
    data = dataset.build([source], fusion, tmp_path / "cache", classes=CLASSES, context=True)
    data = data.rows(torch.tensor([end_ns in live for end_ns in data.ends_ns.tolist()]))
    loaded = probabilities(FusionModel(load_head(tmp_path)), data)
    ends_ns = data.ends_ns[data.labelled].tolist()
    assert len(ends_ns) > 15
    expected = torch.tensor([live[end_ns] for end_ns in ends_ns], dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(loaded), expected, atol=1e-6, rtol=1e-5)


def test_what_happened_more_than_k_ticks_ago_does_not_matter(windows: list[Window]) -> None:
    config_ = config(CHEAP)
    engines = [build_engine(config_, clock=lambda: 0) for _ in range(2)]
    for engine in engines:
        engine.use(head_of(engine.dims))
    whole = [engines[0].run(window).fused for window in windows]
    late = [engines[1].run(window).fused for window in windows[8:]]
    assert whole[8 + K - 1 :] == late[K - 1 :]
    assert whole[8] != late[0]


def test_the_context_of_a_row_stays_inside_its_source_and_stops_at_a_gap() -> None:
    data = Examples.of({"a": torch.arange(8.0)[:, None]}, torch.zeros(8).long(), ("x", "y"))
    ends_ns = torch.tensor([1, 2, 3, 5, 6, 1, 2, 3])
    sources = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    data = Examples(
        data.features, data.present, data.ages_s, data.labels, sources, ends_ns, ("x", "y"), ("0", "1")
    )
    shown = data.context(torch.tensor([2, 4, 6]), 3)
    assert shown.known is not None
    assert shown.known.tolist() == [[True] * 3, [False, True, True], [False, True, True]]
    assert shown.features["a"][0, :, 0].tolist() == [0, 1, 2]


def test_it_learns_what_only_the_order_of_ticks_tells() -> None:
    """Is the value rising or falling? A single window does not show it."""
    generator = torch.Generator().manual_seed(1)
    count, sessions = 40, 30
    start = torch.rand(sessions, 1, generator=generator) * 4
    label = torch.arange(sessions) % 2
    slope = (label * 2 - 1)[:, None]
    values = start + slope * torch.arange(count) * 0.3
    values = torch.remainder(values, 8).flatten()[:, None]
    sources = torch.arange(sessions).repeat_interleave(count)
    labels = label.repeat_interleave(count)
    labels[::7] = -1  # windows without a label are context
    data = Examples.of({"a": values}, labels, ("falling", "rising"), sources)
    train, validation = data.rows(sources < 20), data.rows(sources >= 20)
    accuracy = {}
    for gru in (0, 12):
        model = FusionModel(new_head(HeadPlan(gru=gru, ticks=K, dropout=0), {"a": 1}, data.classes, 0))
        fit(model, train, validation, TrainingConfig(epochs=25, learning_rate=1e-2))
        accuracy[gru] = metrics(truth_of(validation), probabilities(model, validation)).accuracy
    assert accuracy[0] < 0.65
    assert accuracy[12] > 0.9
