"""Training in realization space: neurons are inserted, slid and merged, with a certificate."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from geolib.core.validation import expect
from geolib.doors import checked
from geolib.inverse_stability.collinear import unit_rows
from geolib.inverse_stability.shallow_relu import ShallowReLU, finite_array

TOLERANCE = 1e-9  # of optimality, relative to the penalty
# Of the search for a direction beyond the plane, and the gain that is worth a move.
STARTS, SWEEPS, ROUNDS, COARSE = 4, 20, 30, 1e-4
BATCH, ASCENTS = 500_000, 4  # rows times boxes, and steps of the multipliers of each


@dataclass(frozen=True, eq=False)
class TrainedRealization:
    r"""A regularized network, and what is proven about it.

    Attributes:
        net: the network, balanced, one output, zero neurons at the end.
        objective: loss + penalty times path norm.
        lower: no network of any width has a smaller objective (weak duality; beyond two
            inputs from branch and bound, up to `boxes` of `train_realization`).
        path_norm: the sum of ‖a_i‖ |c_i|, largest entries.
        steepest: the largest rate at which sliding or growing a neuron lowers the
            objective, over the penalty; at most 1e-9 at a first-order local minimum.
            In more than two dimensions only moves of one coordinate are tried.
        curvature: smallest eigenvalue of the Hessian of the loss along the moves on
            which the objective is flat to first order; positive where the outputs of a
            local minimum are the only ones nearby that attain it.
        exact: whether `steepest` and `lower` come from all directions (two inputs).
    """

    net: ShallowReLU
    objective: float
    lower: float
    path_norm: float
    steepest: float
    curvature: float
    exact: bool

    @property
    def gap(self) -> float:
        """An upper bound of the distance of the objective to the convex optimum."""
        return self.objective - self.lower

    @property
    def local_minimum(self) -> bool:
        """Whether it is proven to be a local minimum in the weights, to 1e-9.

        All networks nearby are convex combinations of the vertices that `steepest`
        compares, so that the condition of first order is enough.
        """
        return self.exact and self.steepest <= TOLERANCE


@checked
def train_realization(
    x: Annotated[np.ndarray, "n d"],
    y: Annotated[np.ndarray, "n"],
    width: Annotated[int, "1 <= width <= 10**6"],
    *,
    loss: Annotated[str, ("mse", "cross_entropy")] = "mse",
    penalty: float = 1e-2,
    seed: int | None = 0,
    boxes: Annotated[int, "0 <= boxes <= 10**9"] = 2000,
) -> TrainedRealization:
    r"""Minimize a convex loss and the path norm over networks of at most `width` neurons.

    .. math:: \min_{A, c}\ \frac1n \sum_{i=1}^n \ell(f(x_i), y_i)
        + \beta \sum_{j=1}^m \|a_j\|_\infty |c_j|, \qquad f = R(A, c)

    with :math:`\ell = \tfrac12 (f - y)^2` or the cross entropy of two classes with
    the logit f. A neuron is a point of an edge of the arrangement that the data cut
    into the unit sphere of ‖·‖_inf. For fixed edges the problem is convex and solved
    exactly; then a neuron slides to the next edge, or a spare one grows in the
    direction in which the objective falls fastest, until neither helps. Two neurons
    on one edge are merged. That is a local minimum in the weights and, for the
    patch of functions with these directions, in realization space.

    Args:
        x: inputs, shape (n, d); append a column of ones for biases.
        y: targets (n,), for `cross_entropy` zeros and ones.
        width: largest number of neurons, at least 1.
        loss: `mse` or `cross_entropy`.
        penalty: beta, positive.
        seed: of the directions that the first neurons start from; None starts from
            no neuron, so that every one is inserted where the objective falls fastest.
        boxes: of directions that are bounded for `lower` beyond two inputs; more of
            them lower the gap.

    Raises:
        ValueError: wrong shapes or numbers, NaN in the data, an unknown loss.

    Cost: for two inputs O(n^2) a round for n points, and a least-squares problem of
    the active neurons; beyond, O(d n log n) for each start of the search, and O(d n)
    for each box, some 50,000 a second for n = 200.

    Source: :eq:`drv-inverse_stability-edges`, :eq:`drv-inverse_stability-dual` and
    :eq:`drv-inverse_stability-dual-bound` (derivations); fully corrective Frank and
    Wolfe.

    Examples:
        >>> t = np.linspace(-1, 1, 9)
        >>> x = np.column_stack([t, np.ones(9)])
        >>> fit = train_realization(x, abs(t), 8, penalty=1e-3)
        >>> fit.local_minimum, fit.gap < 1e-9
        (True, True)
    """
    x, y = finite_array("x", x, 2), finite_array("y", y, 1)
    if loss == "cross_entropy":
        expect(np.isin(y, (0, 1)).all(), "y", "zeros and ones", np.unique(y)[:5])
    problem = _Problem(x, y, loss, penalty)
    if x.shape[1] == 2:
        return _Edges(problem, width, seed).run()
    return _Cube(problem, width, seed).run(boxes)


@dataclass(frozen=True)
class _Problem:
    """The loss as a function of the outputs, and the convex problem on given neurons."""

    x: np.ndarray
    y: np.ndarray
    loss: str
    penalty: float

    def value(self, f: np.ndarray) -> float:
        if self.loss == "mse":
            return float(((f - self.y) ** 2).mean() / 2)
        return float((np.logaddexp(0, f) - self.y * f).mean())

    def slopes(self, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivatives by the outputs."""
        n = len(f)
        if self.loss == "mse":
            return (f - self.y) / n, np.full(n, 1 / n)
        p = np.exp(-np.logaddexp(0, -f))
        return (p - self.y) / n, p * (1 - p) / n

    def lower(self, g: np.ndarray, largest: float) -> float:
        """The dual value at g, shrunk until no neuron has more slope than the penalty."""
        nu = g * min(1.0, self.penalty / max(largest, 1e-300))
        n = len(g)
        if self.loss == "mse":
            return float(-(n * nu**2 / 2 + nu * self.y).sum())
        q = np.clip(n * nu + self.y, 1e-300, 1.0)
        r = np.clip(1 - (n * nu + self.y), 1e-300, 1.0)
        return float(-(q * np.log(q) + r * np.log(r)).mean())

    def solve(self, columns: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Minimize over w >= 0 with outputs `columns @ w`: active sets and Newton."""
        w, fine = w.copy(), TOLERANCE / 10 * self.penalty
        shut = np.zeros(len(w), dtype=bool)  # entered in vain since the last progress
        last, stalled = np.inf, False  # rounding may allow no more
        for _ in range(50 * len(w)):
            g, h = self.slopes(columns @ w)
            pull = -(columns.T @ g) - self.penalty
            on = w > 0
            level = np.abs(pull[on]).max(initial=0.0)
            if level <= fine or (stalled and level > last / 2):
                best = int(np.where(on | shut, -np.inf, pull).argmax())
                if on[best] or shut[best] or pull[best] <= fine:
                    return w
                on[best] = shut[best] = True
            active = columns[:, on]
            H = (active.T * h) @ active
            # Along dependent columns the penalty alone counts: a long step, cut below.
            H[np.diag_indices(len(H))] += 1e-13 * np.trace(H)
            moved = self._move(columns, w, on, np.linalg.solve(H, pull[on]))
            left = bool(((w > 0) & (moved == 0)).any())
            now, before = (self.objective(columns, v) for v in (moved, w))
            last, stalled = level, not left and now >= before * (1 - 1e-15)
            if not stalled:
                shut[:] = False
            w = moved
        return w

    def _move(
        self, columns: np.ndarray, w: np.ndarray, on: np.ndarray, step: np.ndarray
    ) -> np.ndarray:
        """As far along the step as the signs allow and the objective does not rise."""
        old, falls = w[on], step < 0
        falls &= old > 0
        reach = np.full(len(old), np.inf)
        reach[falls] = old[falls] / -step[falls]
        t, start = min(1.0, float(reach.min())), self.objective(columns, w)
        for _ in range(30):
            full = np.zeros_like(w)
            full[on] = np.where(reach <= t, 0.0, np.maximum(old + t * step, 0.0))
            if self.objective(columns, full) <= start * (1 + 1e-15):
                return full
            t /= 2
        return w

    def objective(self, columns: np.ndarray, w: np.ndarray) -> float:
        return self.value(columns @ w) + self.penalty * float(w.sum())


class _Search:
    """Neurons as rows of signed directions with positive weights."""

    rows: np.ndarray
    sign: np.ndarray
    w: np.ndarray

    def __init__(self, problem: _Problem, width: int, seed: int | None) -> None:
        self.problem, self.width = problem, width
        self.first, self.rng = seed is not None, np.random.default_rng(seed or 0)

    def features(self, rows: np.ndarray, sign: np.ndarray) -> np.ndarray:
        return np.maximum(self.problem.x @ rows.T, 0.0) * sign

    def finish(
        self, steepest: float, flat: np.ndarray, lower: float, exact: bool
    ) -> TrainedRealization:
        """Rows and weights as a network."""
        p, w = self.problem, self.w
        columns = self.features(self.rows, self.sign)
        H = (flat.T * p.slopes(columns @ w)[1]) @ flat
        net = ShallowReLU.zeros(self.width, p.x.shape[1])
        if len(w):
            net = ShallowReLU(self.rows, [self.sign * w]).balance().pad(self.width)
        least = float(np.linalg.eigvalsh(H)[0]) if len(H) else np.inf
        now, norm = p.objective(columns, w), float(w.sum())
        return TrainedRealization(net, now, lower, norm, steepest, least, exact)


class _Edges(_Search):
    """Two inputs: the sphere is a square, cut into edges by the data.

    Vertices are numbered around the square; edge k joins the vertices k and k + 1. A
    neuron is an edge, a sign, and weights of both ends.
    """

    def __init__(self, problem: _Problem, width: int, seed: int | None) -> None:
        super().__init__(problem, width, seed)
        normals = unit_rows(problem.x[problem.x.any(axis=1)])
        turned = np.column_stack([-normals[:, 1], normals[:, 0]])
        corners = [[s, t] for s in (-1.0, 1.0) for t in (-1.0, 1.0)]
        rows = np.concatenate([turned, -turned, corners])
        rows /= np.abs(rows).max(axis=1, keepdims=True)
        angle = np.arctan2(rows[:, 1], rows[:, 0])
        order = np.argsort(angle)
        order = order[np.diff(angle[order], prepend=-4.0) > 1e-12]
        self.vertices = rows[order]
        self.phi = self.features(self.vertices, np.ones(len(order)))
        self.edge = self.rng.permutation(len(order))[: width if self.first else 0]
        self.sign = self.rng.choice([-1.0, 1.0], len(self.edge))
        self.w = np.zeros((len(self.edge), 2))

    @property
    def ends(self) -> np.ndarray:
        return np.column_stack([self.edge, (self.edge + 1) % len(self.vertices)])

    def run(self) -> TrainedRealization:
        best = np.inf
        while True:
            self._solve()
            f = self._columns() @ self.w.ravel()
            g, _ = self.problem.slopes(f)
            rates = -(self.phi.T @ g) / self.problem.penalty  # signed, one a vertex
            now = self.problem.value(f) + self.problem.penalty * float(self.w.sum())
            if now >= best or not (self._slide(rates) or self._grow(rates)):
                return self._result(rates, g)
            best = now

    def _columns(self) -> np.ndarray:
        return (self.phi[:, self.ends] * self.sign[:, None]).reshape(len(self.phi), -1)

    def _solve(self) -> None:
        """The convex problem of these edges; neurons that vanish or meet are removed."""
        w = self.problem.solve(self._columns(), self.w.ravel())
        self.w = w.reshape(-1, 2)
        end, kept = self.ends, self.w > 0
        for j in range(len(self.edge)):  # two neurons at one vertex, or on one edge
            for k in range(j):
                if self.sign[j] == self.sign[k] and (self.w[k] > 0).any():
                    mine, theirs = set(end[j][kept[j]]), set(end[k])
                    if mine and mine <= theirs:
                        for i in np.flatnonzero(kept[j]):
                            self.w[k, end[k] == end[j, i]] += self.w[j, i]
                        self.w[j], kept[j] = 0.0, False
                        break
        live = self.w.any(axis=1)
        self.edge, self.sign, self.w = self.edge[live], self.sign[live], self.w[live]

    def _slide(self, rates: np.ndarray) -> bool:
        """Turn the neuron at a vertex to its other edge if the objective falls there."""
        corner, beyond = self._corners()
        gains = self.sign[corner] * rates[beyond] - 1
        if gains.max(initial=0.0) <= TOLERANCE:
            return False
        best = corner[gains.argmax()]
        forward = self.w[best, 0] == 0  # it sits at the far end of its edge
        self.edge[best] = (self.edge[best] + (1 if forward else -1)) % len(rates)
        self.w[best] = self.w[best][::-1].copy()
        return True

    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Neurons at a vertex, and the next vertices that are not on their edges."""
        corner = np.flatnonzero((self.w == 0).any(axis=1))
        step = np.where(self.w[corner, 0] == 0, 2, -1)
        return corner, (self.edge[corner] + step) % len(self.vertices)

    def _grow(self, rates: np.ndarray) -> bool:
        """A spare neuron enters at the steepest vertex."""
        best = int(np.abs(rates).argmax())
        if len(self.edge) >= self.width or abs(rates[best]) <= 1 + TOLERANCE:
            return False
        self.edge = np.append(self.edge, best)
        self.sign = np.append(self.sign, np.sign(rates[best]))
        self.w = np.vstack([self.w, [0.0, 0.0]])
        return True

    def _result(self, rates: np.ndarray, g: np.ndarray) -> TrainedRealization:
        size = self.w.sum(axis=1)
        rows = np.einsum("jk,jkd->jd", self.w, self.vertices[self.ends]) / size[:, None]
        at = self.sign[:, None] * rates[self.ends] - 1
        moves = [np.abs(at[self.w > 0]), at[self.w == 0]]
        corner, beyond = self._corners()
        moves.append(self.sign[corner] * rates[beyond] - 1)
        largest = float(np.abs(rates).max())
        if len(self.edge) < self.width:
            moves.append(np.array([largest - 1]))
        # Moves along which the objective is flat to first order: each vertex once.
        level = moves[2] > -TOLERANCE
        flat = np.unique(np.append(self.ends[at > -TOLERANCE], beyond[level]))
        steepest = float(np.concatenate(moves).max(initial=-np.inf))
        lower = self.problem.lower(g, largest * self.problem.penalty)
        self.rows, self.w = rows, size
        return self.finish(steepest, self.phi[:, flat], lower, True)


class _Cube(_Search):
    """Three inputs or more: directions in the cube, moved one coordinate at a time."""

    def run(self, boxes: int) -> TrainedRealization:
        p, d = self.problem, self.problem.x.shape[1]
        count = self.width if self.first else 0
        self.rows = _on_cube(self.rng.uniform(-1, 1, (count, d)))
        self.sign, self.w = self.rng.choice([-1.0, 1.0], count), np.zeros(count)
        self._solve()
        for _ in range(self.width + ROUNDS):
            g, _ = p.slopes(self.features(self.rows, self.sign) @ self.w)
            if not (self._grow(g) or self._slide(g) or self._grow(g) or self._grow(g)):
                break
        g, _ = p.slopes(self.features(self.rows, self.sign) @ self.w)
        aim = self._climb(self.rows, self.sign, g)
        rates = self.features(aim, self.sign).T @ -g / p.penalty
        moves = [float(np.abs(rates - 1).max(initial=0.0))]
        if len(self.rows) < self.width:
            moves.append(self._steepest(g)[2] / p.penalty - 1)
        most = _largest_slope(p.x, g, (1 + COARSE) * p.penalty, boxes)
        flat = self.features(self.rows, self.sign)
        return self.finish(max(moves), flat, p.lower(g, most), False)

    def _solve(self) -> None:
        self.w = self.problem.solve(self.features(self.rows, self.sign), self.w)
        live = self.w > 0
        self.rows, self.sign, self.w = self.rows[live], self.sign[live], self.w[live]

    def _grow(self, g: np.ndarray) -> bool:
        row, sign, rate = self._steepest(g)
        if len(self.rows) >= self.width or rate <= (1 + COARSE) * self.problem.penalty:
            return False
        self.rows, self.sign = np.vstack([self.rows, row]), np.append(self.sign, sign)
        self.w = np.append(self.w, 0.0)
        self._solve()
        return True

    def _steepest(self, g: np.ndarray) -> tuple[np.ndarray, float, float]:
        """The best direction found from a few random ones, its sign and its slope."""
        rows = np.tile(
            self.rng.uniform(-1, 1, (STARTS, len(self.problem.x[0]))), (2, 1)
        )
        sign = np.repeat([-1.0, 1.0], STARTS)
        rows = self._climb(rows, sign, g)
        rates = -(self.features(rows, sign).T @ g)
        best = int(rates.argmax())
        return rows[best], float(sign[best]), float(rates[best])

    def _climb(self, rows: np.ndarray, sign: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Coordinate ascent of -sign <g, rho(x u)> over the cube, exact on each line."""
        rows = rows.copy()
        for u, pull in zip(rows, -sign[:, None] * g, strict=True):
            z = self.problem.x @ u
            for _ in range(SWEEPS):
                before = float(pull @ np.maximum(z, 0.0))
                for k, column in enumerate(self.problem.x.T):
                    rest = z - u[k] * column
                    u[k] = _best_on_line(rest, column, pull)
                    z = rest + u[k] * column
                gained = float(pull @ np.maximum(z, 0.0)) - before
                if gained <= COARSE * self.problem.penalty:
                    break
        return _on_cube(rows)

    def _slide(self, g: np.ndarray) -> bool:
        """All neurons towards better directions, as far as the objective falls."""
        p = self.problem
        aim = self._climb(self.rows, self.sign, g)
        old = self.rows, self.sign, self.w
        start = p.objective(self.features(self.rows, self.sign), self.w)
        for t in 0.5 ** np.arange(8):
            self.rows, self.sign, self.w = old
            self.rows = _on_cube((1 - t) * self.rows + t * aim)
            self._solve()
            now = p.objective(self.features(self.rows, self.sign), self.w)
            if now < start - COARSE * start:
                return True
        self.rows, self.sign, self.w = old
        return False


def _on_cube(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-300)


def _best_on_line(z: np.ndarray, x: np.ndarray, pull: np.ndarray) -> float:
    """The v in [-1, 1] with the largest <pull, rho(z + v x)>, which bends at -z/x."""
    live = x != 0
    z, x, pull = z[live], x[live], pull[live]
    bend = -z / x
    inside = np.flatnonzero(np.abs(bend) < 1)
    inside = inside[np.argsort(bend[inside])]
    at = np.concatenate([[-1.0], bend[inside], [1.0]])
    on = (z - x > 0) | ((z - x == 0) & (x > 0))
    slope = (pull * x)[on].sum() + np.cumsum(np.append(0.0, (pull * np.abs(x))[inside]))
    height = np.append(0.0, np.cumsum(slope * np.diff(at)))
    return float(at[height.argmax()])


def _largest_slope(x: np.ndarray, g: np.ndarray, enough: float, boxes: int) -> float:
    r"""An upper bound of max |<g, rho(x u)>| over the cube, by branch and bound.

    Faces of the cube are cut into boxes, those with the largest bounds first, until all
    bounds are at most `enough` (which is then returned) or `boxes` were looked at.
    """
    d = x.shape[1]
    face = np.tile(np.vstack([np.eye(d), -np.eye(d)]), (2, 1))
    sign = np.repeat([1.0, -1.0], 2 * d)
    box = np.column_stack([face, 1 - np.abs(face), sign])  # middle, half widths, sign
    bound, cut = _relaxed(x, g, box)
    looked = len(box)
    while len(box) and looked < boxes:
        count = min(BATCH // len(x) + 1, len(box), (boxes - looked) // 2 + 1)
        top, rest = np.split(np.argpartition(-bound, count - 1), [count])
        row = np.arange(count)
        parts = np.tile(box[top], (2, 1, 1))
        parts[:, row, d + cut[top]] /= 2
        parts[0, row, cut[top]] -= parts[0, row, d + cut[top]]
        parts[1, row, cut[top]] += parts[1, row, d + cut[top]]
        parts = parts.reshape(2 * count, -1)
        below, along = _relaxed(x, g, parts)
        below = np.minimum(below, np.tile(bound[top], 2))
        live = below > enough
        box = np.concatenate([box[rest], parts[live]])
        bound = np.concatenate([bound[rest], below[live]])
        cut = np.concatenate([cut[rest], along[live]])
        looked += len(parts)
    return float(bound.max(initial=enough)) * (1 + 1e-11)  # for rounding


def _relaxed(
    x: np.ndarray, g: np.ndarray, box: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An upper bound of sign <g, rho(x u)> on each box, and the axis to cut it along.

    Where <x_i, u> changes its sign in the box, rho lies below its secant and above
    every line of slope alpha in [0, 1] through zero; a few steps improve the alphas.
    """
    d = x.shape[1]
    middle, half, pull = box[:, :d], box[:, d : 2 * d], box[:, 2 * d :] * g
    z, reach = middle @ x.T, half @ np.abs(x).T
    bends = np.abs(z) < reach
    slope = np.where(bends, (z + reach) / np.where(bends, 2 * reach, 1.0), z > 0)
    offset = np.where(bends & (pull > 0), pull * slope * (reach - z), 0.0).sum(axis=1)
    free = bends & (pull < 0)
    best, slope = np.full(len(box), np.inf), np.where(free, z > 0, slope)
    for k in range(ASCENTS):
        v = (pull * slope) @ x
        best = np.minimum(best, offset + (v * middle + np.abs(v) * half).sum(axis=1))
        beyond = (middle + np.sign(v) * half) @ x.T > 0
        slope = slope + np.where(free, beyond - slope, 0.0) / (k + 2)
    return best, (half * ((np.abs(pull) * bends) @ np.abs(x))).argmax(axis=1)
