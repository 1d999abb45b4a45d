"""The one training loop."""

import pytest
import torch

from geolib.core import Realization
from geolib.networks import mlp, train


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
