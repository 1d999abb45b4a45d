"""Shallow ReLU networks as pairs of weight matrices, and the checks of arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from geolib.core.validation import expect
from geolib.inverse_stability.collinear import TOLERANCE, parallel_classes, unit_rows


def finite_array(name: str, value: Any, ndim: int) -> np.ndarray:
    """A finite, read-only float64 copy of `value`; errors name the argument."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    expect(array.ndim == ndim, name, f"an array with {ndim} axes", array.shape)
    expect(0 not in array.shape, name, "no empty axis", array.shape)
    array = array.astype(np.float64)
    expect(np.isfinite(array).all(), name, "finite numbers", "NaN or infinity")
    array.setflags(write=False)
    return array


def same_dtype(**named: Any) -> None:
    """Refuse arrays of different precision; plain lists carry none and pass."""
    kinds = {
        n: str(v.dtype).rsplit(".")[-1] for n, v in named.items() if hasattr(v, "dtype")
    }
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{n} {k}" for n, k in kinds.items())
        raise TypeError(f"mixed dtypes: expected one dtype for all weights, got {got}")


def as_points(x: Any, d: int) -> np.ndarray:
    """Finite inputs of shape (n, d), n >= 1."""
    x = finite_array("x", x, 2)
    expect(x.shape[1] == d, "x", f"shape (n, {d})", x.shape)
    return x


@dataclass(frozen=True, eq=False, init=False)
class ShallowReLU:
    r"""The bias-free two-layer network with inner rows a_i and outer columns c_i.

    .. math:: R(A, C)(x) = \sum_{i=1}^{m} c_i\, \max(\langle a_i, x\rangle, 0)

    Args:
        A: inner weights, shape (m, d).
        C: outer weights, shape (D, m). Both are widened to float64.

    Raises:
        TypeError: weights that are not real numbers, or A and C of different dtype.
        ValueError: wrong shapes, a zero-width network, NaN or infinite weights.

    Source: Elbraechter, Berner and Grohs 2019, section 1 (the map R).

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 1.0]])
        >>> f([[-3.0, 5.0]])  # |x_1|
        array([[3.]])
    """

    A: np.ndarray
    C: np.ndarray

    def __init__(self, A: ArrayLike, C: ArrayLike) -> None:
        same_dtype(A=A, C=C)
        A, C = finite_array("A", A, 2), finite_array("C", C, 2)
        shapes = A.shape, C.shape
        expect(len(A) == C.shape[1], "A, C", "A (m, d) and C (D, m)", shapes)
        object.__setattr__(self, "A", A)
        object.__setattr__(self, "C", C)

    @property
    def m(self) -> int:
        """Number of neurons, spare (zero) ones included."""
        return self.A.shape[0]

    @property
    def d(self) -> int:
        """Input dimension."""
        return self.A.shape[1]

    @property
    def D(self) -> int:
        """Output dimension."""
        return self.C.shape[0]

    @property
    def live(self) -> np.ndarray:
        """Indices of the neurons whose inner and outer weights are both non-zero."""
        return np.flatnonzero(self.A.any(axis=1) & self.C.any(axis=0))

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Outputs of shape (n, D) at inputs of shape (n, d)."""
        return np.maximum(as_points(x, self.d) @ self.A.T, 0.0) @ self.C.T

    def jacobian(self, x: ArrayLike) -> np.ndarray:
        """Derivatives of shape (n, D, d); at a kink the neuron counts as off."""
        on = (as_points(x, self.d) @ self.A.T > 0).astype(float)
        return np.einsum("nm,om,md->nod", on, self.C, self.A)

    def __sub__(self, other: ShallowReLU) -> ShallowReLU:
        """A network that realizes the difference of the two functions."""
        same_architecture(self, other)
        return ShallowReLU(np.vstack([self.A, other.A]), np.hstack([self.C, -other.C]))

    def pad(self, m: int) -> ShallowReLU:
        """The same function with zero neurons appended up to width `m`."""
        expect(m >= self.m, "m", f"at least the width {self.m}", m)
        A, C = np.zeros((m, self.d)), np.zeros((self.D, m))
        A[: self.m], C[:, : self.m] = self.A, self.C
        return ShallowReLU(A, C)

    def balance(self) -> ShallowReLU:
        r"""Rescale every neuron so that both its sides have the same largest entry.

        .. math:: (a_i, c_i) \mapsto (s a_i, c_i / s), \qquad
            s = \sqrt{\|c_i\|_\infty / \|a_i\|_\infty}

        A neuron with a zero side contributes nothing and becomes the zero neuron.

        Examples:
            >>> f = ShallowReLU([[8.0, 0.0]], [[2.0]]).balance()
            >>> f.A, f.C
            (array([[4., 0.]]), array([[4.]]))
        """
        a, c = np.abs(self.A).max(axis=1), np.abs(self.C).max(axis=0)
        live = (a > 0) & (c > 0)
        a, c = np.where(live, a, 1.0), np.where(live, c, 1.0)
        t = np.where(live, np.sqrt(a) * np.sqrt(c), 0.0)
        return ShallowReLU(self.A / a[:, None] * t[:, None], self.C / c * t)

    def merge_parallel(self, tol: float = TOLERANCE) -> ShallowReLU:
        r"""Replace neurons with positively parallel inner weights by one, then balance.

        .. math:: c_1\rho(\langle a, x\rangle) + c_2\rho(\langle \lambda a, x\rangle)
            = (c_1 + \lambda c_2)\,\rho(\langle a, x\rangle), \qquad \lambda > 0

        The width stays the same: freed slots hold zero neurons, at the end. `tol` is
        the largest entrywise difference of two unit directions that count as equal.

        Examples:
            >>> f = ShallowReLU([[1.0, 0.0], [3.0, 0.0]], [[1.0, 1.0]])
            >>> f.merge_parallel().A
            array([[2., 0.],
                   [0., 0.]])
        """
        if not len(live := self.live):
            return ShallowReLU.zeros(self.m, self.d, self.D)
        labels, _ = parallel_classes(unit_rows(self.A[live]), tol)
        first = live[np.unique(labels, return_index=True)[1]]
        top = np.abs(self.A).max(axis=1)
        C = np.zeros((self.D, len(first)))
        np.add.at(C.T, labels, (self.C[:, live] * top[live]).T)
        merged = ShallowReLU(self.A[first] / top[first, None], C).balance()
        keep = np.argsort(~merged.A.any(axis=1), kind="stable")  # cancelled ones last
        return ShallowReLU(merged.A[keep], merged.C[:, keep]).pad(self.m)

    @classmethod
    def zeros(cls, m: int, d: int, D: int = 1) -> ShallowReLU:
        """The network of `m` zero neurons."""
        return cls(np.zeros((m, d)), np.zeros((D, m)))


@dataclass(frozen=True, eq=False, init=False)
class BiasedReLU:
    r"""The two-layer network with hidden biases.

    .. math:: f(x) = \sum_{i=1}^{m} c_i\, \max(\langle w_i, x\rangle + b_i, 0)

    Args:
        W: inner weights, shape (m, d).
        b: hidden biases, shape (m,).
        C: outer weights, shape (D, m).

    Raises:
        TypeError: as `ShallowReLU`.
        ValueError: as `ShallowReLU`.

    Source: Elbraechter, Berner and Grohs 2019, on learning.

    Examples:
        >>> hat = BiasedReLU([[1.0], [1.0]], [0.0, -1.0], [[1.0, -1.0]])
        >>> hat([[-1.0], [0.5], [7.0]]).ravel()
        array([0. , 0.5, 1. ])
    """

    W: np.ndarray
    b: np.ndarray
    C: np.ndarray

    def __init__(self, W: ArrayLike, b: ArrayLike, C: ArrayLike) -> None:
        same_dtype(W=W, b=b, C=C)
        W, C = finite_array("W", W, 2), finite_array("C", C, 2)
        b = finite_array("b", b, 1)
        fits, shapes = len(W) == len(b) == C.shape[1], (W.shape, b.shape, C.shape)
        expect(fits, "W, b, C", "(m, d), (m,) and (D, m)", shapes)
        for name, value in {"W": W, "b": b, "C": C}.items():
            object.__setattr__(self, name, value)

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Outputs of shape (n, D) at inputs of shape (n, d)."""
        x = as_points(x, self.W.shape[1])
        return np.maximum(x @ self.W.T + self.b, 0.0) @ self.C.T

    def homogeneous(self) -> ShallowReLU:
        """The bias-free network on (x, 1) with the same values."""
        return ShallowReLU(np.column_stack([self.W, self.b]), self.C)


def same_architecture(f: ShallowReLU, g: ShallowReLU) -> None:
    """Refuse two networks whose input or output dimensions differ."""
    sizes = (f.d, f.D), (g.d, g.D)
    wanted = "equal input and output dimensions (d, D)"
    expect(sizes[0] == sizes[1], "f, g", wanted, sizes)
