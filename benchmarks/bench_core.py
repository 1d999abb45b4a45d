"""The geometry core: products with the metric, exact damped steps, and `auto`."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Result, benchmark, race
from geolib.core import Categorical, PullbackMetric, Realization, init_, normal, rng
from geolib.core.solvers import conjugate_gradient
from geolib.data import load

DAMPING = 1e-3
STEP = "p = 985 921, n = 256, one output, damping 1e-3, digits"
ROOT = Path(__file__).resolve().parent.parent


def mlp(*widths: int) -> nn.Module:
    """A tanh network with seeded weights."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return init_(nn.Sequential(*layers[:-1]), seed=0)


def convnet() -> nn.Module:
    """Two convolutions and two linear layers on 28 x 28 images."""
    return init_(
        nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.Tanh(),
            nn.Conv2d(16, 32, 3, stride=2), nn.Tanh(),
            nn.Flatten(), nn.Linear(800, 256), nn.Tanh(), nn.Linear(256, 1),
        ),
        seed=0,
    )  # fmt: skip


class Regression:
    """A module, data and squared error; the step (F + damping)^-1 gradient on it."""

    def __init__(self, module: nn.Module, x: torch.Tensor, t: torch.Tensor) -> None:
        self.module, self.x, self.t = module, x, t
        self.R = Realization(module)
        self.metric = PullbackMetric(self.R, x)
        self.parameters = list(module.parameters())

    def gradient(self) -> torch.Tensor:
        """The gradient of the mean of half the squared error, in plain PyTorch."""
        loss = 0.5 * (self.module(self.x) - self.t).square().sum() / len(self.x)
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, self.parameters)]
        )

    def step(self, method: str = "auto", **options: Any) -> torch.Tensor:
        """Our damped natural step, everything included from the forward pass on."""
        return self.solve(method, **options).x

    def solve(self, method: str, **options: Any) -> Any:
        G = self.metric.at(self.R.theta0)
        u = (G.outputs() - self.t) / len(self.x)
        return G.solve(u, DAMPING, method, **options)

    def ggn(self) -> Any:
        """curvlinops' matrix of the same problem (its mean of squares is halved)."""
        from curvlinops import GGNLinearOperator

        return GGNLinearOperator(
            self.module, nn.MSELoss(), self.parameters, [(self.x, self.t)],
            check_deterministic=False,
        )  # fmt: skip

    def cg_on_curvlinops(self) -> torch.Tensor:
        op, scale = self.ggn(), 0.5 * self.t.shape[1]
        return conjugate_gradient(
            lambda v: scale * (op @ v) + DAMPING * v, self.gradient(), 1e-3, 1000
        )[0]

    def kfac_of_curvlinops(self) -> torch.Tensor:
        from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

        A = KFACLinearOperator(
            self.module, nn.MSELoss(), self.parameters, [(self.x, self.t)],
            check_deterministic=False, fisher_type="type-2",
            separate_weight_and_bias=False,
        )  # fmt: skip
        return KFACInverseLinearOperator(A, damping=2 * DAMPING) @ self.gradient()


def digits(hidden: int, samples: int = 256) -> Regression:
    """The digits' values, standardised, as one output."""
    data = load("digits")
    x = torch.as_tensor(data.x[:samples]).float()
    t = torch.as_tensor(data.y[:samples]).float()[:, None]
    return Regression(mlp(64, hidden, hidden, 1), x, (t - 4.5) / 2.9)


def million() -> Regression:
    return digits(960)


class Classifier:
    """784-256-10 with softmax, batch 512: the size of the peers' own examples."""

    def __init__(self) -> None:
        self.module = mlp(784, 256, 10)
        self.x = normal((512, 784), 1, dtype=torch.float32)
        self.y = torch.as_tensor(rng(2).integers(0, 10, 512))
        R = Realization(self.module)
        self.G = PullbackMetric(R, self.x, Categorical()).at(R.theta0)
        self.v = normal(R.p, 3, dtype=torch.float32)
        self.parameters = list(self.module.parameters())

    def gradient(self) -> None:
        loss = nn.functional.cross_entropy(self.module(self.x), self.y)
        torch.autograd.grad(loss, self.parameters)


PRODUCT = "p = 203 530, batch 512, ten classes, float32"


@benchmark("core.product_gradient", bar="<= 1.3", size=PRODUCT)
def product_gradient() -> Result:
    """A Fisher product, linearised once, against one gradient of the loss"""
    c = Classifier()

    def ours() -> None:
        c.G @ c.v

    return race(ours, {"torch gradient": lambda: c.gradient}, rounds=15)


@benchmark("core.product_curvlinops", bar="<= 0.334", size=PRODUCT)
def product_curvlinops() -> Result:
    """A Fisher product, linearised once, against curvlinops' GGN product"""
    c = Classifier()

    def curvlinops() -> Callable:
        from curvlinops import GGNLinearOperator

        op = GGNLinearOperator(
            c.module, nn.CrossEntropyLoss(), c.parameters, [(c.x, c.y)],
            check_deterministic=False,
        )  # fmt: skip
        return lambda: op @ c.v

    peers = {"curvlinops-for-pytorch GGN": curvlinops}
    return race(lambda: c.G @ c.v, peers, within=1e-5, rounds=15)


@benchmark("core.step_gradient", bar="<= 4", size=STEP)
def step_gradient() -> Result:
    """The exact damped natural step, against one gradient of the loss"""
    problem = million()

    def ours() -> None:
        problem.step("kernel")

    def gradient() -> Callable:
        def call() -> None:
            problem.gradient()

        return call

    return race(ours, {"torch gradient": gradient}, rounds=11)


@benchmark("core.step_error", bar="<= 1e-4", of="ours", size=STEP)
def step_error() -> Result:
    """Relative error of the float32 step against a float64 solve"""
    problem = million()
    x = problem.step("kernel").double()
    exact = Regression(problem.module.double(), problem.x.double(), problem.t.double())
    return Result(
        float((x - exact.step("kernel")).norm() / x.norm()),
        unit="error",
        note="The float64 solve is ours; the tests hold it to dense algebra at 1e-8.",
    )


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance in norm."""
    return float((a - b).norm() / b.norm())


@benchmark("core.step_cg", bar="<= 0.025", size=STEP)
def step_cg() -> Result:
    """The exact step, against conjugate gradients to 1e-3 on curvlinops' GGN"""
    problem = million()

    def peer() -> Callable:
        problem.ggn()
        return problem.cg_on_curvlinops

    return race(
        lambda: problem.step("kernel"),
        {"curvlinops-for-pytorch GGN in CG": peer},
        agree=distance,
        within=0.05,
        rounds=3,
        note="The agreement is the error of the peer's stopping rule.",
    )


@benchmark("core.step_kfac", bar="< 1", size=STEP)
def step_kfac() -> Result:
    """The exact step, against the K-FAC step of curvlinops (an approximation)"""
    problem = million()

    def peer() -> Callable:
        problem.kfac_of_curvlinops()
        return problem.kfac_of_curvlinops

    def unlike(a: torch.Tensor, b: torch.Tensor) -> float:
        return 1 - float(a @ b / (a.norm() * b.norm()))

    return race(
        lambda: problem.step("kernel"),
        {"curvlinops-for-pytorch KFAC": peer},
        agree=unlike,
        rounds=5,
        note="Not the same step: the agreement is 1 - the cosine between the two.",
    )


@benchmark(
    "core.step_convolution", bar="<= 0.1", size="p = 210 369, n = 128, damping 1e-3"
)
def step_convolution() -> Result:
    """The exact step of a convolutional network, against CG on curvlinops' GGN"""
    x = normal((128, 1, 28, 28), 1, dtype=torch.float32)
    problem = Regression(convnet(), x, normal((128, 1), 2, dtype=torch.float32))
    gradients = race(
        lambda: problem.step("kernel") * 0,
        {"torch gradient": lambda: lambda: problem.gradient() * 0},
        rounds=5,
    )

    def peer() -> Callable:
        problem.ggn()
        return problem.cg_on_curvlinops

    return race(
        lambda: problem.step("kernel"),
        {"curvlinops-for-pytorch GGN in CG": peer},
        agree=distance,
        within=0.05,
        rounds=3,
        note=f"{gradients.peers[0].ratio:.2g} gradients of the loss.",
    )


def grid() -> list[tuple[int, int, int]]:
    """(outputs, parameters, rows): the points that fit a few minutes of one core."""
    points = [(o, p, m) for o in (1, 8) for p in (10**3, 10**4, 10**5, 10**6)
              for m in (32, 256, 1024, 4096)]  # fmt: skip
    points = [(o, p, m) for o, p, m in points if p * m <= 1.1e9]
    return [*points, (1, 10**7, 32), (1, 10**7, 256)]


def grid_problem(o: int, p: int, m: int) -> Regression:
    """A network of about p parameters and m / o samples with o outputs."""
    d = 16 if p < 2000 else 64
    hidden = 1
    while hidden * (d + 1) + hidden * (hidden + 1) + (hidden + 1) * o < p:
        hidden += 1
    x = normal((m // o, d), 1, dtype=torch.float32)
    t = normal((m // o, o), 2, dtype=torch.float32)
    return Regression(mlp(d, hidden, hidden, o), x, t)


def applicable(o: int, p: int, m: int) -> list[str]:
    """Methods worth timing there: a dense G above 3000 parameters never is."""
    methods = ["kernel"] + ["cholesky"] * (p <= 3000)
    return methods + ["cg"] * (p * m <= 1.1e8)


def cpu(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


GRID = "33 points, p = 1e3..1e7, n o = 32..4096, p n o <= 3e9"


@benchmark("core.auto", bar="<= 1.3", of="ours", size=GRID, slow=True)
def auto_grid() -> Result:
    """`method="auto"` over the fastest single method: the worst point of a grid"""
    rows, ratios = [], []
    for o, p, m in grid():
        problem = grid_problem(o, p, m)
        methods = [*applicable(o, p, m), "auto"]
        problem.solve("kernel")  # warm
        times: dict[str, list[float]] = {method: [] for method in methods}
        for _ in range(5):
            for method in methods:
                times[method].append(cpu(partial(problem.solve, method)))
            if sum(map(sum, times.values())) > 3:
                break
        middle = {k: statistics.median(v) for k, v in times.items()}
        auto = middle.pop("auto")
        ratios.append(auto / min(middle.values()))
        shown = ", ".join(f"{k} {1e3 * v:.3g}" for k, v in middle.items())
        chosen = problem.solve("auto").method
        rows.append(
            f"o={o} p={p:.0e} rows={m}: auto {1e3 * auto:.3g} ({chosen}), {shown}"
        )
        print(f"{ratios[-1]:.2f} {rows[-1]}", file=sys.stderr)
    within = sum(r <= 1.3 for r in ratios)
    return Result(
        max(ratios), unit="ratio",
        note=f"{within} of {len(ratios)} points within 1.3; median "
        f"{statistics.median(ratios):.2f}. CPU ms: " + "; ".join(rows),
        curve={"x": list(range(len(ratios))), "x_label": "grid point",
               "y_label": "auto / best", "series": {"geolib": ratios}},
    )  # fmt: skip


MEMORY = """
import torch
from benchmarks.bench_core import million

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(q for q in lines if q.startswith(key)).split()[1])

problem = million()
problem.module(problem.x[:1])
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = status("VmRSS")
{call}
print((status("VmHWM") - before) / 1024)
"""


def peak(call: str) -> float:
    """MiB that a fresh interpreter's peak grows by during the call."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(call=call)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ImportError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout)


@benchmark("core.memory", bar="<= 0.2", size=STEP)
def memory() -> Result:
    """Peak memory of the exact step, against the same with J materialised"""
    ours = peak("problem.step('kernel')")
    rows = peak(
        "G = problem.metric.at(problem.R.theta0); A = G.rows().dense(); "
        "K = A @ A.T; u = problem.t.flatten(); "
        "A.T @ torch.linalg.solve(K + 1e-3 * torch.eye(256), u)"
    )
    plain = peak("problem.gradient()")
    note = f"MiB. One gradient of the loss: {plain:.0f}."
    try:
        cg = peak("problem.cg_on_curvlinops()")
        note += f" CG on curvlinops' GGN: {cg:.0f}."
    except ImportError as error:
        note += f" curvlinops was not run ({error})."
    return Result(ours, rows, unit="MiB", peer_name="dense rows", note=note)
