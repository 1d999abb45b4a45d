"""Charts, the coordinates in which an optimizer walks, and the bump of their collars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from geolib.core.validation import expect, require_finite

Surgery = Callable[[Tensor, Tensor], Tensor]

Coordinates = Annotated[Tensor, "real b self.width"]
Raw = Annotated[Tensor, "real b P"]


class Chart:
    r"""A chart maps coordinates to a model's natural parameters.

    .. math:: \eta \in \mathbb{R}^P \longmapsto \alpha(\eta) \in \mathbb{R}^A,
              \qquad \nabla_\eta L = J^\top \nabla_\alpha L,\quad F_\eta = J^\top F J

    Natural parameters are what the loss reads: weights and locations of a mixture, a
    mean vector for the cone, the weights of a network. A subclass writes `embed`; it
    may write `jacobian` by hand, else autograd is used. A resolution is a chart that
    changes the model inside a collar, and it alone knows that collar: its width `eps`
    and the coordinate that the width measures.

    Attributes:
        names: one label a coordinate.
        eps: width of the collar, or None where the chart has none.
        collar: the coordinate that is small inside the collar, where the chart changes
            the model there; `eps` is in its units.

    Cost: the default Jacobian takes A backward passes.
    Source: :eq:`drv-stratifolds-pullback` (derivations).

    Examples:
        >>> class Half(Chart):
        ...     names = ("h",)
        ...     def embed(self, eta):
        ...         return torch.cat([1 - eta / 2, eta / 2, 0 * eta, 0 * eta + 1], 1)
        >>> Half().jacobian(torch.zeros(1, 1))[0, :, 0]
        tensor([-0.5000,  0.5000,  0.0000,  0.0000])
    """

    names: tuple[str, ...] = ()
    eps: float | None = None

    @property
    def width(self) -> int:
        """The number P of coordinates."""
        return len(self.names)

    collar: int | None = None

    def embed(self, eta: Coordinates) -> Tensor:
        """Coordinates (b, P) to natural parameters (b, A)."""
        raise NotImplementedError

    def jacobian(self, eta: Coordinates) -> Tensor:
        """The derivative of `embed`, (b, A, P)."""
        with torch.enable_grad():
            leaf = eta.detach().requires_grad_(True)
            natural = self.embed(leaf)
            rows = [
                # rows of a batch do not interact, so one backward serves them all
                torch.autograd.grad(
                    natural[:, i].sum(), leaf, retain_graph=True, materialize_grads=True
                )[0]
                for i in range(natural.shape[1])
            ]
        return torch.stack(rows, 1)

    def linearize(self, eta: Coordinates) -> tuple[Tensor, Tensor]:
        """Both at once: natural parameters (b, A) and Jacobian (b, A, P)."""
        return self.embed(eta), self.jacobian(eta)

    def project(self, eta: Coordinates) -> Tensor:
        """The nearest admissible coordinates, one row at a time."""
        return eta

    def to_chart(self, theta: Tensor) -> Tensor:
        """Raw parameters (b, P) to coordinates; the identity for the raw chart."""
        return theta

    def from_chart(self, eta: Coordinates) -> Tensor:
        """Coordinates back to raw parameters: the projection pi of a resolution."""
        return eta

    def pull_back_metric(
        self, eta: Tensor, fisher: Tensor, J: Tensor | None = None
    ) -> Tensor:
        """The metric of a natural gradient, (b, P, P), from the Fisher matrix."""
        if J is None:
            J = self.jacobian(eta)
        F = real_part(torch.einsum("bap,bac,bcq->bpq", J, fisher, J))
        return (F + F.transpose(1, 2)) / 2

    def inside_collar(self, eta: Coordinates) -> Tensor:
        """Which rows are inside the collar, where the model was changed: (b,) bool."""
        if self.collar is None or self.eps is None:
            return torch.zeros(len(eta), dtype=torch.bool, device=eta.device)
        return eta[:, self.collar].abs() < self.eps

    def collar_height(self, theta: Tensor) -> Tensor | None:
        """Heights of raw parameters above the strata, (b,), in the units of `eps`.

        None where the chart leaves the model as it is.
        """
        return (
            None if self.collar is None else self.to_chart(theta)[:, self.collar].abs()
        )


class AffineChart(Chart):
    r"""An affine chart: natural parameters that are affine in bounded coordinates.

    .. math:: \alpha(\eta) = \alpha_0 + M\eta

    Args:
        names: one label a coordinate.
        matrix: rows of M, (A, P).
        offset: :math:`\alpha_0`, (A,); zero if not given.
        weight: the column that holds a mixture weight, kept in [0, 1].

    Source: :eq:`drv-stratifolds-models` (derivations).

    Examples:
        >>> AffineChart(("x", "y"), [[1, 1]]).embed(torch.tensor([[1.0, 2.0]]))
        tensor([[3.]])
    """

    def __init__(
        self,
        names: tuple[str, ...],
        matrix: Sequence[Sequence[float]],
        offset: Sequence[float] | None = None,
        weight: int | None = None,
    ) -> None:
        self.names, self.matrix, self.weight = names, matrix, weight
        self.offset = [0.0] * len(matrix) if offset is None else offset

    def embed(self, eta: Coordinates) -> Tensor:
        return eta.new_tensor(self.offset) + eta @ eta.new_tensor(self.matrix).T

    def jacobian(self, eta: Coordinates) -> Tensor:
        return eta.new_tensor(self.matrix).expand(len(eta), -1, -1)

    def project(self, eta: Coordinates) -> Tensor:
        if self.weight is None:
            return eta
        return with_columns(eta, {self.weight: eta[:, self.weight].clamp(0, 1)})

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, len(self.names), self.weight)
        return theta


def with_columns(theta: Tensor, values: dict[int, Any]) -> Tensor:
    """A copy of `theta` with some columns replaced.

    Examples:
        >>> with_columns(torch.ones(1, 3), {1: 0.0})
        tensor([[1., 0., 1.]])
    """
    columns = list(theta.unbind(1))
    for i, value in values.items():
        columns[i] = torch.zeros_like(columns[i]) + value
    return torch.stack(columns, 1)


def real_part(x: Tensor) -> Tensor:
    """The real part of complex numbers, and real numbers as they are."""
    return x.real if x.is_complex() else x


def check_theta(theta: Tensor, width: int, weight: int | None = None) -> None:
    """Refuse raw parameters of the wrong shape, not finite, or with w outside [0, 1].

    Examples:
        >>> check_theta(torch.tensor([[1.5, 0.0]]), 2, weight=0)
        Traceback (most recent call last):
        geolib.files.ArgumentError: theta: expected a weight w (column 0) in
        [0, 1], got [1.5]
    """
    shape = tuple(theta.shape)
    fits = len(shape) == 2 and shape[1] == width
    expect(fits, "theta", f"shape (batch, {width})", shape)
    require_finite("theta", theta)
    w = theta[:, weight or 0]
    bad = (w < 0) | (w > 1)
    if weight is not None and bool(bad.any()):
        wanted = f"a weight w (column {weight}) in [0, 1]"
        expect(False, "theta", wanted, w[bad].tolist())


def smooth_step(r: Tensor) -> Tensor:
    r"""A smooth step is exactly 0 for r <= 0 and exactly 1 for r >= 1.

    .. math:: S(r) = \frac{f(r)}{f(r) + f(1 - r)}, \qquad f(r) = e^{-1/r}\,[r > 0]

    Args:
        r: any shape.

    Returns:
        The step, of the same shape.

    Source: :eq:`drv-stratifolds-step` (derivations).

    Examples:
        >>> smooth_step(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return _step(r)[0]


def _step(r: Tensor) -> tuple[Tensor, Tensor]:
    """The step S and its slope S(1 - S)(1/r^2 + 1/(1-r)^2), from one logistic."""
    inside = (r > 0) & (r < 1)
    # f(1-r)/f(r) = exp(1/r - 1/(1-r)): no 0/0 at the ends
    safe = r.where(inside, 0.5)
    low, high = 1 / safe, 1 / (1 - safe)
    s = torch.sigmoid(high - low)
    slope = s * (1 - s) * (low * low + high * high)
    return s.where(inside, (r >= 1).to(r.dtype)), slope.where(inside, 0.0)


def smooth_modulus(
    t: Tensor, eps: Annotated[float, "0 < eps < inf"]
) -> tuple[Tensor, Tensor]:
    r"""The smooth modulus is a positive stand-in for ``|t|``, given with its slope.

    .. math:: |t|_\varepsilon = S(a)\,|t| + (1 - S(a))\sqrt{t^2 + \varepsilon^2/4},
              \qquad a = 2|t|/\varepsilon - 1

    A hyperbola for :math:`|t| < \varepsilon/2`, exactly :math:`|t|` from
    :math:`|t| = \varepsilon` on, never below :math:`\varepsilon/2`.

    Args:
        t: signed distance, any shape.
        eps: width of the collar, positive, in the units of `t`.

    Returns:
        The pair :math:`(|t|_\varepsilon,\ d|t|_\varepsilon/dt)`.

    Raises:
        ValueError: `eps` is not positive.

    Source: :eq:`eq-stratifolds-modulus`; bounds in
    :eq:`drv-stratifolds-modulus` (derivations).

    Examples:
        >>> smooth_modulus(torch.tensor([0.0, 0.3]), eps=0.2)[0]
        tensor([0.1000, 0.3000])
    """
    size = t.abs()
    if bool((size >= eps).all()):  # most of a descent: no row is inside the collar
        return size, torch.sign(t)
    s, ds = _step(2 * size / eps - 1)
    hyperbola = torch.sqrt(t * t + eps * eps / 4)
    short = size - hyperbola
    modulus = torch.where(size >= eps, size, hyperbola + s * short)
    slope = torch.lerp(t / hyperbola, torch.sign(t), s)
    return modulus, slope + ds * (2 / eps) * torch.sign(t) * short
