"""A path between two weight vectors: the straight line plus a bend."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geolib.core.validation import expect, require_finite, require_matching

from .function_space import derivative


@dataclass(frozen=True)
class Basis:
    """Bends that vanish at both ends, `values` of shape (k, size) at the times (k,)."""

    size: int

    def values(self, t: Annotated[Tensor, "k"]) -> Tensor:
        raise NotImplementedError

    def slopes(self, t: Tensor) -> Tensor:
        """The derivatives of the bends at the times t, shape (k, size)."""
        return derivative(self.values, t, torch.ones_like(t))


@dataclass(frozen=True)
class SineBasis(Basis):
    r"""Bends :math:`\sin(k\pi t)/k`, :math:`k = 1, \dots, m`.

    The factor :math:`1/k` makes all bends cost the same energy, so gradient descent
    on the coefficients is not slowed down by fine detail.

    Examples:
        >>> SineBasis(2).values(torch.tensor([0.5])).round(decimals=3).abs().tolist()
        [[1.0, 0.0]]
    """

    size: int = 4

    def values(self, t: Annotated[Tensor, "k"]) -> Tensor:
        k = orders(self.size, t)
        return torch.sin(math.pi * t[:, None] * k) / k


@dataclass(frozen=True)
class BezierBasis(Basis):
    r"""Bernstein bends :math:`\binom{m+1}{k} t^k (1-t)^{m+1-k}` of the inner points.

    A coefficient is the shift of a control point from its place on the line.

    Examples:
        >>> BezierBasis(1).values(torch.tensor([0.5]))
        tensor([[0.5000]])
    """

    size: int = 1

    def values(self, t: Annotated[Tensor, "k"]) -> Tensor:
        n = self.size + 1
        cols = [math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(1, n)]
        return torch.stack(cols, 1)


@dataclass(frozen=True)
class LegendreBasis(Basis):
    r"""Bends :math:`\sqrt{2k+1}\int_0^t P_k(2s-1)\,ds`, :math:`k = 1, \dots, m`.

    Their slopes are orthonormal Legendre polynomials: as well scaled as the sines, and
    for smooth geodesics the error falls exponentially in m, where that of the sines
    falls like a power.

    Examples:
        >>> LegendreBasis(1).values(torch.tensor([0.5])).item() ** 2
        0.1875...
    """

    size: int = 8

    def values(self, t: Annotated[Tensor, "k"]) -> Tensor:
        P, roots = self._polynomials(t)
        return (P[:, 2:] - P[:, :-2]) / (2 * roots)

    def slopes(self, t: Tensor) -> Tensor:
        """The derivatives of the bends at the times t, shape (k, size)."""
        P, roots = self._polynomials(t)
        return roots * P[:, 1:-1]

    def _polynomials(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """P_0, ..., P_{m+1} at the times t, and the roots of 2k + 1 for the inner ones."""
        k = torch.arange(self.size + 2).to(t)
        # torch has no polynomials in half precision
        x = (2 * t[:, None] - 1).to(torch.promote_types(t.dtype, torch.float32))
        return torch.special.legendre_polynomial_p(x, k).to(t), (2 * k[1:-1] + 1).sqrt()


def orders(size: int, like: Tensor) -> Tensor:
    """The numbers 1, 2, ... of the bends."""
    return torch.arange(1, size + 1, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class WeightPath:
    r"""A curve in weight space with fixed ends.

    .. math:: W(t) = (1-t)\,a + t\,b + \sum_k \beta_k(t)\, c_k,
              \qquad \beta_k(0) = \beta_k(1) = 0

    Straight lines, sine curves, Bezier curves and polygons are all of this form, so
    one optimizer serves them all, and every one starts as the straight line.

    Args:
        a, b: the ends, shape (p,).
        basis: the bends.
        control: their coefficients, shape (m, p); None for the straight line.
        converged: False on a path whose search did not settle; drawn dashed.

    Raises:
        ValueError: ends of different sizes or types, non-finite weights or bends, or a
            control of the wrong shape.

    Examples:
        >>> line = WeightPath(torch.zeros(2), torch.ones(2))
        >>> line(torch.tensor([0.0, 0.5])).tolist()
        [[0.0, 0.0], [0.5, 0.5]]
    """

    a: Tensor
    b: Tensor
    basis: Basis | None = None
    control: Tensor | None = None
    converged: bool = True

    def __post_init__(self) -> None:
        check_ends(self.a, self.b)
        together = (self.basis is None) == (self.control is None)
        wanted = "a basis and its coefficients, which come together"
        expect(together, "control", wanted, type(self.control))
        if self.basis is not None and self.control is not None:
            shape, found = (self.basis.size, self.a.numel()), tuple(self.control.shape)
            wanted = f"shape {shape} with at least one bend"
            expect(found == shape and shape[0], "control", wanted, found)
            require_finite("control", self.control)

    def times(self, count: int) -> Tensor:
        """`count` equidistant times from 0 to 1, on the path's device."""
        return torch.linspace(0, 1, count, dtype=self.a.dtype, device=self.a.device)

    def __call__(self, t: Annotated[Tensor, "k"]) -> Tensor:
        """Weights at the times `t` (k,), shape (k, p)."""
        points = self.a + t[:, None] * (self.b - self.a)
        if self.basis is not None and self.control is not None:
            points = points + self.basis.values(t) @ self.control
        return points

    def velocity(self, t: Tensor) -> Tensor:
        """Derivative of the weights at the times `t` (k,), shape (k, p)."""
        rate = (self.b - self.a).expand(len(t), -1)
        if self.basis is not None and self.control is not None:
            rate = rate + self.basis.slopes(t) @ self.control
        return rate

    @property
    def linestyle(self) -> str:
        """Solid, or dashed for a path whose search did not converge."""
        return "-" if self.converged else "--"


def check_ends(a: Tensor, b: Tensor, *, distinct: bool = False) -> None:
    """Refuse ends that no path can join; see `WeightPath`."""
    flat = a.ndim == b.ndim == 1 and a.shape == b.shape
    wanted = f"a flat weight vector of {tuple(a.shape)}, one architecture with a"
    expect(flat, "b", wanted, tuple(b.shape))
    require_matching("b", b, a, "a")
    require_finite("a", a)
    require_finite("b", b)
    if distinct and torch.equal(a, b):
        raise ValueError("b: expected weights that differ from a; the ends are equal")
