"""The solved faces in discrete time: each is exact on one small training problem."""

from __future__ import annotations

import numpy as np
import torch

from geolib.core.validation import expect

from .descent import Rule
from .loss_curves import Curves
from .narrow import per_input
from .setup import Setup
from .simulate import FlowProblem, LossTrajectory, run
from .small_data import bidiagonal
from .spectral_measures import SpectralMeasure, coarser, marchenko_pastur

NODES = 64  # of a law whose nodes are taken in pairs
SIDE = 1e-3  # of a pair's perturbation: its square is the error of a second derivative
LEVELS = 20  # of the bidiagonal matrix that one of few samples sees


def stepped_face(
    name: str,
    times: np.ndarray,
    setup: Setup,
    rule: Rule,
    law: SpectralMeasure | None = None,
    overlap: np.ndarray | None = None,
) -> Curves:
    r"""A solved face's losses over d under a training rule follow from one small problem.

    .. math:: (W_0, S) = (\sqrt{a_i}, 1) \text{ or } (\sqrt\rho, x_i)
        \text{ for each node},\quad (\sqrt{\kappa w}^{\,T}, diag\, x),\quad
        (B_{\rho,\kappa}, c\, e_1 e_1^T)

    for large data, mean-field, narrow and small data. The words that a rule makes of
    A and S are polynomials, so a face needs no other argument than it does for the
    flow.

    Args:
        name: one of the four solved faces of `REGIMES`.
        times: (T,) whole numbers of steps.
        setup: the sizes.
        rule: the steps.
        law: spectral law of S; default Marchenko-Pastur's.
        overlap: population variance along each node of `law`.

    Raises:
        ValueError: a face without a solution, or times between steps.

    Cost: 400 T products of numbers; for small data of 20 x 20 matrices.

    Source: :eq:`drv-regimes-rule` (derivations), beyond the paper.

    Examples:
        >>> setup, rule = Setup(64, 64, 4096, 0.25 / 64), Rule(0.1)
        >>> one = stepped_face("large-data", np.array([0.0, 0.1]), setup, rule)
        >>> one.train.round(3).tolist()
        [0.313, 0.281]
    """
    rho, kappa, c = setup.ratios
    of_S = marchenko_pastur(1.0, c) if law is None else law
    nodes, weights = of_S.nodes, of_S.weights
    variance = np.ones_like(nodes) if overlap is None else np.asarray(overlap)

    def follow(W: np.ndarray, S: np.ndarray) -> LossTrajectory:
        """Runs of a batch of weights (b, h, d) with eigenvalues S (b, d)."""
        P = torch.diag(torch.as_tensor(variance)) if name == "narrow" else None
        problem = FlowProblem(W.shape[2], 1, S=torch.as_tensor(S), P=P)
        return run(torch.as_tensor(W), problem, times, "covariance", rule)

    def by_eigenvalue(a: SpectralMeasure, S: float) -> LossTrajectory:
        """One 1 x 1 problem for every eigenvalue of the map."""
        W = np.sqrt(a.nodes)[:, None, None]
        return follow(W, np.full((a.nodes.size, 1), S))

    if name == "large-data":
        mu = marchenko_pastur(rho, kappa)
        found = by_eigenvalue(mu, 1.0)
        return Curves(mu.weights @ found.train, mu.weights @ found.population)
    if name == "mean-field":
        found = follow(np.full((nodes.size, 1, 1), np.sqrt(rho)), nodes[:, None])
        return Curves(weights @ found.train, (weights * variance) @ found.population)
    if name == "narrow":
        found = follow(np.sqrt(kappa * weights)[None, None], nodes[None])
        off = found.train[0] - nodes.sum() / 2, found.population[0] - variance.sum() / 2
        return per_input(Curves(*off), setup.eta, of_S, variance)
    expect(name == "small-data", "name", "a face whose steps are known", name)
    W, seen = bidiagonal(rho, kappa, LEVELS)[None], np.zeros((1, LEVELS + 1))
    unseen = follow(W, seen).population[0]  # moved by decay and noise alone
    seen[0, 0] = c
    found, mu = follow(W, seen), marchenko_pastur(rho, kappa)
    base = mu.weights @ by_eigenvalue(mu, 0.0).population
    return Curves(found.train[0] / c, base + (found.population[0] - unseen) / c)


def stepped_next(
    name: str,
    times: np.ndarray,
    setup: Setup,
    rule: Rule,
    law: SpectralMeasure | None = None,
    overlap: np.ndarray | None = None,
) -> Curves:
    r"""The first correction of large data or mean-field under a training rule.

    What is neglected is one symmetric Gaussian matrix, of S or of the initial map, and
    to second order each of its entries mixes one pair of nodes:

    .. math:: \delta L/d = \frac\epsilon4 \sum_{ij} w_i w_j\, \partial_s^2
        L_{ij}(s = 0), \qquad (A_0, S) = \big(diag(a_i, a_j),\, 1 + s E\big)
        \text{ or } \big(\rho\,(1 + s E),\, diag(x_i, x_j)\big) ,

    with :math:`\epsilon = c` or d / h, :math:`E = ((0, 1), (1, 0))` and the losses
    :math:`L_{ij}` of a 2 x 2 problem.

    Args:
        name: `large-data` or `mean-field`.
        times, setup, rule, law, overlap: as in `stepped_face`.

    Cost: twice 2080 problems of 2 x 2.

    Source: :eq:`drv-regimes-pairs` (derivations), beyond the paper.

    Examples:
        >>> setup, rule = Setup(64, 64, 4096, 0.25 / 64), Rule(0.1)
        >>> step = stepped_next("large-data", np.array([0.0, 0.1]), setup, rule)
        >>> bool(step.population[1] > step.train[1])
        True
    """
    rho, kappa, c = setup.ratios
    wide = name == "mean-field"
    usual = marchenko_pastur(*((1.0, c) if wide else (rho, kappa)), NODES - 1)
    fine = law if wide and law is not None else usual
    seen = np.ones_like(fine.nodes) if overlap is None or not wide else overlap
    law, seen = coarser(fine, seen, NODES)
    i, j = np.triu_indices(law.nodes.size)
    weights = law.weights[i] * law.weights[j] * (1 + (i != j))
    both = np.stack([law.nodes, seen])[:, np.stack([i, j], 1)]
    pair, P = both[..., None] * np.eye(2)

    def losses(side: float) -> np.ndarray:
        mixed = np.tile([[1.0, side], [side, 1.0]], (len(pair), 1, 1))
        start, S = (rho * mixed, pair) if wide else (pair, mixed)
        values, vectors = np.linalg.eigh(start)
        W = np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.mT
        two = FlowProblem(2, 2, S=torch.as_tensor(S), P=torch.as_tensor(P))
        found = run(torch.as_tensor(W), two, times, "covariance", rule)
        return np.stack([found.train, found.population])

    with np.errstate(invalid="ignore"):  # infinite less infinite, once it diverges
        step = weights @ (losses(SIDE) - losses(0.0)) / SIDE**2 / 2
    step *= 1 / setup.eta if wide else c
    return Curves(*np.where(np.isfinite(step), step, np.inf))
