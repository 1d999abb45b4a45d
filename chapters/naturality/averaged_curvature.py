r"""A metric averaged over batches, and solves with a damping that is a tensor itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geolib.core import JacobianFactors, KroneckerFactors
from geolib.core.jacobian_factors import DenseBlock

KEEP = 0.95  # of the average, at each further batch
INPUTS = {True: 1e-8, False: 3e-2}  # what lifts A, of its diagonal: exact F, or K-FAC
OUTPUTS = {True: 1e-2, False: 3e-2}  # what lifts B, of its mean diagonal, in the end
PRIOR = 3.0  # batches that B's mean diagonal counts for: units that they leave dead


class AveragedCurvature:
    r"""Running averages of F and of its K-FAC factors, in float64.

    .. math:: (\bar F + \lambda M)\,x = v, \qquad
        M_l = (\bar B_l + \beta\,\overline{\mathrm{diag}}\,\bar B_l) \otimes
        (\bar A_l + \alpha\,\mathrm{diag}\,\bar A_l) .

    M is K-FAC's metric and changes as a tensor under affine maps of a layer's inputs,
    up to :math:`\alpha`, and of its outputs, up to :math:`\beta`, which falls with the
    number of batches, as units that few of them reach are known little of. Parameters
    outside linear layers have the diagonal of F in it. Where F is not kept, M stands for it.

    Args:
        exact: whether F is kept, (p, p).

    Cost: a batch costs its factors and, if exact, m p^2; `factorise` p^3 / 3, or the
        cubes of the layers' widths.
    """

    def __init__(self, exact: bool) -> None:
        self.exact, self.count = exact, 0
        self.averages: list[Tensor] = []
        self.factors: KroneckerFactors | None = None

    def add(self, rows: JacobianFactors, loose: Tensor | None = None) -> None:
        """Take in the rows of one more batch.

        Args:
            rows: of its metric.
            loose: the diagonal (p,) of parameters that the rows leave out.
        """
        self.factors, w = (
            KroneckerFactors(rows),
            min(self.count / (self.count + 1), KEEP),
        )
        diagonal = torch.zeros(rows.p).to(rows.like) if loose is None else loose.clone()
        for block in rows.blocks:
            if isinstance(block, DenseBlock):
                diagonal[block.index] = block.rows.square().sum((0, 1))
        new = [diagonal, *(S for pair in self.factors.pairs for S in pair)]
        new = [t.double() for t in new]
        if self.exact:
            A = rows.dense().double()
            new.append(A.T @ A)
        old = self.averages or new
        self.averages = [w * a + (1 - w) * b for a, b in zip(old, new, strict=True)]
        self.count += 1

    def factorise(self, damping: float) -> None:
        """Prepare solves with this damping."""
        assert self.factors is not None
        self.damping, self.diagonal = damping, _filled(self.averages[0])
        beta = max(OUTPUTS[self.exact], PRIOR / (1 + self.count))
        self.pairs = [
            (_lifted(B, beta, True), _lifted(A, INPUTS[self.exact]))
            for B, A in zip(self.averages[1::2], self.averages[2::2], strict=False)
        ][: len(self.factors.layers)]
        if self.exact:
            self.F = self.averages[-1]
            H = self.F + damping * self._dense()
            h = H.diagonal()
            self.scale = torch.where(h > 0, h.clamp_min(1e-200).rsqrt(), 0.0)
            self.root = _cholesky(self.scale[:, None] * H * self.scale)
        else:
            self.roots = [(_cholesky(B), _cholesky(A)) for B, A in self.pairs]

    def solve(self, v: Tensor) -> Tensor:
        r"""The vector :math:`(\bar F + \lambda M)^{-1} v`, (p,), in float64."""
        if self.exact:
            x = torch.cholesky_solve((self.scale * v)[:, None], self.root)[:, 0]
            return self.scale * x
        assert self.factors is not None
        parts = [
            torch.cholesky_solve(torch.cholesky_solve(V, B).mT, A).mT
            for V, (B, A) in zip(self.factors.split(v), self.roots, strict=True)
        ]
        return self._join(parts, v / self.diagonal) / (1 + self.damping)

    def metric(self, v: Tensor) -> Tensor:
        """The covector M v, (p,)."""
        assert self.factors is not None
        parts = [
            B @ V @ A
            for V, (B, A) in zip(self.factors.split(v), self.pairs, strict=True)
        ]
        return self._join(parts, v * self.diagonal)

    def product(self, v: Tensor) -> Tensor:
        r"""The covector :math:`\bar F v`, (p,)."""
        return self.F @ v if self.exact else self.metric(v)

    def _join(self, parts: list[Tensor], others: Tensor) -> Tensor:
        assert self.factors is not None
        return self.factors.join(parts, others)

    def _dense(self) -> Tensor:
        """M itself, (p, p)."""
        assert self.factors is not None
        M = torch.diag(self.diagonal)
        where = torch.arange(len(M)).to(M)
        for places, (B, A) in zip(self.factors.split(where), self.pairs, strict=True):
            places = places.long().reshape(-1, B.shape[-1] * A.shape[-1])
            for k, i in enumerate(places):
                b, a = (S.reshape(-1, *S.shape[-2:])[k] for S in (B, A))
                M[i[:, None], i] = torch.kron(b, a)
        return M

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on."""
        return {"exact": self.exact, "count": self.count, "averages": self.averages}


def _filled(d: Tensor) -> Tensor:
    """A diagonal whose zeros are lifted to its mean, or to 1."""
    mean = float(d.mean())
    return torch.where(d > 1e-12 * mean, d, mean or 1.0)


def _lifted(S: Tensor, share: float, mean: bool = False) -> Tensor:
    d = S.diagonal(0, -2, -1)
    d = _filled(d.mean(-1, keepdim=True).expand_as(d) if mean else d)
    return S + share * torch.diag_embed(d)


def _cholesky(S: Tensor) -> Tensor:
    """The Cholesky factor of S, or of S with as little on its diagonal as it needs."""
    d = torch.where(S.diagonal(0, -2, -1) > 0, S.diagonal(0, -2, -1), 1.0)
    for power in range(-13, 1, 2):
        L, info = torch.linalg.cholesky_ex(S + 10.0**power * torch.diag_embed(d))
        if not bool(info.any()):
            return L
    raise ValueError("curvature: expected finite, positive semi-definite averages")
