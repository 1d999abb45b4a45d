"""Kinks, ties and low precision are no broken assumption."""

import pytest
import torch
from read_layer import Layers
from torch import nn

from geolib.core import (
    Realization,
    init_,
    normal,
)


class Deep(nn.Module):
    """Thirty ReLU layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(30))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "build",
    [
        Deep,
        lambda: nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 4, 3), nn.ReLU(),
                              nn.MaxPool1d(2), nn.Flatten(), nn.Linear(36, 2)),
        lambda: nn.Sequential(nn.Unflatten(1, (4, 5)), Layers(
            nn.LSTM(5, 6, 2, batch_first=True), 6)),
    ],
)  # fmt: skip
def test_kinks_ties_and_precision_raise_no_false_alarm(build, dtype):
    for seed in range(5):
        module = init_(build().to(dtype), seed, "he")
        R = Realization(module)
        x = normal((4, 20), seed).to(dtype)
        for inputs in (x, 0 * x, x.relu(), torch.ones_like(x), 100 * x):
            for theta in (R.theta0, 0 * R.theta0, 30 * R.theta0):
                Realization(module).check(theta, inputs)
