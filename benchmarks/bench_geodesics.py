"""Issue 6's bars: metric products along a path, geodesics, sparsification, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.harness import Result, benchmark, race
from geolib.core import Realization

ROOT = Path(__file__).resolve().parent.parent


def _digits_pair(first: int):
    from geolib.networks import mlp, table, train

    data = table("digits", validation=0)
    R = Realization(mlp([64, 32, 32, 10]))
    ends = [
        train(R, data.x, data.y, w=Realization(mlp([64, 32, 32, 10], s)).theta0,
              steps=1000, seed=s)
        for s in (first, first + 1)
    ]  # fmt: skip
    return R, ends, data


@benchmark(
    "geodesics.product",
    bar="<= 1.3",
    size="16 points, 2e5 weights, 256 inputs, float32",
    title="A metric product at each point of a path against a loss gradient there",
)
def product() -> Result:
    """Products with cached forward passes against gradients by plain autograd."""
    from geolib.geodesics import FunctionSpace
    from geolib.networks import mlp

    net = mlp([784, 220, 100, 10], dtype=torch.float32)
    R = Realization(net)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 784, generator=draw)
    y = torch.randint(10, (256,), generator=draw)
    v = torch.randn(R.p, generator=draw)
    points = [R.theta0 * (1 + 0.01 * k) for k in range(16)]
    metrics = [FunctionSpace(R, x, damping=0.0).metric(w) for w in points]
    parameters = [
        [t.clone().requires_grad_(True) for t in R.unflatten(w).values()]
        for w in points
    ]

    def theirs():
        def run():
            for leaves in parameters:
                named = dict(zip(R.names, leaves, strict=True))
                z = torch.func.functional_call(net, named, (x,))
                torch.autograd.grad(F.cross_entropy(z, y), leaves)

        return run

    def ours():
        for G in metrics:
            G @ v

    dense = (metrics[0] @ v).double()
    phi = Realization(net.double())
    exact = FunctionSpace(phi, x.double(), damping=0.0).metric(points[0].double())
    error = float((dense - exact @ v.double()).norm() / dense.norm())
    net.float()
    result = race(ours, {"torch gradient": theirs}, rounds=5)
    note = f"The float32 product differs from a float64 one by {error:.1e}, relative."
    return Result(
        result.ours, result.peer, peers=result.peers, timing=result.timing, note=note
    )


@benchmark(
    "geodesics.digits_seconds",
    bar="<= 10",
    of="ours",
    size="64-32-32-10, 1200 inputs, float64, one core",
    title="CPU seconds for a geodesic between digits networks to barrier <= 0.01",
)
def digits_seconds() -> Result:
    """The default search, 500 steps of 128 inputs."""
    from geolib.geodesics import FunctionSpace, geodesic, profile

    R, (a, b), data = _digits_pair(0)
    clock = time.process_time()
    found = geodesic(FunctionSpace(R, data.x), a, b, steps=500, batch=128)
    seconds = time.process_time() - clock
    barrier = profile(found.path, lambda w: R(w, data.x), data.y).barrier
    if barrier > 0.01:
        raise AssertionError(f"barrier {barrier:.3g} above 0.01")
    return Result(
        seconds, unit="s", note=f"The barrier on the path found is {barrier:.1e}."
    )


PASSES = "4 pairs (seeds 20 to 27), barrier <= 0.01, budgets in steps of 800"


def _least_passes(first: int, aligned: bool) -> tuple[int, int]:
    """Least budgets of the geodesic and of the Bezier curve, settings of seeds 0 to 5.

    Raises:
        AssertionError: no budget up to 48000 passes suffices.
    """
    from geolib.geodesics import (
        FunctionSpace,
        SineBasis,
        geodesic,
        profile,
        trained_curve,
    )
    from geolib.networks import align, mlp

    R, (a, b), data = _digits_pair(first)
    space, batch = FunctionSpace(R, data.x), 16
    # the middle of a line between unlike networks is too small by sqrt 2
    start = None if aligned else (2**0.5 - 1) * (a + b)[None] / 2
    if aligned:
        nets = [mlp([64, 32, 32, 10]) for _ in range(2)]
        for net, w in zip(nets, (a, b), strict=True):
            Realization(net).load(w)
        b = Realization(align(*nets).module).theta0

    def mine(steps):
        plan = {"basis": SineBasis(1), "segments": 2, "batch": batch, "lr": 1e-2}
        return geodesic(space, a, b, steps=steps, start=start, **plan).path

    def labelled(steps):
        options = {"steps": steps, "batch": batch, "lr": 2e-2}
        return trained_curve(R, a, b, data.x, data.y, **options).path

    def least(search) -> int:
        for passes in range(800, 48001, 800):
            path = search(passes // batch)
            if profile(path, lambda w: R(w, data.x), data.y, 33).barrier <= 0.01:
                return passes
        raise AssertionError(f"pair {first}: no budget up to 48000 suffices")

    return least(mine), least(labelled)


def _passes(aligned: bool) -> Result:
    pairs = [_least_passes(first, aligned) for first in (20, 22, 24, 26)]
    ours, theirs = zip(*pairs, strict=True)
    fewer = sum(a < b for a, b in zip(ours, theirs, strict=True))
    note = f"The geodesic needs fewer evaluations on {fewer} of {len(ours)} pairs."
    total = float(sum(ours)), float(sum(theirs))
    return Result(*total, unit="passes", peer_name="Bezier curve", note=note)


@benchmark("geodesics.digits_passes", bar="<= 1", size=PASSES)
def digits_passes() -> Result:
    """Gradient evaluations to barrier <= 0.01 against the Bezier curve's"""
    return _passes(aligned=False)


@benchmark("geodesics.digits_passes_aligned", bar="<= 1", size=PASSES)
def digits_passes_aligned() -> Result:
    """Gradient evaluations to barrier <= 0.01, both curves after aligning the units"""
    return _passes(aligned=True)


@benchmark(
    "geodesics.sparsify_seconds",
    bar="<= 180",
    of="ours",
    size="784-300-100-10, MNIST, 95 % zeros, float32",
    slow=True,
    title="CPU seconds to sparsify a network on MNIST",
)
def sparsify_seconds() -> Result:
    """`sparsify` alone; the dense network is trained first, untimed."""
    from geolib.geodesics import sparsify
    from geolib.networks import accuracy, mlp, table, train

    data = table("mnist", validation=2000, dtype=torch.float32)
    R = Realization(mlp([784, 300, 100, 10], dtype=torch.float32))
    x, x_test = data.x.flatten(1), data.x_test.flatten(1)
    R.load(train(R, x, data.y, steps=2000))
    clock = time.process_time()
    found = sparsify(R.module, x, 0.95)
    seconds = time.process_time() - clock
    sparse = Realization(found.module)
    score = accuracy(sparse, sparse.theta0, x_test, data.y_test)
    return Result(
        seconds,
        unit="s",
        note=f"The sparse network is right on {score:.1%} of the test set.",
    )


def _removed(net, x) -> Result:
    """Race the network that `sparsify` returns against the one it was given."""
    from geolib.geodesics import sparsify

    found = sparsify(net, x[:64], 0.5, structured=True, steps=2, batch=64)
    full, less = (sum(p.numel() for p in m.parameters()) for m in (net, found.module))
    with torch.no_grad():
        result = race(lambda: found.module(x), {"torch dense": lambda: lambda: net(x)},
                      agree=lambda ours, theirs: 0.0, rounds=5)  # fmt: skip
    note = f"{less:,} of {full:,} weights are left."
    return Result(result.ours, result.peer, peers=result.peers, timing=result.timing,
                  note=note)  # fmt: skip


@benchmark(
    "geodesics.removed_neurons",
    bar="< 1",
    size="784-300-100-10, half the neurons, 512 inputs, float32",
    title="A forward pass after whole neurons were removed against before",
)
def removed_neurons() -> Result:
    """The module of `sparsify(structured=True)` against the dense one."""
    from geolib.networks import mlp

    x = torch.randn(512, 784, generator=torch.Generator().manual_seed(0))
    return _removed(mlp([784, 300, 100, 10], dtype=torch.float32), x)


@benchmark(
    "geodesics.removed_filters",
    bar="< 1",
    size="LeNet-like, 32 and 64 filters, half of them, 128 images 28 x 28, float32",
    title="A forward pass after whole filters were removed against before",
)
def removed_filters() -> Result:
    """The same for convolutions with BatchNorm."""
    from geolib.networks import lenet

    net = lenet(batch_norm=True, widths=(32, 64, 128), dtype=torch.float32)
    x = torch.randn(128, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return _removed(net, x)


MEMORY = """
import torch
torch.set_num_threads(1)
from geolib.core import Realization
from geolib.geodesics import FunctionSpace, geodesic
from geolib.networks import mlp

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(q for q in lines if q.startswith(key)).split()[1])

def net(seed):
    return Realization(mlp([784, 600, 600, 10], seed, dtype=torch.float32))

x = torch.randn(256, 784, generator=torch.Generator().manual_seed(0))
space, b = FunctionSpace(net(0), x), net(1).theta0
def search(segments, checkpoint):
    geodesic(space, space.realization.theta0, b, steps=1, segments=segments,
             checkpoint=checkpoint)

search(2, True)  # what torch loads on first use is not the search's
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = status("VmRSS")
search(%d, %s)
print((status("VmHWM") - before) / 1024)
"""


def fresh(program: str) -> list[float]:
    """The numbers that a program prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [float(word) for word in done.stdout.split()]


def peak(segments: int, checkpoint: bool) -> float:
    """MiB that a fresh interpreter's peak grows by during a search of one step."""
    return fresh(MEMORY % (segments, checkpoint))[0]


@benchmark(
    "geodesics.path_memory",
    bar="<= 1.3",
    size="784-600-600-10, 256 inputs; 32 against 4 segments, checkpoint=True",
    title="Peak memory of a path search with 8 times as many points",
)
def path_memory() -> Result:
    """Resident memory of a fresh interpreter; the final check is included."""
    few, many, plain = peak(4, True), peak(32, True), peak(32, False)
    model = 4 * (784 * 600 + 600 + 600 * 600 + 600 + 600 * 10 + 10) / 2**20
    note = (
        f"That is the size of {many / model:.0f} models. Without `checkpoint` the "
        f"search with 32 segments takes {plain / few:.1f} times what 4 segments take."
    )
    return Result(many, few, unit="MiB", peer_name="4 segments", note=note)


STEPS = """
import sys, time, torch
torch.set_num_threads(1)
from geolib.geodesics import sparsify
sys.path.append("chapters/geodesics")
from vgg import vgg

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(q for q in lines if q.startswith("VmHWM")).split()[1]) / 1024

net = vgg("vgg11", width=1 / 4, dtype=torch.float32)
x = torch.randn(2560, 3, 32, 32, generator=torch.Generator().manual_seed(0))
y = torch.arange(2560) % 10
for labels in (None, y):
    marks, each = [], []
    sparsify(net, x, 0.9, steps=4, labels=labels, iterations=9,
             callback=lambda step, value: marks.append(time.process_time()))
    each = sorted(b - a for a, b in zip(marks, marks[1:]))
    print(each[len(each) // 2], peak())
"""


@benchmark(
    "geodesics.sparsify_vgg",
    bar="<= 3",
    of="ours",
    size="VGG11-BN at a quarter of the width, 256 images 32 x 32, float32, one core",
    slow=True,
    title="CPU seconds for a step of sparsification of a VGG, below 1.5 GB",
)
def sparsify_vgg() -> Result:
    """The median step of the label-free path; in the note a step on labels."""
    walk, memory, taught, both = fresh(STEPS)
    if both > 1536:
        raise AssertionError(f"a peak of {both:.0f} MiB, above 1.5 GiB")
    note = (
        f"The whole process peaks at {memory:.0f} MiB, with labels at {both:.0f} MiB. "
        f"A step on labels, a thirteenth of the passes, takes {taught:.2f} s."
    )
    return Result(walk, unit="s", note=note)
