r"""A metric averaged over batches, and solves with a damping that is a tensor itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geolib.core import JacobianFactors, KroneckerFactors
from geolib.core.jacobian_factors import DenseBlock

KEEP = {True: 0.6, False: 0.95}  # of the average at each further batch: exact F, K-FAC
INPUTS = {True: 1e-8, False: 1.0}  # what lifts A, of its diagonal: exact F, or K-FAC
OUTPUTS = {True: 1e-2, False: 3e-2}  # what lifts B, of its mean diagonal, in the end
SHRINK = 1.0  # of A to its diagonal: times its side, over the samples seen
SAMPLES = 256  # of a batch, at most, of which K-FAC's factors are taken
PRIOR = 3.0  # batches that B's mean diagonal counts for: units that they leave dead


class AveragedCurvature:
    r"""Running averages of F and of its K-FAC factors.

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

    KEPT = ("exact", "count", "samples", "damping", "averages", "places")

    def __init__(self, exact: bool) -> None:
        self.exact, self.count, self.samples, self.damping = exact, 0, 0, 0.0
        self.averages: list[Tensor] = []

    def add(self, rows: JacobianFactors, loose: Tensor | None = None) -> None:
        """Take in the rows of one more batch.

        Args:
            rows: of its metric.
            loose: the diagonal (p,) of parameters that the rows leave out.
        """
        step, whole = 1 if self.exact else -(-rows.n // SAMPLES), rows.n
        rows = rows if step == 1 else rows.at(slice(0, None, step))
        share = whole / rows.n
        factors = KroneckerFactors(rows)
        diagonal = rows.like.new_zeros(rows.p) if loose is None else loose.clone()
        for block in rows.blocks:
            if isinstance(block, DenseBlock):
                diagonal[block.index] = share * block.rows.square().sum((0, 1))
        new = [diagonal, *(S for B, A in factors.pairs for S in (share * B, A))]
        if self.exact:
            A = rows.dense().double()
            new = [t.double() for t in (*new, A.T @ A)]
        w = min(1 - 1 / (self.count + 1), KEEP[self.exact])
        old = self.averages or new
        self.averages = [torch.lerp(b, a, w) for a, b in zip(old, new, strict=True)]
        self.count, self.samples = self.count + 1, rows.n
        where = torch.arange(rows.p, dtype=torch.float64, device=rows.like.device)
        self.places = [i.long() for i in factors.split(where)]
        self._derive()

    def _derive(self) -> None:
        """What follows from the averages."""
        self.diagonal = _filled(self.averages[0])
        beta, alpha = max(OUTPUTS[self.exact], PRIOR / (1 + self.count)), INPUTS[True]
        seen = self.samples * min(self.count, 1 / (1 - KEEP[False]))
        pairs = []
        for k in range(1, 2 * len(self.places), 2):
            B, A = self.averages[k : k + 2]
            if not self.exact:  # samples that A has seen, against its side
                alpha = max(INPUTS[False], SHRINK * A.shape[-1] / seen)
            pairs.append((_lifted(B, beta, True), _lifted(A, alpha)))
        if self.exact:
            self.F, self.M = self.averages[-1], self._dense(pairs)
        else:
            self.pairs, inverse = pairs, torch.cholesky_inverse
            self.inverses = [[inverse(_cholesky(S)) for S in pair] for pair in pairs]

    def factorise(self, damping: float) -> None:
        """Prepare solves with this damping."""
        self.damping = damping
        if self.exact:
            H = self.F + damping * self.M
            h = H.diagonal()
            self.scale = torch.where(h > 0, h.clamp_min(1e-200).rsqrt(), 0.0)
            self.root = _cholesky(self.scale[:, None] * H * self.scale)

    def solve(self, v: Tensor) -> Tensor:
        r"""The vector :math:`(\bar F + \lambda M)^{-1} v`, (p,)."""
        if self.exact:
            x = torch.cholesky_solve((self.scale * v)[:, None], self.root)[:, 0]
            return self.scale * x
        return self._kronecker(self.inverses, v, v / self.diagonal) / (1 + self.damping)

    def metric(self, v: Tensor) -> Tensor:
        """The covector M v, (p,)."""
        if self.exact:
            return self.M @ v
        return self._kronecker(self.pairs, v, v * self.diagonal)

    def product(self, v: Tensor) -> Tensor:
        r"""The covector :math:`\bar F v`, (p,)."""
        return self.F @ v if self.exact else self.metric(v)

    def _kronecker(self, pairs: list[Any], v: Tensor, others: Tensor) -> Tensor:
        out = others.clone()
        for i, (B, A) in zip(self.places, pairs, strict=True):
            out[i] = B @ v[i] @ A
        return out

    def _dense(self, pairs: list[Any]) -> Tensor:
        """M itself, (p, p)."""
        M = torch.diag(self.diagonal)
        for places, (B, A) in zip(self.places, pairs, strict=True):
            flat = places.reshape(-1, B.shape[-1] * A.shape[-1])
            for k, i in enumerate(flat):
                b, a = (S.reshape(-1, *S.shape[-2:])[k] for S in (B, A))
                M[i[:, None], i] = torch.kron(b, a)
        return M

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on."""
        return {name: getattr(self, name) for name in self.KEPT}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> AveragedCurvature:
        """The averages that `state` told, ready for solves."""
        new = cls(state["exact"])
        vars(new).update(state)
        new._derive()
        new.factorise(new.damping)
        return new


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
