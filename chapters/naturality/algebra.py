r"""The naturality algebra: which linear maps an optimizer commutes with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.naturality import Problem, sample_points
from geolib.naturality.jets import as_generator, commutators, draw_state, jet


@dataclass(frozen=True)
class NaturalityAlgebra:
    """A Lie algebra of matrices, as a null space.

    Attributes:
        dim: its dimension.
        basis: (dim, p, p), orthonormal.
        singular_values: of the linear map whose kernel it is, increasing.
        gap: decades between the last singular value that counts as zero and the next
            (infinite for 0 and p^2 dimensions).
    """

    dim: int
    basis: Tensor
    singular_values: Tensor
    gap: float

    def bracket_residual(self) -> float:
        """Return how far commutators of basis matrices stick out of the span.

        A Lie algebra has 0; below 1e-4 the measured space counts as one.
        """
        if self.dim == 0:
            return 0.0
        E = self.basis.reshape(self.dim, -1)
        C = torch.einsum("aij,bjk->abik", self.basis, self.basis)
        C = (C - C.transpose(0, 1)).reshape(self.dim**2, -1)
        rest = C - (C @ E.T) @ E
        return float(rest.norm(dim=1).max())


def naturality_algebra(
    rule: Any,
    problem: Problem,
    *,
    points: Iterable[Tensor] | None = None,
    rtol: float = 1e-5,
    seed: int = 0,
) -> NaturalityAlgebra:
    r"""Measure the matrices B whose one-parameter groups an optimizer commutes with.

    .. math:: \mathfrak{n} = \{B \in \mathfrak{gl}(p) :
        \partial_\epsilon\bigl[X_{\phi_*P}(S\phi\, s) - d(S\phi)_s X_P(s)\bigr] = 0,
        \; \phi = \mathrm{id} + \epsilon B u\} .

    The condition is linear in B, so this is the kernel of a matrix with one column
    per matrix unit and one block of rows per sample point.

    Args:
        rule: as in `jet_defect`.
        problem: where to test.
        points: parameter vectors (p,); p + 3 well-conditioned ones around the start when
            None (fewer than p cannot determine the algebra).
        rtol: singular values below `rtol` times the largest (or times 1) count as
            zero.
        seed: of the points and states.

    Cost: 2 p^2 evaluations of the generator per point.

    Source: :eq:`drv-naturality-algebra` (derivations).

    Examples:
        >>> from geolib.naturality import Problem, affine_mlp, mse
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))  # linear, p = 4
        >>> naturality_algebra("gradient", P).dim  # so(4)
        6
    """
    X = as_generator(rule, problem)
    rng = np.random.default_rng(seed)
    p = len(problem.theta0)
    count = p + 3  # p^2 unknowns, at least p equations a point, and some to spare
    chosen = sample_points(problem, count, seed=seed) if points is None else [*points]
    rows = []
    for x in chosen:
        state = draw_state(X, problem, x, rng)
        home = X(problem, state)
        size = torch.cat([home[k] for k in state]).norm()
        units = torch.eye(p * p, dtype=x.dtype, device=x.device).view(-1, p, p)
        maps = [jet(x, B) for B in units]
        rows.append(commutators(X, problem, state, maps, home).T / size)
    matrix = torch.cat(rows)
    _, s, Vh = torch.linalg.svd(matrix, full_matrices=True)
    s = torch.cat([s, s.new_zeros(p * p - len(s))]).flip(0)
    cut = rtol * max(float(s[-1]), 1.0)
    dim = int((s < cut).sum())
    gap = float("inf")
    if 0 < dim < p * p:
        gap = float(torch.log10(s[dim] / s[dim - 1].clamp(min=1e-300)))
    return NaturalityAlgebra(dim, Vh.flip(0)[:dim].reshape(dim, p, p), s, gap)
