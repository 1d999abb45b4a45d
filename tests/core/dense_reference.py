r"""Slow, dense and independent: what the fast operators are tested against.

Nothing here keeps a graph or a factor. The Jacobian comes column by column from
forward mode; matrices are formed in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.core import Realization
from geolib.core.validation import Inputs


def dense_jacobian(R: Realization, theta: Tensor, x: Inputs) -> Tensor:
    """All of J, shape (n, o, p), by p forward-mode derivatives.

    Examples:
        >>> R = Realization(torch.nn.Linear(2, 1))
        >>> dense_jacobian(R, torch.zeros(3), torch.ones(1, 2))
        tensor([[[1., 1., 1.]]])
    """
    unit = torch.eye(R.p, dtype=theta.dtype, device=theta.device)
    columns = [
        torch.func.jvp(lambda t: R(t, x), (theta,), (e,))[1].detach() for e in unit
    ]
    return torch.stack(columns, dim=-1)


def dense_metric(
    R: Realization, theta: Tensor, x: Inputs, blocks: Tensor, reduction: str = "mean"
) -> Tensor:
    """The pulled-back metric for given output matrices, shape (n, o, o) to (p, p)."""
    J = dense_jacobian(R, theta, x)
    G = torch.einsum("iap,iab,ibq->pq", J, blocks, J)
    return G / len(J) if reduction == "mean" else G


def expected_score_blocks(z: Tensor, family: str) -> Tensor:
    r"""Fisher matrices of outputs from their definition, one label at a time.

    .. math:: M_i = \sum_y p(y | z_i)\, \nabla_z \log p(y | z_i)
              \nabla_z \log p(y | z_i)^T.

    Args:
        z: logits, shape (n, o).
        family: "categorical" or "bernoulli" (independent outputs).
    """
    n, o = z.shape
    M = z.new_zeros(n, o, o)
    if family == "categorical":
        pi = z.softmax(-1)
        for y in range(o):
            score = torch.nn.functional.one_hot(torch.tensor(y), o).to(z) - pi
            M += pi[:, y, None, None] * score[:, :, None] * score[:, None, :]
        return M
    if family != "bernoulli":
        raise ValueError(f"family: expected categorical or bernoulli, got {family!r}")
    pi = torch.sigmoid(z)
    for label in (0, 1):
        weight = pi if label else 1 - pi
        M += torch.diag_embed(weight * (label - pi) ** 2)
    return M
