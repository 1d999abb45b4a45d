"""Charts of two free atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_eps, smooth_modulus, smooth_step
from geolib.stratifolds.charts import Chart, check_theta

FLOOR = 1e-10  # added to D^2: the model at v + FLOOR/4, so that derivatives stay finite


class RawB(Chart):
    r"""Mixture B in its own parameters: :math:`(1-w)\,N(\mu_1,1) + w\,N(\mu_2,1)`.

    .. math:: \alpha(w, \mu_1, \mu_2) = (1-w,\ w;\ \mu_1,\ \mu_2)

    Source: the target papers' second example (model); chart trivial. Cost: O(b).

    Examples:
        >>> RawB().atoms(torch.tensor([[0.5, -1.0, 1.0]]))
        tensor([[ 0.5000,  0.5000, -1.0000,  1.0000]])
    """

    names = ("w", "mu1", "mu2")

    def atoms(self, eta: Tensor) -> Tensor:
        w, m1, m2 = eta.unbind(1)
        return torch.stack([1 - w, w, m1, m2], 1)

    def jacobian(self, eta: Tensor) -> Tensor:
        J = eta.new_tensor([[-1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        return J.expand(len(eta), -1, -1)

    def project(self, eta: Tensor) -> Tensor:
        return torch.cat([eta[:, :1].clamp(0, 1), eta[:, 1:]], 1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        return theta


class LogitB(RawB):
    r"""Mixture B with the weight on the logit scale.

    .. math:: w = 1/(1 + e^{-\ell})

    Source: the usual practice. Cost: O(b).

    Examples:
        >>> LogitB().push(torch.tensor([[0.0, -1.0, 1.0]]))
        tensor([[ 0.5000, -1.0000,  1.0000]])
    """

    names = ("logit w", "mu1", "mu2")

    def atoms(self, eta: Tensor) -> Tensor:
        return super().atoms(self.push(eta))

    def jacobian(self, eta: Tensor) -> Tensor:
        w = torch.sigmoid(eta[:, 0])
        J = super().jacobian(eta).clone()
        J[:, :, 0] *= (w * (1 - w))[:, None]
        return J

    def project(self, eta: Tensor) -> Tensor:
        return eta

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        return torch.cat([torch.logit(theta[:, :1], eps=1e-12), theta[:, 1:]], 1)

    def push(self, eta: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(eta[:, :1]), eta[:, 1:]], 1)


class RelativeB(Chart):
    r"""Mixture B by one mean and a gap that is kept open.

    .. math:: (\mu_1, \Delta, w), \qquad \mu_2 = \mu_1 + \Delta,\quad
              \Delta \ge \mathrm{gap} \ge 0

    Args:
        gap: smallest separation; 0 keeps the order but not the distance.

    Raises:
        ValueError: a negative `gap`.

    Source: the follow-up's chart by name (arXiv 2206.08598); its form is our reading.
    Cost: O(b).

    Examples:
        >>> RelativeB(0.05).project(torch.tensor([[0.0, -1.0, 0.5]]))
        tensor([[0.0000, 0.0500, 0.5000]])
    """

    names = ("mu1", "delta", "w")

    def __init__(self, gap: float = 0.05) -> None:
        if not gap >= 0:
            raise ValueError(f"gap: expected a number >= 0, got {gap!r}")
        self.gap = float(gap)

    def atoms(self, eta: Tensor) -> Tensor:
        return RawB().atoms(self.push(eta))

    def jacobian(self, eta: Tensor) -> Tensor:
        J = eta.new_tensor([[0.0, 0, -1], [0, 0, 1], [1, 0, 0], [1, 1, 0]])
        return J.expand(len(eta), -1, -1)

    def project(self, eta: Tensor) -> Tensor:
        m1, gap, w = eta.unbind(1)
        return torch.stack([m1, gap.clamp_min(self.gap), w.clamp(0, 1)], 1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        w, m1, m2 = theta.unbind(1)
        swap = m2 < m1  # the same density with its labels exchanged
        low, high = torch.minimum(m1, m2), torch.maximum(m1, m2)
        w = torch.where(swap, 1 - w, w)
        return self.project(torch.stack([low, high - low, w], 1))

    def push(self, eta: Tensor) -> Tensor:
        m1, gap, w = eta.unbind(1)
        return torch.stack([w, m1, m1 + gap], 1)


def moduli_of(theta: Tensor) -> Tensor:
    r"""Mixture B's moduli: what remains when the labels are forgotten.

    .. math:: b = (1-w)\mu_1 + w\mu_2,\quad v = w(1-w)d^2,\quad s = (1-2w)d,
              \quad d = \mu_2 - \mu_1

    Args:
        theta: (b, 3) rows :math:`(w, \mu_1, \mu_2)`.

    Returns:
        (b, 3) rows :math:`(b, v, s)`; the label swap leaves them fixed.

    Source: derived (spec 1.4). Cost: O(b).

    Examples:
        >>> moduli_of(torch.tensor([[0.25, 0.0, 2.0], [0.75, 2.0, 0.0]]))
        tensor([[0.5000, 0.7500, 1.0000],
                [0.5000, 0.7500, 1.0000]])
    """
    w, m1, m2 = theta.unbind(1)
    d = m2 - m1
    return torch.stack([(1 - w) * m1 + w * m2, w * (1 - w) * d * d, (1 - 2 * w) * d], 1)


class ModuliB(Chart):
    r"""Mixture B in its moduli: the singular line becomes the wall v = 0.

    .. math:: D = \sqrt{s^2 + 4v},\quad w = \tfrac12(1 - s/D),\quad
              \mu_1 = b - wD,\quad \mu_2 = b + (1-w)D

    The density is analytic in (b, v, s), and its derivative in v does not vanish at
    v = 0: the escape from the overlap takes constant time instead of log(1/d).

    Args:
        eps: None keeps the wall v >= 0; a width glues a second copy along it
            (:math:`v = |t|_\varepsilon`).
        ridge: width of the metric collar
            :math:`F + \tfrac{\varepsilon^2}{6}(1 - S(v/\varepsilon))\,e_s e_s^\top`,
            which keeps natural gradients finite where s is not identifiable.

    Raises:
        ValueError: a width that is not positive.

    Source: our construction (spec 1.4), in the spirit of arXiv 2206.08598. Cost: O(b).

    Examples:
        >>> c = ModuliB()
        >>> c.push(torch.tensor([[0.5, 0.75, 1.0]]))
        tensor([[0.2500, 0.0000, 2.0000]])
    """

    names = ("b", "v", "s")

    def __init__(self, eps: float | None = None, ridge: float | None = None) -> None:
        for width in (eps, ridge):
            if width is not None:
                check_eps(width)
        self.eps, self.ridge = eps, ridge

    def _v(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        t = eta[:, 1]
        if self.eps is None:
            return t, torch.ones_like(t)
        return smooth_modulus(t, self.eps)

    def push(self, eta: Tensor) -> Tensor:
        b, s = eta[:, 0], eta[:, 2]
        D = torch.sqrt(s * s + 4 * self._v(eta)[0] + FLOOR)
        return torch.stack([(1 - s / D) / 2, b - (D - s) / 2, b + (D + s) / 2], 1)

    def atoms(self, eta: Tensor) -> Tensor:
        return RawB().atoms(self.push(eta))

    def jacobian(self, eta: Tensor) -> Tensor:
        s = eta[:, 2]
        v, dv = self._v(eta)
        D = torch.sqrt(s * s + 4 * v + FLOOR)
        J = eta.new_zeros(len(eta), 4, 3)
        J[:, 1, 1] = dv * s / D**3
        J[:, 1, 2] = (s * s - D * D) / (2 * D**3)
        J[:, 0] = -J[:, 1]
        J[:, 2, 0] = J[:, 3, 0] = 1
        J[:, 2, 1], J[:, 3, 1] = -dv / D, dv / D
        J[:, 2, 2], J[:, 3, 2] = (1 - s / D) / 2, (1 + s / D) / 2
        return J

    def project(self, eta: Tensor) -> Tensor:
        if self.eps is not None:
            return eta
        return torch.stack([eta[:, 0], eta[:, 1].clamp_min(0), eta[:, 2]], 1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        return self.project(moduli_of(theta))

    def metric(self, eta: Tensor, fisher: Tensor) -> Tensor:
        if self.ridge is None:
            return fisher
        extra = self.ridge**2 / 6 * (1 - smooth_step(self._v(eta)[0] / self.ridge))
        G = fisher.clone()
        G[:, 2, 2] += extra
        return G

    def inside_collar(self, eta: Tensor) -> Tensor:
        if self.eps is None:
            return super().inside_collar(eta)
        return eta[:, 1].abs() < self.eps
