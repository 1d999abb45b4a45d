"""Plain gradient descent on shallow networks, and leaving a degenerate minimum.

The third notebook uses them to show where descent in the weights is stuck and the function
can still move; `train_realization` in `realization_training` is the method that grew out
of the latter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geolib.inverse_stability import BiasedReLU, ShallowReLU

TOLERANCE = 1e-12  # directions closer than this are duplicates


def expect(holds: Any, name: str, wanted: str, got: Any) -> None:
    """Refuse an argument by name; a comparison with NaN does not hold."""
    if not holds:
        raise ValueError(f"{name}: expected {wanted}, got {got!r}")


def _array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    expect(array.shape == shape, name, f"shape {shape}", array.shape)
    expect(np.isfinite(array).all(), name, "finite numbers", "NaN or infinity")
    return array


@dataclass(frozen=True, eq=False)
class Descent:
    """The network at the end, and the loss before each step and after the last."""

    net: ShallowReLU
    losses: np.ndarray


def mean_square(net: ShallowReLU | BiasedReLU, x: np.ndarray, y: np.ndarray) -> float:
    r"""The mean over points and outputs of the squared residual.

    .. math:: L = \tfrac{1}{nD}\sum_{i} \|f(x_i) - y_i\|^2

    Args:
        net: the network.
        x: inputs, shape (n, d).
        y: targets, shape (n, D); nothing is broadcast.

    Raises:
        ValueError: wrong shapes, no points, NaN or infinite data.

    Source: definition.

    Examples:
        >>> mean_square(ShallowReLU([[1.0]], [[1.0]]), [[1.0], [3.0]], [[0.0], [3.0]])
        0.5
    """
    outputs = net(x)
    return float(((outputs - _array("y", y, outputs.shape)) ** 2).mean())


def mean_square_gradient(
    net: ShallowReLU, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    r"""The mean square and its gradients with respect to A and C.

    .. math:: \nabla_C L = \tfrac{2}{nD} \sum_i r_i\, \varrho(A x_i)^\top, \qquad
        \nabla_A L = \tfrac{2}{nD} \sum_i \bigl(C^\top r_i \odot [A x_i > 0]\bigr)
        x_i^\top, \qquad r_i = f(x_i) - y_i

    Args:
        net: the network.
        x: inputs, shape (n, d).
        y: targets, shape (n, D).

    Returns:
        the loss, and gradients of shapes (m, d) and (D, m).

    Raises:
        ValueError: wrong shapes, no points, NaN or infinite data.

    Cost: O(n m (d + D)).

    Source: the chain rule.

    Examples:
        >>> f = ShallowReLU([[1.0]], [[1.0]])
        >>> mean_square_gradient(f, [[2.0]], [[1.0]])
        (1.0, array([[4.]]), array([[4.]]))
    """
    x = _array("x", x, (len(x), net.d))
    y = _array("y", y, (len(x), net.D))
    return _square_gradient(net.A, net.C, x, y)


def _square_gradient(
    A: np.ndarray, C: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    z = A @ x.T
    active = np.maximum(z, 0.0)
    residual = C @ active - y.T
    slope = 2.0 / residual.size * residual
    inner = (C.T @ slope) * (z > 0)
    return float((residual**2).mean()), inner @ x, slope @ active.T


def gradient_descent(
    net: ShallowReLU,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    lr: float,
    ball: tuple[ShallowReLU, float] | None = None,
) -> Descent:
    r"""Full-batch descent of the mean square, projected on a max-norm ball if given.

    .. math:: \Gamma \leftarrow \Pi\bigl(\Gamma - \eta \nabla L(\Gamma)\bigr)

    Args:
        net: where to start.
        x: inputs, shape (n, d).
        y: targets, shape (n, D).
        steps: number of steps, at least 0.
        lr: length of the steps, positive.
        ball: centre and radius of {‖Γ - centre‖_inf <= radius}.

    Raises:
        ValueError: wrong shapes or numbers; a loss that is not finite (the step is too
            long).

    Cost: O(steps n m (d + D)).

    Source: :eq:`drv-inverse_stability-projection` (derivations).

    Examples:
        >>> x = np.array([[1.0], [-1.0]])
        >>> net = ShallowReLU([[1.0]], [[1.0]])
        >>> run = gradient_descent(net, x, 2 * np.maximum(x, 0), 100, 0.2)
        >>> bool(run.losses[-1] < 1e-12)
        True
    """
    x = _array("x", x, (len(x), net.d))
    y = _array("y", y, (len(x), net.D))
    expect(steps >= 0, "steps", "a number >= 0", steps)
    expect(0 < lr < np.inf, "lr", "a positive number", lr)
    reach = np.inf
    centre = net
    if ball is not None:
        centre, reach = ball
        same = net.A.shape == centre.A.shape and net.C.shape == centre.C.shape
        expect(same, "ball", "a centre of the same shape", centre.A.shape)
        expect(0 <= reach < np.inf, "ball", "a finite radius >= 0", reach)
    A, C, losses = net.A, net.C, []
    with np.errstate(over="ignore", invalid="ignore"):  # said below
        for _ in range(steps):
            loss, by_A, by_C = _square_gradient(A, C, x, y)
            losses.append(loss)
            A = np.clip(A - lr * by_A, centre.A - reach, centre.A + reach)
            C = np.clip(C - lr * by_C, centre.C - reach, centre.C + reach)
        losses.append(_square_gradient(A, C, x, y)[0])
    expect(np.isfinite(losses).all(), "lr", "shorter steps, the loss diverges", lr)
    return Descent(ShallowReLU(A, C), np.asarray(losses))


def escape_degenerate(
    net: ShallowReLU,
    x: np.ndarray,
    residual: np.ndarray,
    *,
    size: float = 1e-2,
    candidates: int = 512,
    seed: int = 0,
    tol: float = TOLERANCE,
) -> ShallowReLU:
    r"""Merge duplicates and let each freed slot grow where the loss falls fastest.

    .. math:: u_* = \operatorname*{arg\,max}_{u}\ \Bigl\|\sum_i \ell_i\,
        \varrho(\langle u, x_i\rangle)\Bigr\|, \qquad
        (a, c) = \varepsilon\,(u_*, -v / \|v\|_\infty), \quad
        v = \sum_i \ell_i\, \varrho(\langle u_*, x_i\rangle)

    where :math:`\ell_i` is the derivative of the loss by the i-th output (for squares,
    the residual). A zero neuron added this way is a descent direction of the
    realization that the weights before merging did not have.

    Args:
        net: the network; freed slots are its duplicate and its zero neurons.
        x: inputs, shape (n, d).
        residual: derivative of the loss by the outputs, shape (n, D).
        size: weight of the new neurons, epsilon, positive.
        candidates: random directions tried for each slot, at least 1.
        seed: of the NumPy generator.
        tol: directions closer than this are duplicates, in [0, 1).

    Returns:
        a network of the same width; the merged one where nothing was free or the
        residual vanishes.

    Raises:
        ValueError: wrong shapes or numbers, NaN or infinite data.

    Cost: O(candidates n (d + D)) for each free slot.

    Source: :eq:`drv-inverse_stability-escape` (derivations).

    Examples:
        >>> net = ShallowReLU([[1.0], [1.0]], [[1.0, 1.0]])
        >>> x = np.array([[1.0], [-1.0]])
        >>> escape_degenerate(net, x, net(x) - 2 * abs(x)).A.round(3).ravel().tolist()
        [1.414, -0.01]
    """
    expect(0 < size < np.inf, "size", "a positive number", size)
    expect(candidates >= 1, "candidates", "a positive number", candidates)
    x = _array("x", x, (len(x), net.d))
    residual = _array("residual", residual, (len(x), net.D))
    merged = net.merge_parallel(tol)
    A, C = merged.A.copy(), merged.C.copy()
    rng = np.random.default_rng(seed)
    for slot in np.flatnonzero(~A.any(axis=1)):
        u = rng.normal(size=(candidates, net.d))
        u /= np.abs(u).max(axis=1, keepdims=True)
        pull = np.maximum(u @ x.T, 0.0) @ residual
        best = int(np.linalg.norm(pull, axis=1).argmax())
        top = np.abs(pull[best]).max()
        if top > 0:
            A[slot], C[:, slot] = size * u[best], -size * pull[best] / top
    return ShallowReLU(A, C)
