"""Gradient descent on a shallow network's mean square error, free or in a ball."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.net import ShallowReLU, as_points


@dataclass(frozen=True, eq=False)
class Descent:
    """A run of gradient descent.

    Attributes:
        net: the last network.
        losses: loss before each step and after the last, shape (steps + 1,).
    """

    net: ShallowReLU
    losses: np.ndarray


def mean_square(net: ShallowReLU, x: np.ndarray, y: np.ndarray) -> float:
    """Mean over points and outputs of the squared residual."""
    return float(((net(x) - y) ** 2).mean())


def mean_square_gradient(
    net: ShallowReLU, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    r"""The loss and its gradients with respect to A and C.

    .. math:: L = \tfrac{1}{nD}\sum_{i} \|R(A, C)(x_i) - y_i\|^2

    Args:
        net: the network.
        x: inputs, shape (n, d).
        y: targets, shape (n, D).
    """
    x, y = _checked(net, x, y)
    return _gradient(net.A, net.C, x, y)


def _checked(
    net: ShallowReLU, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x = as_points(x, net.d)
    y = np.asarray(y, dtype=np.float64)
    if y.shape != (len(x), net.D):
        raise ValueError(f"y: expected shape {(len(x), net.D)}, got {y.shape}")
    return x, y


def _gradient(
    A: np.ndarray, C: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    z = x @ A.T
    active = np.maximum(z, 0.0)
    residual = active @ C.T - y
    slope = 2.0 / residual.size * residual
    inner = (slope @ C) * (z > 0)
    return float((residual**2).mean()), inner.T @ x, slope.T @ active


def descend(
    net: ShallowReLU,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    lr: float,
    ball: tuple[ShallowReLU, float] | None = None,
) -> Descent:
    r"""Full-batch gradient descent, projected on a max-norm ball where one is given.

    .. math:: \Gamma \leftarrow \Pi\bigl(\Gamma - \eta \nabla L(\Gamma)\bigr)

    Args:
        net: where to start.
        x, y: data, shapes (n, d) and (n, D).
        steps, lr: number and length of steps.
        ball: centre and radius of {‖Γ - centre‖_inf <= radius}.

    Raises:
        ValueError: wrong shapes; a loss that is not finite (the step is too long).

    Cost: O(steps n m (d + D)).

    Examples:
        >>> x = np.array([[1.0], [-1.0]])
        >>> net = ShallowReLU([[1.0]], [[1.0]])
        >>> run = descend(net, x, 2 * np.maximum(x, 0), 100, 0.2)
        >>> bool(run.losses[-1] < 1e-12)
        True
    """
    x, y = _checked(net, x, y)
    losses, A, C = [], net.A, net.C
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            loss, gA, gC = _gradient(A, C, x, y)
            A, C = A - lr * gA, C - lr * gC
            if not (np.isfinite(A).all() and np.isfinite(C).all()):
                raise ValueError(f"lr: the loss diverges with step length {lr}")
            losses.append(loss)
            if ball is not None:
                centre, radius = ball
                A = np.clip(A, centre.A - radius, centre.A + radius)
                C = np.clip(C, centre.C - radius, centre.C + radius)
    last = ShallowReLU(A, C)
    losses.append(mean_square(last, x, y))
    return Descent(last, np.array(losses))
