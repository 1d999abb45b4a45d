"""The absolute-value normal form, in which all four pathologies disappear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability import ShallowReLU, kinks
from geolib.inverse_stability.distance import bottleneck_assignment


@dataclass(frozen=True, eq=False)
class AbsoluteValueForm:
    r"""The normal form that every realization has exactly once (up to signs of a_h).

    .. math:: f(x) = \tfrac12 \sum_h c_h\, |\langle a_h, x\rangle| + B x

    Attributes:
        A: kink normals scaled so that ‖a_h‖ = ‖c_h‖ (largest entry), shape (h, d).
        C: jumps, c_h a_h^T = J_h, shape (D, h).
        B: the linear part, the mean of Df at x and at -x, shape (D, d).
    """

    A: np.ndarray
    C: np.ndarray
    B: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Outputs of shape (n, D) at inputs of shape (n, d)."""
        return np.abs(x @ self.A.T) @ self.C.T / 2 + x @ self.B.T

    def distance(self, other: AbsoluteValueForm) -> tuple[float, float]:
        r"""Distances of two normal forms: of the kinks, and of the linear parts.

        .. math:: \min_\pi \max_h \min_{s = \pm 1} \max\bigl(\|a_h - s\,a'_{\pi h}
            \|_\infty, \|c_h - c'_{\pi h}\|_\infty\bigr), \qquad \|B - B'\|_{\max}

        Missing kinks are zero. At W^{1,inf} distance δ the first is at most
        :math:`2\sqrt{2\delta}`, the second at most δ.
        """
        h = max(len(self.A), len(other.A), 1)
        (a, c), (u, w) = self._padded(h), other._padded(h)
        side = np.abs(c[:, None] - w[None, :]).max(axis=2)
        turn = [np.abs(a[:, None] - s * u[None, :]).max(axis=2) for s in (1, -1)]
        value, _ = bottleneck_assignment(np.maximum(np.minimum(*turn), side))
        return value, float(np.abs(self.B - other.B).max())

    def _padded(self, h: int) -> tuple[np.ndarray, np.ndarray]:
        extra = ((0, h - len(self.A)), (0, 0))
        return np.pad(self.A, extra), np.pad(self.C.T, extra)


def absolute_value_form(net: ShallowReLU) -> AbsoluteValueForm:
    r"""The normal form in which all four pathologies of the W^{1,inf} norm disappear.

    .. math:: c_h a_h^T = J_h, \qquad B = \tfrac12\bigl(Df(x) + Df(-x)\bigr)
        = \tfrac12\sum_h (P_h + Q_h)

    No condition on the network. Hyperplanes with an exactly vanishing jump are left
    out. For two networks at W^{1,inf} distance :math:`\delta` the terms differ by at
    most :math:`2\sqrt{2\delta}` after matching and the linear parts by at most
    :math:`\delta` (see `AbsoluteValueForm.distance`).

    Args:
        net: the network.

    Source: :eq:`drv-inverse_stability-normal-form` (derivations).

    Examples:
        >>> f = absolute_value_form(ShallowReLU([[1.0, 0.0]], [[1.0]]))
        >>> f.A, f.C, f.B
        (array([[1., 0.]]), array([[1.]]), array([[0.5, 0. ]]))
    """
    k = kinks(net)
    B = (k.on + k.off).sum(axis=0) / 2
    live = np.abs(k.jumps).reshape(len(k.jumps), -1).any(axis=1)
    normals, jumps = k.normals[live], k.jumps[live]
    strength = np.einsum("hod,hd->ho", jumps, normals)
    if not len(normals):
        return AbsoluteValueForm(normals, np.zeros((net.D, 0)), B)
    terms = ShallowReLU(normals, strength.T).balance()
    return AbsoluteValueForm(terms.A, terms.C, B)
