r"""A test without integration: does the generator transform as a natural one must?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from geolib.core.linearization import differentiation
from geolib.core.validation import expect

from .catalogue import OPTIMIZERS
from .geometric_optimizer import GeometricOptimizer, State
from .local_geometry import ZERO, LocalGeometry
from .optimizer_spec import OptimizerSpec, RunContext
from .problem import Problem
from .reparameterization import TRIVIAL, Reparameterization, directional
from .rules import RULES, Rule


@dataclass(frozen=True)
class Generator:
    r"""The generator of an optimizer: a vector field on its state space.

    .. math:: X(s) = \frac{d}{dh} U_h(s)\Big|_{h=0} .

    Attributes:
        name: for tables.
        rate: from the geometry at x and the state's other parts to the rates of x
            and of each part.
        tags: the space of each part besides x: `vector`, `covector`, or one on which
            maps act trivially: `scalar`, `function` (on outputs); `entrywise` is a
            list of p squares, which permutations and scalings of axes carry along.

    Source: :eq:`eq-naturality-square`.
    """

    name: str
    rate: Callable[[LocalGeometry, State], State]
    tags: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, problem: Problem, state: State) -> State:
        """Return the rates at a state of a problem."""
        return self.at(problem.point(state["x"]), state)

    def at(self, q: LocalGeometry, state: State) -> State:
        """Return the rates at a state over the point of q."""
        rest = {
            k: state[k].view_as(q.z) if tag == "function" else state[k]
            for k, tag in self.tags.items()
        }
        return {k: v.reshape(-1) for k, v in self.rate(q, rest).items()}


def as_generator(rule: Any, problem: Problem) -> Generator:
    """Return the generator of a rule, an optimizer class, a table's name or a spec.

    Raises:
        ValueError: an unknown name, or an optimizer whose generator is not known.
    """
    if isinstance(rule, Generator):
        return rule
    if isinstance(rule, str):
        if rule in RULES:
            return _of_rule(rule, RULES[rule])
        wanted = f"one of {sorted({*RULES, *OPTIMIZERS})}"
        expect(rule in OPTIMIZERS, "rule", wanted, rule)
        rule = OPTIMIZERS[rule]
    if isinstance(rule, OptimizerSpec):
        return _of_spec(rule, problem)
    if isinstance(rule, type) and issubclass(rule, GeometricOptimizer):
        made = rule(problem.leaves(), 1.0, output_metric=problem.loss.output_metric)
        return Generator(rule.__name__, made.rate, made.tags)
    expect(callable(rule), "rule", "a rule, its name, an optimizer or a function", rule)
    return _of_rule(getattr(rule, "__name__", "rule"), rule)


def _of_rule(name: str, rule: Rule) -> Generator:
    return Generator(name, lambda q, s: {"x": rule(q)})


def _of_spec(spec: OptimizerSpec, problem: Problem) -> Generator:
    if spec.generator is not None:
        return as_generator(spec.generator, problem)
    if spec.make is not None and not spec.layered:
        run = RunContext(problem, 1.0)
        run.leaves = problem.leaves()
        made = spec.make(run.leaves, 1.0, run)
        if isinstance(made, GeometricOptimizer) and made.has_velocity:
            tags = dict(made.tags)
            if spec.initial == "covector":  # the same memory, under another functor
                tags = dict.fromkeys(tags, "covector")
            return Generator(spec.name, made.rate, tags)
    raise ValueError(
        f"generator: {spec.name} does not say its velocity; give a Generator"
    )


def draw_state(X: Generator, problem: Problem, x: Tensor, rng: Any) -> State:
    """Draw a state over x: velocities, momenta F v, outputs, squares."""
    state = {"x": x}
    for name, tag in X.tags.items():
        v = torch.as_tensor(rng.standard_normal(len(x))).to(x)
        if tag in ("vector", "covector"):
            state[name] = problem.point(x).F @ v if tag == "covector" else v
            continue
        size = {"entrywise": len(x), "scalar": 1}.get(tag)
        size = problem.outputs(x).numel() if size is None else size
        state[name] = torch.as_tensor(rng.uniform(0.5, 1.5, size)).to(x)
    return state


def push_state(X: Generator, phi: Reparameterization, state: State) -> State:
    r"""Return the image of a state under :math:`S(\phi)`."""
    x = state["x"]
    out = {"x": phi.forward(x)}
    for name, tag in X.tags.items():
        out[name] = phi.push(tag, x, state[name])
    return out


def commutators(
    X: Generator,
    problem: Problem,
    state: State,
    maps: Sequence[Callable[[float], Reparameterization]],
    home: State,
    step: float = 1e-4,
) -> Tensor:
    r"""Return the rates in eps of :math:`X_{\phi_*P}\circ S\phi - d(S\phi)\, X_P` at 0.

    Args:
        X: the generator.
        problem, state: where it is evaluated.
        maps: each from eps to a map, the identity at 0; eps = +-`step` are used.
        home: X at the state.
        step: of the central difference.

    Returns:
        One row a map.

    Source: :eq:`drv-naturality-jet` (derivations).
    """
    ends = [phi(eps) for phi in maps for eps in (step, -step)]
    images = [push_state(X, f, state) for f in ends]
    points = problem.points_in(ends, [image["x"] for image in images])
    failures = []
    for f, image, q in zip(ends, images, points, strict=True):
        there = X.at(q, image)
        pushed = _push_rates(X, f, state, home)
        failures.append(torch.cat([there[k] for k in state]) - pushed)
    forward, backward = torch.stack(failures).view(len(maps), 2, -1).unbind(1)
    return (forward - backward) / (2 * step)


def law_failure(
    X: Generator, problem: Problem, state: State, phi: Reparameterization
) -> float:
    r"""Return how far :math:`X_{\phi_*P}\circ S\phi` is from :math:`d(S\phi)\,X_P`.

    Each part of the state is measured in the metric at the image, relative to its own
    rate; the largest failure is returned.
    """
    image = push_state(X, phi, state)
    q = problem.push(phi).point(image["x"], ZERO)
    sizes = [len(state[k]) for k in state]
    home = X.at(problem.point(state["x"], ZERO), state)
    pushed = _push_rates(X, phi, state, home).split(sizes)
    there = X.at(q, image)
    failures = []
    for (name, rate), to in zip(((k, there[k]) for k in state), pushed, strict=True):
        tag = X.tags.get(name, "vector")

        def length(v: Tensor, tag: str = tag) -> float:
            v = q.solve(v) if tag == "covector" else v
            return float((q.A @ v if tag in ("vector", "covector") else v).norm())

        failures.append(length(rate - to) / max(length(to), 1e-300))
    return max(failures)


def _push_rates(
    X: Generator, f: Reparameterization, state: State, rates: State
) -> Tensor:
    r"""The vector :math:`d(S f)_s X`: the rate of the pushed state along the flow."""
    rates = {k: rates[k] for k in state}
    if all(tag in TRIVIAL for tag in X.tags.values()):
        moved = {**rates, "x": f.push_vector(state["x"], rates["x"])}
        return torch.cat(list(moved.values()))

    def pushed_state(t: Tensor) -> Tensor:
        moved = {k: v + t * rates[k] for k, v in state.items()}
        return torch.cat(list(push_state(X, f, moved).values()))

    zero, one = state["x"].new_zeros(()), state["x"].new_ones(())
    return directional(pushed_state, zero, one)


@dataclass(frozen=True)
class Jet(Reparameterization):
    """A quadratic map: the central difference of such a map is its derivative."""

    def push_vector(self, x: Tensor, v: Tensor) -> Tensor:
        return 0.5 * (self.forward(x + v) - self.forward(x - v))


def jet(x: Tensor, B: Tensor, Q: Tensor | None = None) -> Callable[[float], Jet]:
    r"""Return the maps :math:`x + u \mapsto x + u + \epsilon(Bu + Q(u, u))`, eps small.

    The inverse is exact to first order in eps, which is all a derivative at 0 needs.
    """

    def bend(u: Tensor) -> Tensor:
        out = B @ u
        return out if Q is None else out + torch.einsum("kij,i,j->k", Q, u, u)

    def at(eps: float) -> Jet:
        return Jet(
            lambda y: y + eps * bend(y - x), lambda y: y - eps * bend(y - x), "jet"
        )

    return at


@differentiation()
def jet_defect(
    rule: Any,
    problem: Problem,
    order: Annotated[int, "1 <= order <= 2"] = 1,
    *,
    points: Annotated[Iterable[Tensor] | None, "points"] = None,
    jets: Annotated[int, "1 <= jets <= 10**6"] = 10,
    seed: int = 0,
) -> float:
    r"""Measure the largest relative failure of the transformation law on random jets.

    .. math:: \max \frac{|\delta|}{|J|\,|X|}, \qquad
        \delta = \partial_\epsilon\bigl[X_{\phi_*P}(S\phi\, s)
        - d(S\phi)_s X_P(s)\bigr]_{\epsilon=0},
        \quad \phi = \mathrm{id} + \epsilon(Bu + Q(u,u)) .

    States here use first derivatives of the map and generators at most second
    derivatives of the problem, so 1-jets and 2-jets decide naturality near the
    identity. Finitely many random jets at finitely many points can refute it, not
    prove it.

    Args:
        rule: a rule's name (see `FirstOrderRule`), a name in `OPTIMIZERS`, a spec, a
            `GeometricOptimizer` class, a `Generator`, or a function from a
            `LocalGeometry` to a velocity (p,).
        problem: where to test.
        order: 1 tests linear maps (Q = 0), 2 purely quadratic ones (B = 0).
        points: parameter vectors (p,); six around `problem.theta0` when None.
        jets: random jets per point.
        seed: of the jets and states.

    Returns:
        About 1e-6 or less (the central difference) for a natural rule.

    Raises:
        ValueError: an order other than 1 or 2, an unknown rule.

    Source: :eq:`drv-naturality-jet` (derivations).

    Examples:
        >>> from geolib.naturality import affine_mlp, mse
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))
        >>> jet_defect("natural", P, jets=2) < 1e-5 < jet_defect("gradient", P, jets=2)
        True
    """
    X, rng = as_generator(rule, problem), np.random.default_rng(seed)
    chosen = sample_points(problem, seed=seed) if points is None else list(points)
    worst = 0.0
    for x in chosen:
        state = draw_state(X, problem, x, rng)
        home = X(problem, state)
        size = float(torch.cat([home[k] for k in state]).norm())
        p, maps = len(x), []
        for _ in range(jets):
            B = torch.as_tensor(rng.standard_normal((p, p))).to(x) / p**0.5
            Q = None
            if order == 2:
                Q = torch.as_tensor(rng.standard_normal((p, p, p))).to(x) / p
                Q, B = 0.5 * (Q + Q.mT), torch.zeros_like(B)
            maps.append(jet(x, B, Q))
        d = commutators(X, problem, state, maps, home)
        worst = max(worst, float(d.norm(dim=1).max()) / size)
    return worst


def sample_points(
    problem: Problem, count: int = 6, cond: float = 3e3, seed: int = 0
) -> list[Tensor]:
    """Draw points around `theta0` whose metric has condition number below `cond`.

    Ill-conditioned points would drown a certificate in round-off.

    Args:
        problem: whose Fisher metric is meant.
        count: how many points.
        cond: the largest condition number that is let through.
        seed: of the draws, normal with standard deviation 0.3 around the start.

    Raises:
        ValueError: fewer than `count` such points among 500 draws.

    Source: :eq:`drv-naturality-jet` (derivations).

    Examples:
        >>> from geolib.naturality import affine_mlp, mse
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))
        >>> w = torch.linalg.eigvalsh(P.point(sample_points(P, 1)[0]).F)
        >>> bool(w[-1] < 3e3 * w[0])
        True
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
