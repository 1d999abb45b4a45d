"""What only a real GPU can show; skipped where there is none."""

import pytest
import torch
from chapter_experiments import chapter_module
from torch import nn

from geolib.core import (
    Categorical,
    PullbackMetric,
    Realization,
    init_,
    normal,
)
from geolib.networks import (
    DeviceMemoryError,
    Table,
    fitting_batch,
    lenet,
    train_module,
    training,
)

vgg = chapter_module("geodesics", "vgg").vgg
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no GPU"
)


@pytest.mark.parametrize("method", ["cholesky", "woodbury", "nystrom", "cg", "auto"])
def test_a_step_on_the_gpu_is_the_step_on_the_cpu(method):
    module = init_(nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4)), 0)
    x, steps = normal((300, 9), 1), []
    for place in (x, x.cuda()):
        R = Realization(module.to(place.device, place.dtype))
        v = normal(R.p, 2).to(place)
        G = PullbackMetric(R, place, Categorical()).at(R.theta0)
        steps.append((G.solve(v, damping=1e-3, method=method).x, G @ v, v))
    assert steps[1][0].is_cuda
    for ours, theirs in zip(*steps, strict=True):
        assert float((ours - theirs.cpu()).norm() / ours.norm()) < 1e-6


def test_work_that_fills_the_device_is_halved_until_it_fits():
    total = torch.cuda.get_device_properties(0).total_memory
    row = total // 48

    def fill(rows):
        held = [torch.empty(row, dtype=torch.uint8, device="cuda") for _ in range(rows)]
        return len(held)

    assert fitting_batch(fill, 64) == (32, 32)
    with pytest.raises(DeviceMemoryError, match=r"\[192, 96, 64\]"):
        fitting_batch(fill, 192, 64)


def cifar_like(n, dtype=torch.float32):
    x = normal((n, 3, 32, 32), 1).to("cuda", dtype)
    y = (torch.arange(n) % 3).cuda()
    return Table(x, y, x, y, x, y)


def test_a_batch_that_does_not_fit_is_answered_with_one_that_does():
    data, net = cifar_like(64), vgg(classes=3).cuda()
    with pytest.raises(DeviceMemoryError, match="one of") as caught:
        train_module(net, data, steps=1, batch=2**20)
    fits = int(str(caught.value).split("one of ")[1].split(" ")[0])
    assert 2**10 < fits < 2**20
    torch.cuda.empty_cache()
    train_module(net, data, steps=1, batch=fits)


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    data = cifar_like(256)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def train(steps, file=None, stop=None):
        net = vgg(classes=3, width=1 / 8).cuda()
        draw = training._draw

        def counted(*args):
            if args[3] == stop:
                raise KeyboardInterrupt
            return draw(*args)

        monkeypatch.setattr(training, "_draw", counted)
        try:
            return train_module(
                net, data, steps=steps, batch=64, augment=True, file=file, every=5
            )
        except KeyboardInterrupt:
            return None
        finally:
            monkeypatch.setattr(training, "_draw", draw)

    whole = train(20)
    file = tmp_path / "run.safetensors"
    assert train(20, file, stop=13) is None
    resumed = train(20, file)
    for a, b in zip(
        whole.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_network_in_float32_trains_on_the_gpu():
    data = cifar_like(128)
    net = lenet(
        channels=3, side=32, classes=3, widths=(4, 8, 16), dtype=torch.float32
    ).cuda()
    train_module(net, data, steps=150, batch=64, lr=3e-3)
    guesses = net(data.x).argmax(1)
    assert float((guesses == data.y).double().mean()) > 0.9
