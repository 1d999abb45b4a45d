"""The exact semi-norm against dense sampling, and a canonical form of a VGG-11."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Result, benchmark, race
from geolib.core import init_
from geolib.inverse_stability import (
    ShallowReLU,
    canonicalize,
    random_gauge,
    w1inf_seminorm,
)
from geolib.networks import align

VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
NETS = 8


def network(d: int, m: int, seed: int) -> ShallowReLU:
    """Gaussian weights, one output."""
    rng = np.random.default_rng(seed)
    return ShallowReLU(rng.normal(size=(m, d)), rng.normal(size=(1, m)))


def sampled(net: ShallowReLU, n: int) -> float:
    """The largest partial derivative at n random directions, 16 384 at a time."""
    rng, top = np.random.default_rng(0), 0.0
    for start in range(0, n, 16384):
        x = rng.normal(size=(min(16384, n - start), net.d))
        on = (x @ net.A.T > 0).astype(np.float64)
        for c in net.C:
            top = max(top, float(np.abs(on @ (c[:, None] * net.A)).max()))
    return top


def enough_samples(nets: list[ShallowReLU], most: int) -> int:
    """The least power of two at which sampling gets every one of the nets right.

    One number for all of them: who samples does not know which network is lucky.
    """
    exact = [w1inf_seminorm(net).value for net in nets]
    n = 1024
    while n < most and any(
        sampled(net, n) < value * (1 - 1e-9)
        for net, value in zip(nets, exact, strict=True)
    ):
        n *= 2
    return n


def against_sampling(d: int, m: int, most: int) -> Result:
    """Time one network; the number of samples is fitted on several."""
    nets = [network(d, m, seed) for seed in range(NETS)]
    n = enough_samples(nets, most)

    def sampling() -> Callable[[], float]:
        return lambda: sampled(nets[0], n)

    right = all(sampled(f, n) >= w1inf_seminorm(f).value * (1 - 1e-9) for f in nets)
    note = f"The peer samples {n:,} directions, " + (
        f"the least power of two that gets {NETS} networks right."
        if right
        else f"which is not enough for all of {NETS} networks."
    )
    return race(
        lambda: w1inf_seminorm(nets[0]).value,
        {"numpy dense sampling": sampling},
        rounds=3,
        note=note,
    )


@benchmark(
    "inverse_stability.seminorm_space", bar="<= 1", of="ours", size="d = 3, m = 40"
)
def seminorm_space() -> Result:
    """Exact W^{1,inf} semi-norm in three dimensions (1562 cells), seconds"""
    return against_sampling(3, 40, 2**20)


@benchmark(
    "inverse_stability.seminorm_plane", bar="<= 1", of="ours", size="d = 2, m = 1000"
)
def seminorm_plane() -> Result:
    """Exact W^{1,inf} semi-norm in the plane (2000 cells), seconds"""
    return against_sampling(2, 1000, 2**17)


def vgg11(dtype: torch.dtype) -> nn.Sequential:
    """The network for CIFAR, with batch normalization; 9.2 million parameters."""
    layers: list[nn.Module] = []
    width = 3
    for v in VGG11:
        if v:
            conv = nn.Conv2d(width, v, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(v), nn.ReLU()]
            width = v
        else:
            layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    init_(net, seed=0, scheme="he")
    return net.to(dtype).eval()


@benchmark(
    "inverse_stability.canonicalize",
    bar="<= 5",
    of="ours",
    size="VGG-11 for CIFAR, 9.2 million parameters, float64",
)
def canonical_form() -> Result:
    """Canonical form of a VGG-11: fold, reduce, balance, sort, seconds"""
    net = random_gauge(vgg11(torch.float64), decades=1)
    form = canonicalize(net)
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(4, 3, 32, 32)))
    with torch.no_grad():
        want, got = net(x), form.module(x)
    error = ((want - got).abs().max() / want.abs().max()).item()
    result = race(
        lambda: canonicalize(net) and None,
        rounds=3,
        note=f"It takes {form.sweeps} sweeps. The error is the relative change of outputs.",
    )
    return replace(result, agreement=error)


@benchmark(
    "inverse_stability.align", of="ours", size="VGG-11 for CIFAR, permuted", slow=True
)
def alignment() -> Result:
    """Layer-wise alignment of a VGG-11 with a permuted copy of itself, seconds"""
    net = vgg11(torch.float64)
    other = random_gauge(net, decades=0)
    result = race(
        lambda: align(net, other) and None,
        rounds=3,
        note="The error is the distance left after alignment.",
    )
    return replace(result, agreement=align(net, other).distance)
