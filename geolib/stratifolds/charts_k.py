"""Charts of K atoms: the usual one, and one with a pair in its moduli."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart, check_theta
from geolib.stratifolds.charts_pair import ModuliB, moduli_of


class PairModuli(Chart):
    r"""K atoms, one pair of them in its moduli and the rest by softmax and location.

    .. math:: \eta = (\ell_3, \dots, \ell_K;\ b, v, s;\ \mu_3, \dots, \mu_K)

    The pair shares the group weight :math:`W = 1/(1 + \sum_k e^{\ell_k})` and splits it
    as in `ModuliB`. With ``v = s = 0`` the pair is one atom.

    Args:
        K: number of atoms, at least 2.
        pair: the two atoms that may overlap.

    Raises:
        ValueError: K < 2 or a pair that does not name two different atoms.

    Source: spec 5.3. Cost: O(b K^2) for the Jacobian.

    Examples:
        >>> c = PairModuli(3, pair=(0, 2))
        >>> atoms = torch.tensor([[0.25, 0.5, 0.25, -1.0, 3.0, 1.0]])
        >>> torch.allclose(c.atoms(c.lift(atoms)), atoms, atol=1e-6)
        True
    """

    def __init__(self, K: int, pair: tuple[int, int] = (0, 1)) -> None:
        i, j = pair
        if K < 2 or i == j or not (0 <= i < K and 0 <= j < K):
            raise ValueError(f"pair: expected two different atoms of {K}, got {pair}")
        self.K, self.pair = K, (i, j)
        self.rest = [k for k in range(K) if k not in pair]
        self.names = (
            *(f"logit a{k}" for k in self.rest),
            *("b", "v", "s"),
            *(f"mu{k}" for k in self.rest),
        )

    def _order(self) -> list[int]:
        return [self.pair[0], self.pair[1], *self.rest]

    def atoms(self, eta: Tensor) -> Tensor:
        r = self.K - 2
        logits = torch.cat([torch.zeros_like(eta[:, :1]), eta[:, :r]], 1)
        group = torch.softmax(logits, 1)
        w, m1, m2 = ModuliB().push(eta[:, r : r + 3]).unbind(1)
        W = group[:, 0]
        a = torch.cat([torch.stack([W * (1 - w), W * w], 1), group[:, 1:]], 1)
        c = torch.cat([torch.stack([m1, m2], 1), eta[:, r + 3 :]], 1)
        back = torch.argsort(torch.tensor(self._order(), device=eta.device))
        return torch.cat([a[:, back], c[:, back]], 1)

    def project(self, eta: Tensor) -> Tensor:
        r = self.K - 2
        eta = eta.clone()
        eta[:, r + 1] = eta[:, r + 1].clamp_min(0)
        return eta

    def lift(self, theta: Tensor) -> Tensor:
        """Atoms (b, 2K) with positive weights that sum to 1, to coordinates."""
        K = self.K
        check_theta(theta, 2 * K)
        a, c = theta[:, :K], theta[:, K:]
        if bool((a <= 0).any()) or bool(((a.sum(1) - 1).abs() > 1e-6).any()):
            raise ValueError("theta: expected positive weights that sum to 1")
        i, j = self.pair
        W = a[:, i] + a[:, j]
        raw = torch.stack([a[:, j] / W, c[:, i], c[:, j]], 1)
        logits = torch.log(a[:, self.rest] / W[:, None])
        return torch.cat([logits, moduli_of(raw), c[:, self.rest]], 1)

    def push(self, eta: Tensor) -> Tensor:
        return self.atoms(eta)


class SoftmaxAtoms(Chart):
    r"""K atoms by softmax weights and free locations, the usual chart.

    .. math:: a_k = e^{\ell_k} / \bigl(1 + \textstyle\sum_{j>1} e^{\ell_j}\bigr),
              \qquad \ell_1 = 0

    Source: the usual practice. Cost: O(b K^2) for the Jacobian.

    Examples:
        >>> SoftmaxAtoms(2).atoms(torch.zeros(1, 3))
        tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """

    def __init__(self, K: int) -> None:
        self.K = K
        names = [f"logit a{k}" for k in range(1, K)] + [f"mu{k}" for k in range(K)]
        self.names = tuple(names)

    def atoms(self, eta: Tensor) -> Tensor:
        logits = torch.cat([torch.zeros_like(eta[:, :1]), eta[:, : self.K - 1]], 1)
        return torch.cat([torch.softmax(logits, 1), eta[:, self.K - 1 :]], 1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2 * self.K)
        a = theta[:, : self.K]
        if bool((a <= 0).any()):
            raise ValueError("theta: expected positive weights that sum to 1")
        return torch.cat([torch.log(a[:, 1:] / a[:, :1]), theta[:, self.K :]], 1)

    def push(self, eta: Tensor) -> Tensor:
        return self.atoms(eta)
