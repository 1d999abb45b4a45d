"""How a chapter's main cost grows with its size, beside a plain way to do the same."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.bench_inverse_stability import network, sampled
from benchmarks.bench_regimes import rate
from benchmarks.bench_stratifolds import against_loop
from benchmarks.harness import Result, benchmark, grow, race
from geolib.core import Realization


@benchmark("stratifolds.growth", bar="<= 0.1", size="10 steps, mixture A, 400 starts")
def stratifolds() -> Result:
    """Batched descent against a loop over starts, as their number grows"""
    return grow((25, 50, 100, 200, 400), against_loop, "starts")


@benchmark("regimes.growth", size="d = h = 512, n = 2048, float64")
def regimes() -> Result:
    """Simulator against its own matrix products alone, as the input grows"""
    return grow(
        (64, 128, 256, 512), lambda d: rate(d, 4 * d, "float64", "cpu", 0.02), "d"
    )


@benchmark("inverse_stability.growth", size="d = 2, m = 800")
def inverse_stability() -> Result:
    """Exact semi-norm in the plane against 2^16 sampled directions, as units grow"""
    from geolib.inverse_stability import w1inf_seminorm

    def at(m: int) -> Result:
        net = network(2, m, 0)
        peer = {"numpy sampling": lambda: lambda: sampled(net, 2**16)}
        return race(lambda: w1inf_seminorm(net).value, peer, rounds=3)

    return grow((50, 100, 200, 400, 800), at, "hidden units")


@benchmark("geodesics.growth", bar="<= 1.3", size="2e5 weights, 512 inputs, float32")
def geodesics() -> Result:
    """A product with the cached metric against a loss gradient, as inputs grow"""
    from geolib.geodesics import FunctionSpace
    from geolib.networks import mlp

    net = mlp([784, 220, 100, 10], dtype=torch.float32)
    R = Realization(net)
    draw = torch.Generator().manual_seed(0)
    v = torch.randn(R.p, generator=draw)

    def at(n: int) -> Result:
        x = torch.randn(n, 784, generator=draw)
        y = torch.randint(10, (n,), generator=draw)
        G = FunctionSpace(R, x, damping=0.0).metric(R.theta0)

        def gradient() -> None:
            torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))

        def product() -> None:
            G @ v

        return race(product, {"torch gradient": lambda: gradient}, rounds=5)

    return grow((32, 64, 128, 256, 512), at, "inputs")
