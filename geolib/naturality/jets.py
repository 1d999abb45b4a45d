r"""A test without integration: does the generator transform as a natural one must?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.naturality.directions import DIRECTIONS, Direction
from geolib.naturality.point import Point
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization, directional

State = dict[str, Tensor]


@dataclass(frozen=True)
class Field:
    r"""The generator of an optimizer: a vector field on its state space.

    .. math:: X(s) = \frac{d}{dh} U_h(s)\Big|_{h=0} .

    Attributes:
        rate: from the geometry at x and the state's other parts to the rates of x
            and of each part.
        tags: the space of each part besides x: `vector`, `covector` or `scalar`.
    """

    name: str
    rate: Callable[[Point, State], State]
    tags: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, problem: Problem, state: State) -> State:
        rest = {k: v for k, v in state.items() if k != "x"}
        return self.rate(problem.point(state["x"]), rest)


def first_order(name: str, direction: Direction) -> Field:
    """A rule without memory as a field on parameter space."""
    return Field(name, lambda q, s: {"x": direction(q)})


def _natural_momentum(connection: bool) -> Callable[[Point, State], State]:
    def rate(q: Point, s: State) -> State:
        v = s["v"]
        force = q.g + q.christoffel(v, v) if connection else q.g
        return {"x": v, "v": -v - q.solve(force)}

    return rate


def _heavy_ball(q: Point, s: State) -> State:
    return {"x": s["v"], "v": -s["v"] - q.g}


def _covector_momentum(q: Point, s: State) -> State:
    m = s["m"]
    v = q.solve(m)
    return {"x": v, "m": q.transport(torch.zeros_like(m), v, v) - q.g - m}


def _function_momentum(q: Point, s: State) -> State:
    u = s["u"].view_as(q.z)
    return {
        "x": q.solve(q.vjp(q.weigh(u))),
        "u": (-u - q.unweigh(q.dl)).reshape(-1),
    }


def _adagrad(q: Point, s: State) -> State:
    return {"x": -q.g / s["a"].sqrt(), "a": q.g * q.g}


FIELDS: dict[str, Field] = {
    **{name: first_order(name, d) for name, d in DIRECTIONS.items()},
    "heavy-ball": Field("heavy-ball", _heavy_ball, {"v": "vector"}),
    "natural-momentum": Field(
        "natural-momentum", _natural_momentum(True), {"v": "vector"}
    ),
    "euclidean-momentum": Field(
        "euclidean-momentum", _natural_momentum(False), {"v": "vector"}
    ),
    "covector-momentum": Field(
        "covector-momentum", _covector_momentum, {"m": "covector"}
    ),
    "function-momentum": Field(
        "function-momentum", _function_momentum, {"u": "scalar"}
    ),
    "adagrad": Field("adagrad", _adagrad, {"a": "scalar"}),
}


def as_field(rule: str | Field | Direction) -> Field:
    """A field by name, or a function from a `Point` to a velocity.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(rule, Field):
        return rule
    if isinstance(rule, str):
        if rule not in FIELDS:
            raise ValueError(f"field: expected one of {sorted(FIELDS)}, got {rule!r}")
        return FIELDS[rule]
    return first_order(getattr(rule, "__name__", "rule"), rule)


def draw_state(X: Field, problem: Problem, x: Tensor, rng: Any) -> State:
    """A state over x with random parts: velocities, momenta F v, outputs, squares."""
    state = {"x": x}
    for name, tag in X.tags.items():
        v = torch.as_tensor(rng.standard_normal(len(x))).to(x)
        if tag == "covector":
            v = problem.point(x).F @ v
        if tag == "scalar":
            size = len(x) if name == "a" else problem.outputs(x).numel()
            v = torch.as_tensor(rng.uniform(0.5, 1.5, size)).to(x)
        state[name] = v
    return state


def push_state(X: Field, phi: Reparameterization, state: State) -> State:
    r"""The map :math:`S(\phi)` of states."""
    x = state["x"]
    out = {"x": phi.forward(x)}
    for name, tag in X.tags.items():
        out[name] = phi.push(tag, x, state[name])
    return out


def commutator(
    X: Field,
    problem: Problem,
    state: State,
    phi: Callable[[float], Reparameterization],
    home: State | None = None,
    step: float = 1e-4,
) -> Tensor:
    r"""The rate in eps of :math:`X_{\phi_*P}\circ S\phi - d(S\phi)\, X_P` at eps = 0.

    Args:
        phi: eps to a map with phi(0) the identity; eps = +-`step` are used.
    """
    home = X(problem, state) if home is None else home
    sides = []
    for eps in (step, -step):
        f = phi(eps)
        there = X(problem.push(f), push_state(X, f, state))

        def flow(t: Tensor, f: Reparameterization = f) -> Tensor:
            moved = {k: v + t * home[k] for k, v in state.items()}
            return torch.cat(list(push_state(X, f, moved).values()))

        zero, one = state["x"].new_zeros(()), state["x"].new_ones(())
        pushed = directional(flow, zero, one)
        sides.append(torch.cat([there[k] for k in state]) - pushed)
    return (sides[0] - sides[1]) / (2 * step)


def jet(x: Tensor, B: Tensor, Q: Tensor | None = None) -> Callable[[float], Any]:
    r"""The maps :math:`x + u \mapsto x + u + \epsilon(Bu + Q(u, u))`, eps small.

    The inverse is exact to first order in eps, which is all a derivative at 0 needs.
    """

    def bend(u: Tensor) -> Tensor:
        out = B @ u
        return out if Q is None else out + torch.einsum("kij,i,j->k", Q, u, u)

    def at(eps: float) -> Reparameterization:
        return Reparameterization(
            lambda y: y + eps * bend(y - x), lambda y: y - eps * bend(y - x), "jet"
        )

    return at


def jet_defect(
    rule: str | Field | Direction,
    problem: Problem,
    order: int = 1,
    *,
    points: Iterable[Tensor] | None = None,
    jets: int = 10,
    seed: int = 0,
) -> float:
    r"""The largest relative failure of the transformation law on random jets.

    .. math:: \max \frac{|\delta|}{|J|\,|X|}, \qquad
        \delta = \partial_\epsilon\bigl[X_{\phi_*P}(S\phi\, s)
        - d(S\phi)_s X_P(s)\bigr]_{\epsilon=0},
        \quad \phi = \mathrm{id} + \epsilon(Bu + Q(u,u)) .

    States here use first derivatives of the map and fields at most second derivatives
    of the problem, so 1-jets and 2-jets decide naturality.

    Args:
        rule: a name in `FIELDS`, a `Field`, or a function from a `Point` to a
            velocity.
        problem: where to test.
        order: 1 tests linear maps (Q = 0), 2 purely quadratic ones (B = 0).
        points: parameter vectors; six around `problem.theta0` when None.
        jets: random jets per point.

    Returns:
        About 1e-6 or less (the central difference) for a natural rule.

    Raises:
        ValueError: an order other than 1 or 2, an unknown rule.

    Examples:
        >>> from geolib.naturality import regression_problem
        >>> P = regression_problem(12)
        >>> jet_defect("natural", P, jets=2) < 1e-5 < jet_defect("gradient", P, jets=2)
        True
    """
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 or 2, got {order}")
    X, rng = as_field(rule), np.random.default_rng(seed)
    chosen = sample_points(problem, seed=seed) if points is None else list(points)
    worst = 0.0
    for x in chosen:
        state = draw_state(X, problem, x, rng)
        home = X(problem, state)
        size = float(torch.cat(list(home.values())).norm())
        p = len(x)
        for _ in range(jets):
            B = torch.as_tensor(rng.standard_normal((p, p))).to(x) / p**0.5
            Q = None
            if order == 2:
                Q = torch.as_tensor(rng.standard_normal((p, p, p))).to(x) / p
                Q, B = 0.5 * (Q + Q.mT), torch.zeros_like(B)
            d = commutator(X, problem, state, jet(x, B, Q), home)
            worst = max(worst, float(d.norm()) / size)
    return worst


def sample_points(
    problem: Problem, count: int = 6, cond: float = 3e3, seed: int = 0
) -> list[Tensor]:
    """Points around `theta0` whose metric has condition number below `cond`.

    Ill-conditioned points would drown a certificate in round-off.

    Raises:
        ValueError: fewer than `count` such points among 500 draws.
    """
    rng = np.random.default_rng(seed)
    found: list[Tensor] = []
    for _ in range(500):
        noise = torch.as_tensor(rng.standard_normal(len(problem.theta0)))
        x = problem.theta0 + 0.3 * noise.to(problem.theta0)
        w = torch.linalg.eigvalsh(problem.point(x).F)
        if float(w[0]) * cond > float(w[-1]):
            found.append(x)
        if len(found) == count:
            return found
    raise ValueError(
        f"problem: {len(found)} of 500 points have a metric of condition number below "
        f"{cond:g}; expected {count}"
    )
