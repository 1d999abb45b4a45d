"""A training process that is killed, and a device that is full: nothing is lost."""

import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from geolib.networks import DeviceMemoryError, Table, mlp, train_module

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys, time
import torch
from geolib.networks import Table, lenet, train_module, training

def train(file, pause):
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, 8, 8, dtype=torch.float64, generator=draws)
    y = torch.arange(24) % 3
    draw = training._draw
    def slow(*args):
        time.sleep(pause)
        return draw(*args)
    training._draw = slow
    net = lenet(0, side=8, classes=3, batch_norm=True, widths=(2, 3, 4))
    data = Table(x, y, x, y, x, y)
    try:
        return train_module(net, data, steps=20, batch=8, seed=3, every=4, file=file)
    finally:
        training._draw = draw
"""


@pytest.mark.slow
def test_sigkill_of_a_training_process_and_resume_give_the_same_bits(tmp_path):
    space: dict = {}
    exec(TRAIN, space)
    whole = space["train"](None, 0.0)
    file = tmp_path / "run.pt"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{TRAIN}\ntrain({str(file)!r}, 0.2)"], cwd=ROOT
    )
    try:
        end = time.monotonic() + 120
        while not file.exists() or torch.load(file)["record"]["step"] < 8:
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        child.kill()
    assert child.wait(timeout=30) == -9
    assert 8 <= torch.load(file)["record"]["step"] < 20
    resumed = space["train"](file, 0.0)
    assert torch.load(file)["record"]["step"] == 20
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class Small(nn.Module):
    """A network on a device that holds so many rows in training, and no more."""

    def __init__(self, rows):
        super().__init__()
        self.inner, self.rows = mlp([4, 5, 3]), rows

    def forward(self, x):
        if self.training and len(x) > self.rows:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(x)


class Filling(nn.Module):
    """Refuses every batch above `rows`, and any while an earlier one still lives."""

    def __init__(self, rows):
        super().__init__()
        self.inner, self.rows, self.filled = mlp([4, 5, 3]), rows, []

    def forward(self, x):
        assert all(ref() is None for ref in self.filled)
        activations = self.inner(x)
        if self.training and len(x) > self.rows:
            self.filled.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        return activations


def test_what_filled_the_device_is_gone_before_a_smaller_batch_is_tried():
    x = torch.zeros(40, 4, dtype=torch.float64)
    data = Table(x, torch.arange(40) % 3, *(2 * (x, torch.arange(40) % 3)))
    with pytest.raises(DeviceMemoryError, match="one of 8 does"):
        train_module(Filling(9), data, steps=1, batch=32)


def test_a_full_device_is_answered_with_the_batch_that_fits(tmp_path):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, dtype=torch.float64, generator=draws)
    data = Table(x, torch.arange(40) % 3, *(2 * (x, torch.arange(40) % 3)))
    plan = {"steps": 2, "file": tmp_path / "run.pt", "every": 1}
    with pytest.raises(DeviceMemoryError, match=r"batch of 32 .* one of 8 does; what"):
        train_module(Small(9), data, batch=32, **plan)
    with pytest.raises(DeviceMemoryError, match=r"at batch sizes \[16, 8, 4, 2, 1\]"):
        train_module(Small(0), data, batch=32, **plan)
    # a batch above the number of rows: the size that is named was really tried
    with pytest.raises(DeviceMemoryError, match="batch of 200 .* one of 50 does"):
        train_module(Small(50), data, steps=1, batch=200)
    assert train_module(Small(9), data, batch=8, **plan).training is False
