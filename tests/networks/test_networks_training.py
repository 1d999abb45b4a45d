"""The one training loop."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from geolib.core import Realization
from geolib.data import load
from geolib.networks import Task, mlp, table, train


def test_networks_trained_side_by_side_are_those_trained_alone():
    R = Realization(mlp([3, 5, 4]))
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=draw, dtype=torch.float64)
    y = torch.arange(40) % 4
    starts = torch.stack([Realization(mlp([3, 5, 4], s)).theta0 for s in range(3)])
    plan = {"steps": 30, "batch": 16, "lr": 0.03}
    together = train(R, x, y, w=starts, seed=range(5, 8), **plan)
    for found, start, seed in zip(together, starts, range(5, 8), strict=True):
        alone = train(R, x, y, w=start, seed=seed, **plan)
        assert torch.allclose(found, alone, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="seed: expected one for each of 3 starts"):
        train(R, x, y, w=starts, seed=0, **plan)


def test_a_task_is_read_from_whatever_holds_pairs():
    """A shuffled loader, a data set and arrays of bytes give one task, and draw nothing."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (7, 2, 2), dtype=np.uint8)
    y = np.array([4, 1, 1, 4, 1, 4, 4])
    pairs = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    before = torch.get_rng_state()
    for form in ((x, y), pairs, DataLoader(pairs, 3, shuffle=True)):
        task = Task.of(form, pairs, lambda b: b.double() / 255, torch.zeros(1).double())
        assert task.x.dtype == torch.float64
        assert np.array_equal(task.x, x / 255)
        assert task.y.tolist() == y.tolist()
        assert task.classes == (1, 4)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="^transform: train are bytes"):
        Task.of(pairs, pairs)
    with pytest.raises(
        ValueError, match=r"^test: expected .* whole numbers, got .*float"
    ):
        Task.of((x / 255, y), (x / 255, y / 2))


def test_a_table_holds_classes_or_numbers_as_they_are():
    read, data = load("diabetes"), table("diabetes", validation=50)
    assert table("digits").y.dtype == torch.int64
    assert data.y.dtype == torch.float64
    held = torch.cat([data.y, data.y_val]).sort().values
    assert torch.equal(held, torch.from_numpy(read.y).sort().values)
