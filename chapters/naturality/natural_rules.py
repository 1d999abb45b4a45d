r"""Other algorithms made natural: Adam, AdaGrad, any rule lifted to outputs, implicit steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, optim

from geolib.core.validation import expect
from geolib.naturality import GeometricOptimizer, LocalGeometry, OptimizerSpec
from geolib.naturality.catalogue import geometric, memories
from geolib.naturality.geometric_optimizer import State

Rule = Callable[[list[Tensor]], optim.Optimizer]


def raised(q: LocalGeometry) -> Tensor:
    """The pseudo-inverse of W applied to the loss's derivative, (n, c)."""
    inverse = torch.linalg.pinv(q.W, hermitian=True, rtol=1e-12)
    return torch.einsum("nij,nj->ni", inverse, q.dl)


class _Measured(GeometricOptimizer):
    """A rule that reads the squared length of the gradient."""

    def natural_gradient(self, q: LocalGeometry) -> Tensor:
        r"""Return :math:`F^{+}g` of this point, solved once."""
        kept = vars(q)
        if "natural" not in kept:
            kept["natural"] = self.solve(q, q.covector)
        return kept["natural"]


class NaturalAdam(_Measured):
    r"""Adam with every Euclidean object replaced by a tensor.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \qquad
        s \leftarrow \beta_2 s + (1-\beta_2)\, g^TF^{+}g,

    .. math:: \Delta x = -h\,\frac{F^{+}\hat m}{\sqrt{\hat s} + \epsilon}, \qquad
        m \leftarrow m + [\,\cdot\,\Delta x, F^{+}m] .

    The elementwise second moment becomes the squared length of the gradient, a
    scalar; the average of covectors is carried along by parallel transport (left out
    with `connection=False`).

    Args:
        betas, eps: as in Adam.
        connection: whether the average is carried along.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: a beta outside [0, 1).

    Source: :eq:`drv-naturality-adam` (derivations); this chapter's own construction.

    Examples:
        >>> x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
        >>> opt = NaturalAdam([x], lr=0.5, eps=0.0)
        >>> def closure():
        ...     z = x.view(2, 1)
        ...     return z, 0.25 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> [round(v, 6) for v in x.tolist()]  # a step of length h sqrt 2 in F = I/2
        [2.575736, 3.434315]
    """

    tags: ClassVar[Mapping[str, str]] = {"m": "covector", "s": "scalar"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        connection: bool = True,
        **options: Any,
    ) -> None:
        expect(all(0 <= b < 1 for b in betas), "betas", "numbers in [0, 1)", betas)
        self.connection = connection
        super().__init__(params, lr, betas=tuple(betas), eps=eps, **options)

    def _velocity(self, u: Tensor, s: Tensor) -> Tensor:
        """The velocity of an average with raised index u and a squared length s."""
        return -u / (s.clamp(min=0).sqrt() + self.options["eps"])

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return self._velocity(self.solve(q, s["m"]), s["s"])

    def initial(self, q: LocalGeometry) -> State:
        return {"m": torch.zeros_like(q.g), "s": q.g.new_zeros(())}

    def rate(self, q: LocalGeometry, s: State) -> State:
        h = self.options["lr"]
        tau = [-h / math.log(b) for b in self.options["betas"]]
        u = self.solve(q, s["m"])
        dx = self._velocity(u, s["s"])
        m = (q.g - s["m"]) / tau[0]
        if self.connection:
            m = q.transport(m, u, dx)
        length = torch.dot(q.g, self.natural_gradient(q))
        return {"x": dx, "m": m, "s": (length - s["s"]) / tau[1]}

    def update(self, q: LocalGeometry) -> Tensor:
        mem, (b1, b2) = self.memory, self.options["betas"]
        start = self.initial(q)
        t = int(mem.get("t", 0)) + 1
        m = b1 * mem.get("m", start["m"]) + (1 - b1) * q.g
        length = torch.dot(q.g, self.natural_gradient(q))
        s = b2 * mem.get("s", start["s"]) + (1 - b2) * length
        u = self.solve(q, m)
        corrected = self._velocity(u / (1 - b1**t), s / (1 - b2**t))
        dx = self.options["lr"] * corrected
        if self.connection:
            m = q.transport(m, u, dx)
        mem["m"], mem["s"], mem["t"] = m, s, t
        return dx


class NaturalAdaGrad(_Measured):
    r"""AdaGrad with the accumulated squared length of the gradient.

    .. math:: s \leftarrow s + g^TF^{+}g, \qquad
        x \leftarrow x - h\,\frac{F^{+}g}{\sqrt{s} + \epsilon} .

    Args:
        initial: the accumulator's initial value.
        eps: added to its root.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: a negative `initial` or `eps`.

    Source: :eq:`drv-naturality-adam` (derivations); this chapter's own construction.

    Examples:
        >>> x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        >>> opt = NaturalAdaGrad([x], lr=0.5, eps=0.0)
        >>> def closure():
        ...     z = 7 * x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> round(x.item(), 6)  # a first step has length h in the metric F = 49
        2.928571
    """

    tags: ClassVar[Mapping[str, str]] = {"s": "scalar"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        initial: float = 0.0,
        eps: float = 1e-10,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, initial=initial, eps=eps, **options)

    def initial(self, q: LocalGeometry) -> State:
        return {"s": q.g.new_tensor(self.options["initial"])}

    def gains(self) -> tuple[float, float]:
        return 1.0, 1.0  # a sum, not an average: s = O(1/h) when lr = sqrt(h)

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return -self.natural_gradient(q) / (s["s"].sqrt() + self.options["eps"])

    def drive(self, q: LocalGeometry, s: State) -> State:
        return {"s": torch.dot(q.g, self.natural_gradient(q))}


class FunctionMomentum(GeometricOptimizer):
    r"""Momentum kept in output space, where no map of parameters acts.

    .. math:: u \leftarrow e^{-\gamma h}u - h\,W^{+}d\ell, \qquad
        x \leftarrow x + h\,F^{+}J^TWu .

    It needs the same samples in the same order at every step, since the state is
    indexed by them.

    Args:
        friction: :math:`\gamma`, per unit of time.
        (others): see `GeometricOptimizer`.

    Source: :eq:`drv-naturality-lift` (derivations).

    Examples:
        >>> x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        >>> opt = FunctionMomentum([x], lr=0.5, friction=0.0)
        >>> def closure():
        ...     z = 2 * x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> round(x.item(), 6)  # u = -1 on outputs pulls back to -1/2
        0.75
    """

    tags: ClassVar[Mapping[str, str]] = {"u": "function"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        friction: float = 1.0,
        **o: Any,
    ) -> None:
        super().__init__(params, lr, friction=friction, **o)

    def initial(self, q: LocalGeometry) -> State:
        return {"u": torch.zeros_like(q.z)}

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return self.solve(q, q.lower(s["u"]))

    def drive(self, q: LocalGeometry, s: State) -> State:
        if s["u"].shape != q.z.shape:
            raise ValueError(
                f"closure: outputs of shape {tuple(q.z.shape)}, but the momentum holds "
                f"{tuple(s['u'].shape)}; it needs the full batch at every step"
            )
        return {"u": -raised(q)}


class FunctionalLift(GeometricOptimizer):
    r"""Run a rule on the outputs; pull its step back by least squares.

    .. math:: z = f(x), \quad r = W^{+}d\ell, \quad
        \Delta z = \mathrm{rule}(z, r), \quad x \leftarrow x + F^{+}J^TW\,\Delta z .

    No reparameterization acts on outputs, so the rule's state is natural whatever the
    rule. Lifted SGD is natural gradient descent. It needs the full batch at every step.

    Args:
        rule: makes the inner optimizer from a list with the one output tensor, for
            example `lambda z: torch.optim.Adam(z, lr=0.1)`. Its `lr` is the step size.
        (others): see `GeometricOptimizer`.

    Source: :eq:`drv-naturality-lift` (derivations).

    Examples:
        >>> x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        >>> opt = FunctionalLift([x], rule=lambda z: torch.optim.SGD(z, lr=0.5))
        >>> def closure():
        ...     z = 7 * x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> round(x.item(), 12)
        1.5
    """

    def __init__(self, params: Iterable[Any], *, rule: Rule, **options: Any) -> None:
        self.rule = rule
        self.inner: optim.Optimizer | None = None
        self._pending: dict[str, Any] | None = None
        super().__init__(params, 1.0, **options)

    def _inner(self, q: LocalGeometry) -> tuple[optim.Optimizer, Tensor]:
        inner = self.inner
        if inner is None:
            self.shadow = q.z.clone().requires_grad_()
            inner = self.inner = self.rule([self.shadow])
            if self._pending is not None:
                inner.load_state_dict(self._pending)
                self._pending = None
        if self.shadow.shape != q.z.shape:
            raise ValueError(
                f"closure: outputs of shape {tuple(q.z.shape)}, but the lift holds "
                f"{tuple(self.shadow.shape)}; it needs the full batch at every step"
            )
        return inner, self.shadow

    def update(self, q: LocalGeometry) -> Tensor:
        inner, shadow = self._inner(q)
        with torch.no_grad():
            shadow.copy_(q.z)
        shadow.grad = raised(q)
        inner.step()
        dz = (shadow - q.z).detach()
        return self.options["lr"] * self.solve(q, q.lower(dz))

    def state_dict(self) -> dict[str, Any]:
        """Return the usual dictionary, with the inner optimizer's under `inner`."""
        inner = self._pending if self.inner is None else self.inner.state_dict()
        return {**super().state_dict(), "inner": inner}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both optimizers; the inner one is made at the next step."""
        state = dict(state_dict)
        self._pending = state.pop("inner", None)
        self.inner = None
        super().load_state_dict(state)


class _Implicit(GeometricOptimizer):
    """A step found by Gauss-Newton iterations on a function of the new outputs."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        iterations: int = 60,
        tolerance: float = 1e-14,
        **options: Any,
    ) -> None:
        expect(iterations >= 1, "iterations", "at least 1", iterations)
        self.iterations, self.tolerance = iterations, tolerance
        self.converged = True
        super().__init__(params, lr, **options)

    def target(self, q: LocalGeometry, v: Tensor) -> Tensor:
        """Return the outputs to stay close to, from the old point and its Euler step."""
        raise NotImplementedError

    def pull(self, new: LocalGeometry) -> tuple[Tensor, float]:
        """Return another gradient on outputs, and its curvature over W."""
        return torch.zeros_like(new.z), 0.0

    def update(self, q: LocalGeometry) -> Tensor:
        h, x = self.options["lr"], self.position()
        v = -h * self.solve(q, q.covector)
        dx, size = v, float(v.norm() + x.norm())
        target = self.target(q, v)  # before the parameters of q's graph move
        self.converged, before = False, 0.0
        for _ in range(self.iterations):
            self.move(x + dx)
            new = self.point()
            r, curvature = self.pull(new)
            r = r + q.lower(new.z - target)
            delta = -self.solve(new, r) / (1 + curvature)
            dx = dx + delta
            # What is still to come, at the rate of the last two corrections.
            moved = float(delta.norm())
            rate = moved / before if moved < before else 0.5
            if not rate / (1 - rate) * moved > self.tolerance * size:
                self.converged = True
                break
            before = moved
        return dx


class RetractedNaturalGradient(_Implicit):
    r"""The natural gradient step, retracted onto the set of functions.

    .. math:: x^+ = \arg\min_{x'} \tfrac12
        \bigl|f(x') - (f(x) - hJF^{+}g)\bigr|^2_{W(x)} .

    Exactly natural at every h, as the target and the distance live in output space.
    `converged` says whether the inner iteration reached its tolerance.

    Args:
        iterations, tolerance: of the inner Gauss-Newton iteration.
        (others): see `GeometricOptimizer`.

    Source: :eq:`drv-naturality-implicit` (derivations).

    Examples:
        >>> x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
        >>> opt = RetractedNaturalGradient([x], lr=0.1)
        >>> def closure():  # f = e^x; on functions the step is 1 - 0.1 (1 - 2)
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.5 * (z - 2).square().sum()
        >>> loss = opt.step(closure)
        >>> round(x.exp().item(), 12)
        1.1
    """

    def target(self, q: LocalGeometry, v: Tensor) -> Tensor:
        return q.z + q.jvp(v)


class ProximalNatural(_Implicit):
    r"""The implicit step of the natural gradient flow.

    .. math:: x^+ = \arg\min_{x'} h\,L(x') + \tfrac12 |f(x') - f(x)|^2_{W(x)} .

    Exactly natural at every h, and of order 1 in h as an integrator.

    Args:
        iterations, tolerance: of the inner Gauss-Newton iteration.
        (others): see `GeometricOptimizer`.

    Source: :eq:`eq-naturality-prox`; :eq:`drv-naturality-implicit` (derivations).

    Examples:
        >>> x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
        >>> opt = ProximalNatural([x], lr=0.1)
        >>> def closure():  # z - 1 = -0.1 (z - 2)
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.5 * (z - 2).square().sum()
        >>> loss = opt.step(closure)
        >>> round(1.1 * x.exp().item(), 12)
        1.2
    """

    def target(self, q: LocalGeometry, v: Tensor) -> Tensor:
        return q.z

    def pull(self, new: LocalGeometry) -> tuple[Tensor, float]:
        h = self.options["lr"]
        return h * new.dl, h


def _lifted_adam(params: list[Tensor], h: float, run: Any) -> FunctionalLift:
    return FunctionalLift(
        params,
        rule=lambda z: optim.Adam(z, h, memories(h), 1e-2),
        output_metric=run.output_metric,
    )


_Row = OptimizerSpec
NATURAL = [
    _Row("function-momentum", geometric(FunctionMomentum)),
    _Row(
        "natural-adam",
        geometric(NaturalAdam, lambda h: {"betas": memories(h), "eps": 1e-2}),
    ),
    _Row(
        "natural-adagrad",
        geometric(NaturalAdaGrad, lambda h: {"lr": h**0.5, "initial": 0.05 / h}),
    ),
    _Row("lift-adam", _lifted_adam),
    _Row("ngd-retraction", geometric(RetractedNaturalGradient)),
    _Row("proximal", geometric(ProximalNatural)),
]
