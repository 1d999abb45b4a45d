r"""K-FAC, and the exact natural gradient damped by K-FAC's metric."""

from __future__ import annotations

from torch import Tensor

from geolib.core import KroneckerFactors
from geolib.naturality.geometric_optimizer import GeometricOptimizer, State
from geolib.naturality.local_geometry import LocalGeometry


def kronecker(q: LocalGeometry) -> KroneckerFactors:
    """Return core's K-FAC factors of a geometry whose network is known."""
    if q.metric is None:
        raise ValueError("module: K-FAC needs the module itself, to read its layers")
    return KroneckerFactors(q.metric.rows())


class KFAC(GeometricOptimizer):
    r"""Kronecker-factored approximate curvature, natural under layer-affine maps.

    .. math:: X_l \leftarrow X_l - h\,(B_l + \tfrac{\sqrt\lambda}{\pi_l}I)^{-1}
        \,G_l\,(A_l + \pi_l\sqrt\lambda I)^{-1}, \qquad
        \pi_l^2 = \frac{\mathrm{tr}A_l/\dim A_l}{\mathrm{tr}B_l/\dim B_l} .

    Undamped it is exactly natural under :math:`W_l \mapsto U_lW_lV_l`; damping gives
    that up.

    Args:
        params: the module; its own parameters are optimized, and the closure must call it.
            Parameters outside linear and convolutional layers keep the diagonal of F.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: a module without trainable parameters.

    Source: Martens, Grosse 2015; Luk, Grosse 2018; :eq:`drv-naturality-kfac`
        (derivations).

    Examples:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False).double()
        >>> opt = KFAC(net, lr=1.0)
        >>> x = torch.tensor([[2.0]], dtype=torch.float64)
        >>> def closure():
        ...     z = net(x)
        ...     return z, 0.5 * (z - 6).square().sum()
        >>> loss = opt.step(closure)
        >>> round(net.weight.item(), 9)  # one layer, one sample: it is exact
        3.0
    """

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return -kronecker(q).solve(q.g, self.options["damping"], factored=True)
