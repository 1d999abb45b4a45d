"""Batches that are read twice must be the same, or are refused by name."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from geolib.core import (
    AssumptionError,
    PullbackMetric,
    Realization,
    init_,
    normal,
)


class Noisy(Dataset):
    """An augmentation: each reading of a row differs."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.randn(3, dtype=torch.float64)


class Shrinking:
    """One batch less each time."""

    def __init__(self, x):
        self.left = [x] * 4

    def __iter__(self):
        self.left = self.left[1:]
        return iter(self.left)


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: DataLoader(x, batch_size=5, shuffle=True),
        lambda x: DataLoader(x, batch_size=12, shuffle=True),
        lambda x: DataLoader(Noisy(), batch_size=4),
        Shrinking,
    ],
)
def test_batches_that_do_not_repeat_are_refused(batches):
    R, x = Realization(nn.Linear(3, 2).double()), batches(normal((12, 3), 1))
    random = torch.get_rng_state()
    with pytest.raises(AssumptionError, match="x: batch . is another") as caught:
        PullbackMetric(R, x)
    assert caught.value.assumption == "data"
    assert torch.equal(random, torch.get_rng_state())


def test_batches_that_repeat_give_the_metric_of_the_whole():
    x, net = normal((12, 3), 1), init_(nn.Linear(3, 2).double(), 0)
    R = Realization(net)
    whole = PullbackMetric(R, x).at(R.theta0).dense()
    for batches in (
        DataLoader(x, batch_size=5),
        DataLoader(TensorDataset(x), batch_size=5),
        [x[:7], x[7:]],
    ):
        random = torch.get_rng_state()
        G = PullbackMetric(R, batches).at(R.theta0)
        torch.testing.assert_close(G.dense(), whole, rtol=1e-12, atol=0)
        assert torch.equal(random, torch.get_rng_state())
