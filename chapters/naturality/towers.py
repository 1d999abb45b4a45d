r"""Towers: maps between models of different size, and the models that they join."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev
from audit_problems import linear_model, two_layer

from projections import Embedding, Projection, projection_defect as projection_defect

from geolib.naturality import Problem


def duplication(
    k: int, d: int, c: int, copies: int, scaling: str = "standard"
) -> Embedding:
    r"""Replace every hidden unit by `copies` identical ones.

    Standard scaling divides the outgoing weights, :math:`a_i \mapsto a_i/r`; in
    mean-field scaling the empirical measure of units is the same, and nothing is
    divided: this is the block embedding of the mean-field tower.

    Args:
        k, d, c: numbers of units, inputs and outputs.
        copies: of each unit.
        scaling: as in `two_layer`.

    Raises:
        ValueError: fewer than one copy.

    Source: :eq:`drv-naturality-twins` (derivations).

    Examples:
        >>> iota = duplication(1, 1, 1, 2)
        >>> iota(torch.tensor([3.0, 4.0]))
        tensor([3., 3., 2., 2.])
    """
    if copies < 1:
        raise ValueError(f"copies: expected at least 1, got {copies}")
    divide = {"standard": copies, "mean-field": 1, "ntk": copies**0.5}[scaling]

    def iota(theta: Tensor) -> Tensor:
        w, a = theta[: k * d].view(k, d), theta[k * d :].view(c, k)
        wide = [w.repeat_interleave(copies, 0), a.repeat_interleave(copies, 1) / divide]
        return torch.cat([t.reshape(-1) for t in wide])

    return Embedding(iota, f"{copies} copies, {scaling}")


def horizontal_lift(
    pi: Projection, x: Tensor, v: Tensor, metric: Tensor | None = None
) -> Tensor:
    r"""Return the vector over v that is orthogonal to the fibre of pi through x.

    .. math:: v' = M^{-1} D\pi^T (D\pi M^{-1} D\pi^T)^{-1} v .

    Args:
        pi: a submersion near x.
        x: a point upstairs, (p',).
        v: a tangent vector at its image, (p,).
        metric: M upstairs, (p', p'), positive definite; the identity when None.

    Raises:
        ValueError: no submersion at x (its Jacobian lacks full row rank).

    Source: :eq:`drv-naturality-horizontal` (derivations).

    Examples:
        >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
        >>> horizontal_lift(Projection(lambda w: w.sum().reshape(1)), x, x[:1])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    D = jacrev(pi.forward)(x)
    X = D.T if metric is None else torch.linalg.solve(metric, D.T)
    G = D @ X
    w = torch.linalg.eigvalsh(0.5 * (G + G.T))
    if not float(w[0]) > 1e-12 * float(w[-1]):
        raise ValueError("pi: expected a submersion at x, its Jacobian lacks rank")
    return X @ torch.linalg.solve(G, v)


def submersion_defect(
    pi: Projection, x: Tensor, upstairs: Tensor, downstairs: Tensor
) -> float:
    r"""Return the relative failure of :math:`D\pi\,G'\,D\pi^T = G\circ\pi`.

    Args:
        pi: a submersion.
        x: a point upstairs, (p',).
        upstairs, downstairs: cometrics :math:`G'` (p', p') and G (p, p) there.

    Source: :eq:`drv-naturality-submersion` (derivations).
    """
    D = jacrev(pi.forward)(x)
    gap = D @ upstairs @ D.T - downstairs
    return float(gap.norm() / downstairs.norm())


def prune_dead(
    x: Tensor, weights: Tensor, readout: Tensor, activation: str = "relu"
) -> tuple[Tensor, Projection, Embedding]:
    r"""Find the hidden units that are off on all of x, and maps that drop or add them.

    A unit is dead when :math:`\sigma(w\cdot x) = 0` and
    :math:`\sigma'(w\cdot x) = 0` on the data: neither it nor its weights can be felt.

    Args:
        x: the data, (n, d).
        weights, readout: of the network, (k, d) and (c, k).
        activation: `relu`, or another with :math:`\sigma(0) = 0`.

    Returns:
        A mask of the live units (k,), the projection that forgets dead units and the
        embedding that puts these very ones back.

    Source: :eq:`drv-naturality-dead` (derivations).

    Examples:
        >>> x = torch.ones(1, 1)
        >>> live, pi, iota = prune_dead(x, torch.tensor([[1.0], [-1.0]]), torch.ones(1, 2))
        >>> live, pi(torch.tensor([1.0, -1.0, 5.0, 6.0]))
        (tensor([ True, False]), tensor([1., 5.]))
    """
    s = x @ weights.T
    live = (s > 0).any(0) if activation == "relu" else (s.abs() > 0).any(0)
    k, d = weights.shape
    c = readout.shape[0]
    m = int(live.sum())

    def pi(theta: Tensor) -> Tensor:
        w, a = theta[: k * d].view(k, d), theta[k * d :].view(c, k)
        return torch.cat([w[live].reshape(-1), a[:, live].reshape(-1)])

    where = torch.nonzero(live)[:, 0]

    def iota(theta: Tensor) -> Tensor:
        w = weights.index_copy(0, where, theta[: m * d].view(m, d))
        a = readout.index_copy(1, where, theta[m * d :].view(c, m))
        return torch.cat([w.reshape(-1), a.reshape(-1)])

    return live, Projection(pi, "forget dead units"), Embedding(iota, "add dead units")


def deep_linear(d: int, c: int, k: int) -> tuple[Projection, list[tuple[int, int]]]:
    r"""Return the product :math:`\pi(W_2, W_1) = W_2W_1`, and the shapes upstairs.

    A submersion onto all (c, d) matrices wherever :math:`k \ge \min(c, d)` and the
    factors have full rank.

    Args:
        d, c, k: numbers of inputs, outputs and hidden units.

    Source: :eq:`drv-naturality-submersion` (derivations).

    Examples:
        >>> pi, shapes = deep_linear(1, 1, 2)
        >>> pi(torch.tensor([1.0, 2.0, 3.0, 4.0])), shapes
        (tensor([11.]), [(1, 2), (2, 1)])
    """

    def pi(theta: Tensor) -> Tensor:
        W2, W1 = theta[: c * k].view(c, k), theta[c * k :].view(k, d)
        return (W2 @ W1).reshape(-1)

    return Projection(pi, f"product through {k}"), [(c, k), (k, d)]


def weight_norm(rows: int, d: int) -> tuple[Projection, list[tuple[int, ...]]]:
    r"""Return weight normalisation, row by row, and the shapes upstairs.

    .. math:: \pi(g, v) = g\,v/|v| .

    Args:
        rows, d: of the weight matrix.

    Source: :eq:`drv-naturality-submersion` (derivations); Salimans and Kingma 2016.

    Examples:
        >>> weight_norm(1, 2)[0](torch.tensor([5.0, 3.0, 4.0]))
        tensor([3., 4.])
    """

    def pi(theta: Tensor) -> Tensor:
        g, v = theta[:rows], theta[rows:].view(rows, d)
        return (g[:, None] * v / v.norm(dim=1, keepdim=True)).reshape(-1)

    return Projection(pi, "weight normalisation"), [(rows,), (rows, d)]


def polynomial_tower(
    high: int, low: int, n: int = 60, seed: int = 0
) -> tuple[Problem, Problem, Projection, Projection]:
    r"""Return polynomials of degree `high` and `low` on a grid of [-1, 1].

    Args:
        high, low: degrees, high > low.
        n: points of the grid.
        seed: of noise and start.

    Raises:
        ValueError: `low` is not below `high`.

    Source: :eq:`drv-naturality-polynomials` (derivations).

    Examples:
        >>> wide, narrow, orthogonal, truncation = polynomial_tower(2, 1)
        >>> truncation(torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 2.])

    Returns:
        The wide and the narrow problem, the projection that is orthogonal in
        :math:`L^2` of the grid, and the one that drops coefficients.
    """
    if not 0 <= low < high:
        raise ValueError(f"low, high: expected 0 <= low < high, got {low}, {high}")
    rng = np.random.default_rng(seed)
    t = torch.linspace(-1, 1, n, dtype=torch.float64)
    V = torch.stack([t**j for j in range(high + 1)], dim=1)
    y = torch.tensor(np.sin(2.5 * t.numpy()) + 0.1 * rng.standard_normal(n))[:, None]
    start = torch.tensor(rng.standard_normal((1, high + 1)))
    S = torch.linalg.lstsq(V[:, : low + 1], V).solution  # narrow coefficients of V
    wide = linear_model(V, y, start)
    narrow = linear_model(V[:, : low + 1], y, start[:, : low + 1])
    orthogonal = Projection(lambda c: S @ c, "orthogonal in L2")
    truncation = Projection(lambda c: c[: low + 1], "dropping coefficients")
    return wide, narrow, orthogonal, truncation


def twin_problem(
    seed: int,
    copies: int,
    scaling: str,
    *,
    k: int = 3,
    d: int = 2,
    c: int = 2,
    n: int = 60,
) -> tuple[Problem, Problem, Embedding]:
    """Return a wide network of twins, its narrow one, and the embedding between them.

    Args:
        seed: of data, teacher and start.
        copies: of each unit.
        scaling: as in `two_layer`.
        k, d, c: hidden units, inputs and outputs; n: samples.

    Source: :eq:`drv-naturality-twins` (derivations).

    Examples:
        >>> wide, narrow, iota = twin_problem(0, 2, "mean-field")
        >>> gap = wide.outputs(iota(narrow.theta0)) - narrow.outputs(narrow.theta0)
        >>> bool(gap.abs().max() < 1e-12)
        True
    """
    rng = np.random.default_rng(seed)
    x = torch.tensor(np.hstack([rng.standard_normal((n, d)), np.ones((n, 1))]))
    w = torch.tensor(1.3 * rng.standard_normal((k, d + 1)))
    a = torch.tensor(1.3 * rng.standard_normal((c, k)))
    if scaling == "mean-field":
        a = a * k
    y = two_layer(x, torch.zeros(n, c).double(), w, a, scaling)
    target = y.outputs(y.theta0) + 0.05 * torch.tensor(rng.standard_normal((n, c)))
    w = w + 0.3 * torch.tensor(rng.standard_normal(w.shape))
    a = a * (1 + 0.3 * torch.tensor(rng.standard_normal(a.shape)))
    narrow = two_layer(x, target, w, a, scaling)
    iota = duplication(k, d + 1, c, copies, scaling)
    start = iota(narrow.theta0)
    size = copies * k * (d + 1)
    wide = two_layer(
        x,
        target,
        start[:size].view(copies * k, d + 1),
        start[size:].view(c, copies * k),
        scaling,
    )
    return wide, narrow, iota


def best_conditioned(seeds: Sequence[int], count: int = 3) -> list[int]:
    """The seeds of `twin_problem` whose narrow metric is best conditioned."""

    def cond(seed: int) -> float:
        narrow = twin_problem(seed, 1, "standard")[1]
        w = torch.linalg.eigvalsh(narrow.point(narrow.theta0).F)
        return float(w[-1] / w[0].clamp(min=1e-300))

    return sorted(sorted(seeds, key=cond)[:count])
