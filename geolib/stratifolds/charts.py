"""Charts: coordinates in which an optimizer walks, mapped to a model's atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_eps, smooth_modulus


class Chart:
    r"""A map from coordinates to atoms, with its Jacobian and its admissible set.

    .. math:: \eta \in \mathbb{R}^P \longmapsto \alpha(\eta) \in \mathbb{R}^A,
              \qquad \nabla_\eta L = J^\top \nabla_\alpha L,\quad F_\eta = J^\top F J

    Every resolution of the chapter is only a chart. A subclass writes `atoms`; it may
    write `jacobian` by hand, else autograd is used.

    Attributes:
        names: one label a coordinate.
        eps: width of the collar, or None where the chart has none.

    Source: our construction. Cost of the default Jacobian: A backward passes.

    Examples:
        >>> class Half(Chart):
        ...     names = ("h",)
        ...     def atoms(self, eta):
        ...         return torch.cat([1 - eta / 2, eta / 2, 0 * eta, 0 * eta + 1], 1)
        >>> Half().jacobian(torch.zeros(1, 1))[0, :, 0]
        tensor([-0.5000,  0.5000,  0.0000,  0.0000])
    """

    names: tuple[str, ...] = ()
    eps: float | None = None

    def atoms(self, eta: Tensor) -> Tensor:
        """Coordinates (b, P) to atoms (b, A)."""
        raise NotImplementedError

    def jacobian(self, eta: Tensor) -> Tensor:
        """The derivative of `atoms`, (b, A, P)."""
        with torch.enable_grad():
            leaf = eta.detach().requires_grad_(True)
            atoms = self.atoms(leaf)
            rows = [
                # rows of a batch do not interact, so one backward serves them all
                torch.autograd.grad(
                    atoms[:, i].sum(), leaf, retain_graph=True, materialize_grads=True
                )[0]
                for i in range(atoms.shape[1])
            ]
        return torch.stack(rows, 1)

    def project(self, eta: Tensor) -> Tensor:
        """The nearest admissible coordinates, one row at a time."""
        return eta

    def lift(self, theta: Tensor) -> Tensor:
        """Raw parameters (b, P) to coordinates; the identity for the raw chart."""
        return theta

    def push(self, eta: Tensor) -> Tensor:
        """The projection pi back to raw parameters."""
        return eta

    def metric(self, eta: Tensor, fisher: Tensor) -> Tensor:
        """The metric a natural gradient uses; the Fisher matrix unless overridden."""
        return fisher

    def inside_collar(self, eta: Tensor) -> Tensor:
        """Which rows are inside the collar, where the model was changed: (b,) bool."""
        return torch.zeros(len(eta), dtype=torch.bool, device=eta.device)


def check_theta(theta: Tensor, width: int, weight: int | None = None) -> None:
    """Refuse raw parameters of the wrong shape, not finite, or with w outside [0, 1].

    Examples:
        >>> check_theta(torch.tensor([[1.5, 0.0]]), 2, weight=0)
        Traceback (most recent call last):
        ValueError: theta: weight w (column 0) must lie in [0, 1]; got 1.5 in row 0
    """
    if theta.ndim != 2 or theta.shape[1] != width:
        raise ValueError(
            f"theta: expected shape (batch, {width}), got {tuple(theta.shape)}"
        )
    if not bool(torch.isfinite(theta).all()):
        raise ValueError("theta: expected finite numbers, got NaN or infinity")
    if weight is not None:
        w = theta[:, weight]
        bad = ((w < 0) | (w > 1)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"theta: weight w (column {weight}) must lie in [0, 1]; "
                f"got {float(w[row]):g} in row {row}"
            )


class RawA(Chart):
    r"""Mixture A in its own parameters: :math:`(1-w)\,N(0,1) + w\,N(\mu,1)`.

    .. math:: \alpha(w, \mu) = (1-w,\ w;\ 0,\ \mu), \qquad 0 \le w \le 1

    Source: the target papers' first example (model); chart trivial. Cost: O(b).

    Examples:
        >>> RawA().atoms(torch.tensor([[0.25, 2.0]]))
        tensor([[0.7500, 0.2500, 0.0000, 2.0000]])
    """

    names = ("w", "mu")

    def atoms(self, eta: Tensor) -> Tensor:
        w, mu = eta.unbind(1)
        return torch.stack([1 - w, w, torch.zeros_like(w), mu], 1)

    def jacobian(self, eta: Tensor) -> Tensor:
        J = eta.new_tensor([[-1.0, 0], [1, 0], [0, 0], [0, 1]])
        return J.expand(len(eta), -1, -1)

    def project(self, eta: Tensor) -> Tensor:
        return torch.stack([eta[:, 0].clamp(0, 1), eta[:, 1]], 1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2, weight=0)
        return theta


class LogitA(Chart):
    r"""Mixture A with the weight on the logit scale: no wall, but a slow one.

    .. math:: w = 1/(1 + e^{-\ell})

    Source: the usual practice; the honest rival of a resolution. Cost: O(b).

    Examples:
        >>> LogitA().atoms(torch.tensor([[0.0, 2.0]]))
        tensor([[0.5000, 0.5000, 0.0000, 2.0000]])
    """

    names = ("logit w", "mu")

    def atoms(self, eta: Tensor) -> Tensor:
        return RawA().atoms(self.push(eta))

    def jacobian(self, eta: Tensor) -> Tensor:
        w = torch.sigmoid(eta[:, 0])
        J = eta.new_zeros(len(eta), 4, 2)
        J[:, 1, 0] = w * (1 - w)
        J[:, 0, 0] = -J[:, 1, 0]
        J[:, 3, 1] = 1
        return J

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2, weight=0)
        return torch.stack([torch.logit(theta[:, 0], eps=1e-12), theta[:, 1]], 1)

    def push(self, eta: Tensor) -> Tensor:
        return torch.stack([torch.sigmoid(eta[:, 0]), eta[:, 1]], 1)


class TubeA(Chart):
    r"""Mixture A with its two sheets glued by a tube of width eps.

    .. math:: \hat p = (1-w)\,N(0,1) + w\,[\sigma N(\nu,1) + (1-\sigma) N(-\nu,1)],
              \quad w = \frac{|t|_\varepsilon}{\nu},\quad
              \sigma = \tfrac12\Bigl(1 + \frac{t}{|t|_\varepsilon}\Bigr)

    :math:`t` is the mean of :math:`\hat p`, exactly. For :math:`|t| \ge \varepsilon`
    this is mixture A with :math:`\mu = \mathrm{sign}(t)\,\nu`; inside the collar it is
    a genuine density with three atoms, so a run may change the sign of the mean without
    crossing the point where both sheets meet.

    Args:
        eps: width of the collar in the mean t.

    Raises:
        ValueError: `eps` not positive, or weights outside [0, 1] on `lift`.

    Source: our construction, in the spirit of arXiv 2112.03734. Cost: O(b).

    Examples:
        >>> c = TubeA(0.1)
        >>> c.atoms(c.lift(torch.tensor([[0.25, 2.0]])))
        tensor([[ 0.7500,  0.2500,  0.0000,  0.0000,  2.0000, -2.0000]])
    """

    names = ("t", "nu")
    eps: float

    def __init__(self, eps: float = 0.1) -> None:
        check_eps(eps)
        self.eps = float(eps)

    def atoms(self, eta: Tensor) -> Tensor:
        t, nu = eta.unbind(1)
        m, _ = smooth_modulus(t, self.eps)
        up, down = (m + t) / (2 * nu), (m - t) / (2 * nu)
        return torch.stack([1 - m / nu, up, down, torch.zeros_like(nu), nu, -nu], 1)

    def jacobian(self, eta: Tensor) -> Tensor:
        t, nu = eta.unbind(1)
        m, dm = smooth_modulus(t, self.eps)
        J = eta.new_zeros(len(eta), 6, 2)
        J[:, 0, 0], J[:, 0, 1] = -dm / nu, m / nu**2
        J[:, 1, 0], J[:, 1, 1] = (dm + 1) / (2 * nu), -(m + t) / (2 * nu**2)
        J[:, 2, 0], J[:, 2, 1] = (dm - 1) / (2 * nu), -(m - t) / (2 * nu**2)
        J[:, 4, 1], J[:, 5, 1] = 1, -1
        return J

    def project(self, eta: Tensor) -> Tensor:
        t, nu = eta.unbind(1)
        return torch.stack([t, torch.maximum(nu, smooth_modulus(t, self.eps)[0])], 1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2, weight=0)
        return self.project(torch.stack([theta.prod(1), theta[:, 1].abs()], 1))

    def push(self, eta: Tensor) -> Tensor:
        t, nu = eta.unbind(1)
        sign = torch.where(t < 0, -1.0, 1.0).to(t)
        return torch.stack([t.abs() / nu, sign * nu], 1)

    def inside_collar(self, eta: Tensor) -> Tensor:
        return eta[:, 0].abs() < self.eps
