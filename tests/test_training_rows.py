"""Rows of features: read from several files, packed, joined."""

import dataclasses
from pathlib import Path

import pytest
import torch

from perception.errors import SessionError
from perception.models.feature_cache import Cache
from perception.training.examples import Examples
from perception.training.rows import Rows


def test_rows_stand_for_the_tensor_that_is_not_made_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, 3, generator=generator) for count in (5, 0, 7, 1)]
    whole, rows = torch.cat(parts), Rows.joined([Rows([part.numpy() for part in parts[:2]]), *parts[2:]])
    assert (len(rows), rows.shape) == (13, (13, 3))
    assert torch.equal(rows.read(), whole)
    mixed = torch.randint(13, (4, 6), generator=generator)
    for index in (mixed, slice(3, 9, 2), whole[:, 0] > 0, torch.zeros(0).long()):
        assert torch.equal(rows[index].read(), whole[index])
        assert torch.equal(rows[index].read(), Rows.joined([rows[index]]).read())
    assert torch.equal(rows[mixed][1:, 2].read(), whole[mixed][1:, 2])  # type: ignore[index]
    assert torch.equal(Rows.joined([rows[5:], rows[:2]]).read(), torch.cat([whole[5:], whole[:2]]))


def test_few_rows_are_packed_and_many_stay_in_the_files_of_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    rows = 1000
    parts = []
    for name in ("first", "second", "third"):
        cache.put(name, {"x": torch.full((rows, 1), float(len(name)))})
        stored = cache.get(name)
        assert stored is not None
        parts.append(Rows([stored["x"].numpy()]))
    few, many = (Rows.joined(each).packed(limit_bytes=8 * rows) for each in (parts[:2], parts))
    del stored, parts
    maps = Path("/proc/self/maps").read_text()
    assert [f"{name}.safetensors" in maps for name in ("first", "second", "third")] == [True] * 3
    picked = torch.tensor([0, rows, rows - 1, 2 * rows - 1])
    assert few[picked].read().flatten().tolist() == many[picked].read().flatten().tolist() == [5, 6, 5, 6]
    del many
    maps = Path("/proc/self/maps").read_text()
    assert not any(f"{name}.safetensors" in maps for name in ("first", "second", "third"))


def test_pictures_of_two_sizes_cannot_be_trained_on_together() -> None:
    small, large = (
        Examples.of({"eye": torch.zeros(2, 3, side, side)}, torch.arange(2), ("x", "y")) for side in (4, 8)
    )
    with pytest.raises(SessionError, match=r"encoder 'eye' is \(3, 4, 4\) in 0 and \(3, 8, 8\) in 0"):
        Examples.concatenate([small, large])
    blind = dataclasses.replace(large, present=torch.zeros(2, 1, dtype=torch.bool))
    joined = Examples.concatenate([small, blind]).read()
    assert joined.features["eye"].shape == (4, 3, 4, 4)
