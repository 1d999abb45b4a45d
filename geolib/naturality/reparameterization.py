r"""A change of coordinates, and what it does to the tensors an optimizer stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vjp

from geolib.core.validation import expect

Map = Callable[[Tensor], Tensor]


def directional(f: Map, x: Tensor, v: Tensor) -> Tensor:
    r"""Return the derivative :math:`Df(x)v`, by two reverse passes.

    Reverse mode twice, not forward mode: torch's forward mode loads its decomposition
    tables (seconds, and a deprecation warning) at first use.

    Examples:
        >>> directional(torch.sin, torch.zeros(2), torch.ones(2))
        tensor([1., 1.])
    """
    y, pull = vjp(f, x)  # type: ignore[misc]
    return vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1](v)[0]


@dataclass(frozen=True)
class Reparameterization:
    r"""A diffeomorphism of parameter space, given by a pair of callables.

    .. math:: \phi : \Theta \to \Psi, \qquad
        (\phi_* P)(\psi) = P(\phi^{-1}(\psi)).

    With :math:`D = D\phi(\theta)`, vectors are pushed by :math:`v \mapsto Dv`,
    covectors by :math:`m \mapsto D^{-T}m`, metrics by
    :math:`F \mapsto D^{-T}FD^{-1}` and cometrics by :math:`G \mapsto DGD^T`.

    Args:
        forward, inverse: torch functions from (p,) to (p,), differentiable.
        name: for tables.
        kind: the class of maps it belongs to: `affine` (its Jacobian is constant)
            or `nonlinear`.
        layers: for a map of layer form, the pairs (U, V) with
            :math:`W_l \mapsto U_l W_l V_l` (see `geolib.naturality.affine_layers`).

    Source: Goodbrake 2023, abstract (ii); :eq:`drv-naturality-push` (derivations).

    Examples:
        >>> phi = Reparameterization(torch.sinh, torch.asinh, "sinh")
        >>> x, v = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
        >>> phi.push_vector(x, v)
        tensor([1.0000, 1.5431])
        >>> phi.push_covector(x, v)
        tensor([1.0000, 0.6481])
    """

    forward: Map
    inverse: Map
    name: str = "map"
    kind: str = "nonlinear"
    layers: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    @classmethod
    def affine(
        cls,
        A: Annotated[Tensor, "p p"],
        b: Annotated[Tensor | None, "p"] = None,
        name: str = "affine",
    ) -> Reparameterization:
        r"""Return the map :math:`\psi = A\theta + b`.

        Args:
            A: (p, p), invertible.
            b: (p,), or None.
            name: for tables.

        Raises:
            ValueError: A is not square.

        Examples:
            >>> Reparameterization.affine(2 * torch.eye(2))(torch.ones(2))
            tensor([2., 2.])
        """
        inverse = torch.linalg.inv(A)
        shift = torch.zeros_like(A[0]) if b is None else b
        return cls(
            lambda x: A @ x + shift, lambda y: inverse @ (y - shift), name, "affine"
        )

    @classmethod
    def scaling(
        cls, scale: Tensor | float, name: str = "diagonal scaling"
    ) -> Reparameterization:
        r"""Return the map :math:`\psi_i = s_i \theta_i`.

        Args:
            scale: factors other than 0, (p,), or one for all coordinates.
            name: for tables.

        Raises:
            ValueError: a factor that is 0 or not finite.

        Examples:
            >>> Reparameterization.scaling(torch.tensor([1.0, 4.0])).inverse(torch.ones(2))
            tensor([1.0000, 0.2500])
        """
        s = torch.as_tensor(scale)
        good = bool((s != 0).all() & torch.isfinite(s).all())
        expect(good, "scale", "finite factors other than 0", scale)
        return cls(lambda x: scale * x, lambda y: y / scale, name, "affine")

    @classmethod
    def coupling(
        cls, like: Tensor, seed: int, strength: float = 0.3
    ) -> Reparameterization:
        r"""Return two affine coupling layers, with an exact inverse.

        .. math:: (a, b) \mapsto (a, \; b \odot e^{\epsilon\tanh(Sa)}
            + \epsilon\tanh(Ta)), \quad\text{then with } a, b \text{ exchanged}.

        Args:
            like: (p,), for size, dtype and device.
            seed: of the permutation and of S, T.
            strength: :math:`\epsilon`.

        Source: Dinh, Sohl-Dickstein, Bengio 2017 (real NVP).
        """
        forward, inverse = _coupling(like, seed, strength)
        return cls(forward, inverse, "coupling")

    def then(self, other: Reparameterization) -> Reparameterization:
        r"""Return the composition :math:`\mathrm{other} \circ \phi`."""
        kind = "affine" if self.kind == other.kind == "affine" else "nonlinear"
        return Reparameterization(
            lambda x: other.forward(self.forward(x)),
            lambda y: self.inverse(other.inverse(y)),
            f"{other.name} o {self.name}",
            kind,
        )

    def jacobian(self, x: Tensor) -> Tensor:
        r"""Return the matrix :math:`D\phi(x)`, (p, p); cost p reverse passes."""
        return jacrev(self.forward)(x)

    def push_vector(
        self, x: Annotated[Tensor, "real p"], v: Annotated[Tensor, "p"]
    ) -> Tensor:
        r"""Push a tangent vector at x: :math:`D\phi(x) v`."""
        return directional(self.forward, x, v)

    def push_covector(
        self, x: Annotated[Tensor, "real p"], m: Annotated[Tensor, "p"]
    ) -> Tensor:
        r"""Push a covector at x: :math:`D\phi(x)^{-T} m`, by one reverse pass."""
        return vjp(self.inverse, self.forward(x))[1](m)[0]

    def push_metric(self, x: Tensor, F: Tensor) -> Tensor:
        r"""Push a (0,2)-tensor at x: :math:`D^{-T} F D^{-1}`."""
        inverse = jacrev(self.inverse)(self.forward(x))
        return inverse.T @ F @ inverse

    def push_squares(self, x: Tensor, a: Tensor) -> Tensor:
        """Push squares of gradients, (p,), as a permutation or scaling of axes does."""
        return jacrev(self.inverse)(self.forward(x)).square().T @ a

    def push(self, tag: str, x: Tensor, value: Tensor) -> Tensor:
        """Push a state of the space `tag` (see `TAGS`) that sits at x.

        Raises:
            ValueError: a tag that names no tensor space.
        """
        if tag == "point":
            return self.forward(value)
        if tag in TRIVIAL:
            return value
        expect(tag in TAGS, "tag", f"one of {sorted(TAGS)}", tag)
        name = "squares" if tag == "entrywise" else tag
        return getattr(self, f"push_{name}")(x, value)

    def check(self, x: Tensor, tolerance: float = 1e-8) -> None:
        """Refuse a pair of callables that are not inverse to one another at x.

        Raises:
            ValueError: the round trip moves x by more than `tolerance`, changes its
                shape, or is not finite.
        """
        y = self.forward(x)
        wanted = f"{self.name} to give the same shape {tuple(x.shape)}"
        expect(y.shape == x.shape, "reparameterization", wanted, tuple(y.shape))
        gap = float((self.inverse(y) - x).abs().max())
        scale = 1.0 + float(x.abs().max())
        if not gap <= tolerance * scale:  # also catches NaN
            raise ValueError(
                f"reparameterization: inverse(forward(x)) of {self.name} misses x by "
                f"{gap:.1e}; expected at most {tolerance * scale:.1e}"
            )


TRIVIAL = ("scalar", "function")  # spaces on which no map acts
TAGS = ("point", "vector", "covector", "metric", "entrywise", *TRIVIAL)


def _coupling(like: Tensor, seed: int, strength: float) -> tuple[Map, Map]:
    """The two directions of `Reparameterization.coupling`."""
    rng = np.random.default_rng(seed)
    p = like.numel()
    half = p // 2
    order = torch.as_tensor(rng.permutation(p)).to(like.device)
    place = torch.argsort(order)

    def draw(m: int, n: int) -> Tensor:
        return torch.as_tensor(rng.standard_normal((m, n)) / np.sqrt(max(n, 1))).to(
            like
        )

    S1, T1 = draw(p - half, half), draw(p - half, half)
    S2, T2 = draw(half, p - half), draw(half, p - half)
    e = strength

    def forward(x: Tensor) -> Tensor:
        a, b = x.index_select(0, order).split([half, p - half])
        b = b * (e * torch.tanh(S1 @ a)).exp() + e * torch.tanh(T1 @ a)
        a = a * (e * torch.tanh(S2 @ b)).exp() + e * torch.tanh(T2 @ b)
        return torch.cat([a, b]).index_select(0, place)

    def inverse(y: Tensor) -> Tensor:
        a, b = y.index_select(0, order).split([half, p - half])
        a = (a - e * torch.tanh(T2 @ b)) * (-e * torch.tanh(S2 @ b)).exp()
        b = (b - e * torch.tanh(T1 @ a)) * (-e * torch.tanh(S1 @ a)).exp()
        return torch.cat([a, b]).index_select(0, place)

    return forward, inverse
