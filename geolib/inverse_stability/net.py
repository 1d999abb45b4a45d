"""Shallow ReLU networks as pairs of weight matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn


def as_weights(name: str, value: Any, ndim: int) -> np.ndarray:
    """A finite, read-only float64 copy of `value`; errors name the argument."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(
            f"{name}: expected an array with {ndim} axes, got shape {array.shape}"
        )
    if 0 in array.shape:
        raise ValueError(
            f"{name}: zero-width network or layer, got shape {array.shape}"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
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
    """Inputs of shape (n, d); a clear error where the width is wrong."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"x: expected shape (n, {d}), got {x.shape}")
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

    def __init__(self, A: Any, C: Any) -> None:
        same_dtype(A=A, C=C)
        A, C = as_weights("A", A, 2), as_weights("C", C, 2)
        if A.shape[0] != C.shape[1]:
            raise ValueError(
                f"A, C: expected A (m, d) and C (D, m), got {A.shape} and {C.shape}"
            )
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
    def size(self) -> float:
        """The largest absolute weight."""
        return float(max(np.abs(self.A).max(), np.abs(self.C).max()))

    def __call__(self, x: Any) -> np.ndarray:
        """Outputs of shape (n, D) at inputs of shape (n, d)."""
        return np.maximum(as_points(x, self.d) @ self.A.T, 0.0) @ self.C.T

    def jacobian(self, x: Any) -> np.ndarray:
        """Derivatives of shape (n, D, d); at a kink the neuron counts as off."""
        on = (as_points(x, self.d) @ self.A.T > 0).astype(float)
        return np.einsum("nm,om,md->nod", on, self.C, self.A)

    def __sub__(self, other: ShallowReLU) -> ShallowReLU:
        """A network that realizes the difference of the two functions."""
        same_architecture(self, other)
        return ShallowReLU(np.vstack([self.A, other.A]), np.hstack([self.C, -other.C]))

    def pad(self, m: int) -> ShallowReLU:
        """The same function with zero neurons appended up to width `m`."""
        if m < self.m:
            raise ValueError(f"m: expected at least the width {self.m}, got {m}")
        extra = m - self.m
        return ShallowReLU(
            np.vstack([self.A, np.zeros((extra, self.d))]),
            np.hstack([self.C, np.zeros((self.D, extra))]),
        )

    @classmethod
    def zeros(cls, m: int, d: int, D: int = 1) -> ShallowReLU:
        """The network of `m` zero neurons."""
        return cls(np.zeros((m, d)), np.zeros((D, m)))

    @classmethod
    def from_module(cls, module: nn.Module) -> ShallowReLU:
        """Read `nn.Sequential(Linear, ReLU, Linear)` without biases."""
        layers = list(module.children()) if isinstance(module, nn.Sequential) else []
        kinds = [type(layer) for layer in layers]
        if kinds != [nn.Linear, nn.ReLU, nn.Linear] or any(
            layers[i].bias is not None for i in (0, 2)
        ):
            raise ValueError(
                "module: expected nn.Sequential(Linear, ReLU, Linear) with bias=False "
                "(for biases see BiasedReLU), got "
                f"{[k.__name__ for k in kinds] or type(module).__name__}"
            )
        return cls(layers[0].weight, layers[2].weight)


@dataclass(frozen=True, eq=False, init=False)
class BiasedReLU:
    r"""The two-layer network with hidden biases.

    .. math:: f(x) = \sum_{i=1}^{m} c_i\, \max(\langle w_i, x\rangle + b_i, 0)

    Args:
        W: inner weights, shape (m, d).
        b: hidden biases, shape (m,).
        C: outer weights, shape (D, m).

    Raises:
        TypeError, ValueError: as `ShallowReLU`.

    Source: Elbraechter, Berner and Grohs 2019, section on learning (recalled).

    Examples:
        >>> hat = BiasedReLU([[1.0], [1.0]], [0.0, -1.0], [[1.0, -1.0]])
        >>> hat([[-1.0], [0.5], [7.0]]).ravel()
        array([0. , 0.5, 1. ])
    """

    W: np.ndarray
    b: np.ndarray
    C: np.ndarray

    def __init__(self, W: Any, b: Any, C: Any) -> None:
        same_dtype(W=W, b=b, C=C)
        W, C = as_weights("W", W, 2), as_weights("C", C, 2)
        b = as_weights("b", b, 1)
        if not W.shape[0] == b.shape[0] == C.shape[1]:
            raise ValueError(
                "W, b, C: expected (m, d), (m,) and (D, m), got "
                f"{W.shape}, {b.shape} and {C.shape}"
            )
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "C", C)

    def __call__(self, x: Any) -> np.ndarray:
        """Outputs of shape (n, D) at inputs of shape (n, d)."""
        x = as_points(x, self.W.shape[1])
        return np.maximum(x @ self.W.T + self.b, 0.0) @ self.C.T

    def homogeneous(self) -> ShallowReLU:
        """The bias-free network on (x, 1) with the same values."""
        return ShallowReLU(np.column_stack([self.W, self.b]), self.C)


def same_architecture(f: ShallowReLU, g: ShallowReLU) -> None:
    """Refuse two networks whose input or output dimensions differ."""
    if (f.d, f.D) != (g.d, g.D):
        raise ValueError(
            "f, g: expected equal input and output dimensions, got "
            f"(d, D) = {(f.d, f.D)} and {(g.d, g.D)}"
        )
