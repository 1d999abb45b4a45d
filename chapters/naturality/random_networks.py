r"""Default-initialised networks drawn by a seed, and what closed forms say of a step there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matrix_rules import polar
from controls import TABLE
from torch import Tensor, nn, optim

from geolib.naturality import (
    Problem,
    Reparameterization,
    audit,
    cross_entropy,
    mse,
    standard_suite,
)
from geolib.sweep import grid

KINDS = ("mlp", "conv", "attention")
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)
AUDITED = ("ngd", "gd", "adam", "adamw", "lion", "muon")
FORMULAS = AUDITED[1:]  # of the first step, by `first_step`
# Rules of the literature, and every class of torch.optim, on one network of each kind.
NAMED = (
    *(
        "kfac",
        "ekfac",
        "shampoo-1/2",
        "soap",
        "muon-polar",
        "adafactor",
        "lion",
        "sophia",
    ),
    *("schedule-free", "ngd", "natural-momentum"),
)
CLASSES = tuple(
    f"torch.optim.{name}"
    for name, rule in sorted(vars(optim).items())
    if isinstance(rule, type) and issubclass(rule, optim.Optimizer)
    if rule is not optim.Optimizer
)
OPEN = 0.05  # a closed form that fails by less is left to the audit


class Attention(nn.Module):
    """Self-attention with a skip, perhaps a layer norm, averaged over tokens."""

    def __init__(self, width: int, heads: int, outputs: int, norm: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.read = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(x, x, x, need_weights=False)[0]
        return self.read(self.norm(x + mixed).mean(1))


def _mlp(rng: np.random.Generator, outputs: int) -> tuple[nn.Module, tuple[int, ...]]:
    widths = [int(k) for k in rng.integers(2, 9, rng.integers(2, 4))]
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(a, b), ACTIVATIONS[rng.integers(4)]()]
    return nn.Sequential(*parts, nn.Linear(widths[-1], outputs)), (widths[0],)


def _conv(rng: np.random.Generator, outputs: int) -> tuple[nn.Module, tuple[int, ...]]:
    inputs, channels = (int(k) for k in rng.integers(1, 4, 2))
    side, stride = int(rng.integers(4, 7)), int(rng.integers(1, 3))
    conv = nn.Conv2d(inputs, channels, 3, stride)
    out = (side - 3) // stride + 1
    read = nn.Linear(channels * out * out, outputs)
    act = ACTIVATIONS[rng.integers(4)]()
    return nn.Sequential(conv, act, nn.Flatten(), read), (inputs, side, side)


def _attention(
    rng: np.random.Generator, outputs: int
) -> tuple[nn.Module, tuple[int, ...]]:
    heads = int(rng.integers(1, 3))
    width = heads * int(rng.integers(2, 4))
    norm = bool(rng.integers(2))
    return Attention(width, heads, outputs, norm), (int(rng.integers(3, 6)), width)


def draw(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Draw a network with torch's default initialisation, 40 to 80 inputs and targets.

    The kind goes by turns: perceptron, convolution, attention. Sizes, activations and the
    task (one to three numbers, or three classes) come from the seed; targets are noise.

    Examples:
        >>> module, x, y = draw(1)
        >>> type(module[0]).__name__, len(x) == len(y)
        ('Conv2d', True)
    """
    rng = np.random.default_rng(seed)
    classes = bool(rng.integers(2))
    outputs = 3 if classes else int(rng.integers(1, 4))
    make = (_mlp, _conv, _attention)[seed % 3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, shape = make(rng, outputs)
    n = int(rng.integers(40, 81))
    x = torch.tensor(rng.standard_normal((n, *shape)))
    y = rng.integers(0, 3, n) if classes else rng.standard_normal((n, outputs))
    return module.double(), x, torch.tensor(y)


def first_step(name: str, grads: list[Tensor], theta: Tensor) -> Tensor:
    """The direction of an optimizer's first step, by its formula, (p,)."""
    flat = torch.cat([g.reshape(-1) for g in grads])
    if name == "gd":
        return -flat
    if name == "muon":
        parts = [polar(g) if g.ndim == 2 else g.sign() for g in grads]
        # torch lets the step of a tall matrix grow with the root of its shape
        scale = [
            max(1.0, g.shape[0] / g.shape[1]) ** 0.5 if g.ndim == 2 else 1.0
            for g in grads
        ]
        return -torch.cat(
            [(c * q).reshape(-1) for c, q in zip(scale, parts, strict=True)]
        )
    return -flat.sign() - (0.5 * theta if name == "adamw" else 0.0)


def formula_fails(name: str, P: Problem, phi: Reparameterization) -> float:
    r"""How far :math:`D\,v(g, \theta)` is from :math:`v(D^{-T}g, \phi(\theta))`, in the metric."""
    q, x = P.point(P.theta0), P.theta0

    def cut(g: Tensor) -> list[Tensor]:
        sizes = [s.numel() for s in P.shapes]
        return [p.view(s) for p, s in zip(g.split(sizes), P.shapes, strict=True)]

    back = torch.func.jacrev(phi.inverse)(phi.forward(x))
    home = first_step(name, cut(q.g), x)
    there = back @ first_step(name, cut(back.T @ q.g), phi.forward(x))
    return float((q.A @ (there - home)).norm() / (q.A @ home).norm())


@dataclass(frozen=True)
class NetworkSpec:
    """One audit: an optimizer on the network of a seed."""

    optimizer: str
    seed: int


def run(spec: NetworkSpec) -> dict[str, Any]:
    """The letters of the audit, and what the closed form fails by, by family."""
    module, x, y = draw(spec.seed)
    try:  # a name of the table, or of a class
        report = audit(TABLE.get(spec.optimizer, spec.optimizer), module, (x, y))
    except (TypeError, ValueError, RuntimeError) as error:
        return {"kind": KINDS[spec.seed % 3], "refused": str(error)}
    formula: dict[str, float] = {}
    if spec.optimizer in FORMULAS:
        loss = mse(y) if y.is_floating_point() else cross_entropy(y)
        P = Problem.of(module, x, loss)
        for family, phi in standard_suite(P.module, P.theta0).items():
            formula[family] = float(f"{formula_fails(spec.optimizer, P, phi):.3g}")
    return {
        "kind": KINDS[spec.seed % 3],
        "title": report.title,
        "letters": report.letters,
        "notes": {k: d.note for k, d in report.defects.items() if d.letter == "?"},
        "formula": formula,
    }


def compact(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A row as the table keeps it, by seed and optimizer."""
    names = "kind", "title", "letters", "notes", "formula", "refused"
    kept = {k: row[k] for k in names if k in row}
    return "networks", f"{row['seed']} | {row['optimizer']}", kept


def compact_rule(key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """The same in the table of the rules."""
    return "rules", *compact(key, row)[1:]


def specs(
    seeds: Iterable[int], optimizers: Iterable[str] = AUDITED
) -> list[NetworkSpec]:
    """All optimizers on the networks of some seeds."""
    return grid(NetworkSpec, seed=seeds, optimizer=optimizers)
