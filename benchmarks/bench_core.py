"""The geometry core: products with the metric and exact damped steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Result, benchmark, race
from geolib.core import Categorical, PullbackMetric, Realization, init_, normal, rng
from geolib.core.linear_solvers import conjugate_gradient
from geolib.data import load

DAMPING = 1e-3
STEP = "p = 985 921, n = 256, one output, damping 1e-3, digits"


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

    def to(
        self, device: str | torch.device, dtype: torch.dtype = torch.float32
    ) -> Regression:
        """The same problem elsewhere."""
        module = copy.deepcopy(self.module).to(device, dtype)
        return Regression(module, self.x.to(device, dtype), self.t.to(device, dtype))

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
        inverse = KFACInverseLinearOperator(
            A, damping=2 * DAMPING, use_heuristic_damping=True
        )
        return inverse @ self.gradient()

    def kfac_of_nngeometry(self) -> torch.Tensor:
        from nngeometry.layercollection import LayerCollection
        from nngeometry.metrics import FIM
        from nngeometry.object import PMatKFAC, PVector
        from torch.utils.data import DataLoader, TensorDataset

        loader = DataLoader(TensorDataset(self.x, self.t), batch_size=len(self.x))
        F = FIM(
            self.module, loader, PMatKFAC, variant="regression", device=self.x.device
        )
        layers = LayerCollection.from_model(self.module)
        g = PVector(layers, vector_repr=self.gradient())
        return F.solve(g, regul=DAMPING).to_torch()


def digits(hidden: int, samples: int = 256) -> Regression:
    """The digits' values, standardised, as one output."""
    data = load("digits")
    x = torch.as_tensor(data.x[:samples]).float()
    t = torch.as_tensor(data.y[:samples]).float()[:, None]
    return Regression(mlp(64, hidden, hidden, 1), x, (t - 4.5) / 2.9)


def million() -> Regression:
    return digits(960)


def images() -> Regression:
    """Random images of 28 x 28 pixels, one output, the network with convolutions."""
    x = normal((128, 1, 28, 28), 1, dtype=torch.float32)
    return Regression(convnet(), x, normal((128, 1), 2, dtype=torch.float32))


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


def check_against_gradient(problem: Regression) -> Result:
    def ours() -> None:
        R = Realization(problem.module)
        R.check(R.theta0, problem.x)

    def gradient() -> None:  # a check has no value that could agree with a gradient
        problem.gradient()

    return race(ours, {"torch gradient": lambda: gradient}, rounds=11)


@benchmark("core.assumptions", bar="< 1", size=STEP)
def assumptions() -> Result:
    """What is assumed of a module, checked at first use, against one loss gradient"""
    return check_against_gradient(million())


@benchmark(
    "core.assumptions_convnet", bar="< 1", size="p = 210 369, n = 128, 28 x 28 images"
)
def assumptions_convnet() -> Result:
    """What is assumed of a small convolutional network, against one loss gradient"""
    return check_against_gradient(images())


@benchmark("core.product_curvlinops", bar="<= 0.3333", size=PRODUCT)
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


@benchmark("core.product_convolution", size="p = 210 369, batch 128, float32")
def product_convolution() -> Result:
    """A Fisher product of two convolutions and two linear layers, against curvlinops"""
    c = images()
    G, v = c.metric.at(c.R.theta0), normal(c.R.p, 3, dtype=torch.float32)

    def curvlinops() -> Callable:
        op = c.ggn()
        return lambda: 0.5 * (op @ v)

    peers = {"curvlinops-for-pytorch GGN": curvlinops}
    plain = race(
        lambda: (G @ v)[:0], {"torch gradient": lambda: lambda: c.gradient()[:0]}
    )
    return race(
        lambda: G @ v,
        peers,
        within=1e-5,
        rounds=7,
        note=f"The product takes the time of {plain.peers[0].ratio:.2g} gradients of the loss.",
    )


@benchmark("core.step_gradient", bar="<= 2.2", size=STEP)
def step_gradient() -> Result:
    """The exact damped natural step, against one gradient of the loss"""
    problem = million()

    def ours() -> None:
        problem.step("woodbury")

    def gradient() -> Callable:
        def call() -> None:
            problem.gradient()

        return call

    return race(ours, {"torch gradient": gradient}, rounds=11)


@benchmark("core.step_error", bar="<= 1e-4", of="ours", size=STEP)
def step_error() -> Result:
    """Relative error of the float32 step against a float64 solve"""
    problem = million()
    x = problem.step("woodbury").double()
    exact = Regression(problem.module.double(), problem.x.double(), problem.t.double())
    return Result(
        float((x - exact.step("woodbury")).norm() / x.norm()),
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
        lambda: problem.step("woodbury"),
        {"curvlinops-for-pytorch GGN in CG": peer},
        agree=distance,
        within=0.05,
        rounds=3,
        note="The two differ by the error that the peer's stopping rule leaves.",
    )


@benchmark("core.step_kfac", bar="< 1", size=STEP)
def step_kfac() -> Result:
    """The exact step, against the K-FAC steps of two libraries (approximations)"""
    problem = million()

    def unlike(a: torch.Tensor, b: torch.Tensor) -> float:
        return 1 - float(a @ b / (a.norm() * b.norm()))

    def prepared(step: Callable) -> Callable:
        step()  # raises ImportError here where the library is absent
        return step

    return race(
        lambda: problem.step("woodbury"),
        {
            "curvlinops-for-pytorch KFAC": lambda: prepared(problem.kfac_of_curvlinops),
            "nngeometry KFAC": lambda: prepared(problem.kfac_of_nngeometry),
        },
        agree=unlike,
        rounds=5,
        note="K-FAC takes another step: the error is 1 - the cosine between the two.",
    )


@benchmark(
    "core.step_convolution", bar="<= 0.1", size="p = 210 369, n = 128, damping 1e-3"
)
def step_convolution() -> Result:
    """The exact step of a convolutional network, against CG on curvlinops' GGN"""
    problem = images()
    gradients = race(
        lambda: problem.step("woodbury") * 0,
        {"torch gradient": lambda: lambda: problem.gradient() * 0},
        rounds=5,
    )

    def peer() -> Callable:
        problem.ggn()
        return problem.cg_on_curvlinops

    return race(
        lambda: problem.step("woodbury"),
        {"curvlinops-for-pytorch GGN in CG": peer},
        agree=distance,
        within=0.05,
        rounds=3,
        note=f"The step takes the time of {gradients.peers[0].ratio:.2g} gradients.",
    )
