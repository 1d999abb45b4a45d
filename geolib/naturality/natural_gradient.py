r"""The natural gradient: one generator, steps of fixed size, or steps that tune themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from geolib.core import Euclidean, JacobianFactors, Linearization, Metric, integrate
from geolib.core import output_metrics as metrics
from geolib.core.jacobian_factors import factored_jacobian
from geolib.core.linear_calls import CallRecorder, LinearCall
from geolib.core.linearization import differentiation
from geolib.core.validation import expect
from geolib.naturality.geometric_optimizer import (
    Closure,
    GeometricOptimizer,
    State,
    require_same_outputs,
    using_graph,
)
from geolib.naturality.local_geometry import (
    Diverged,
    LocalGeometry,
    flatten,
    hessian_product,
    metric_of_loss,
    unflatten,
)
from geolib.naturality.self_tuning import SelfTuning

EXACT = 512  # parameters up to which the metric itself is averaged, and not K-FAC's
INTEGRATORS = ("euler", "midpoint", "rk4", "geodesic")
Seen = tuple[Tensor, Tensor, float, JacobianFactors | None]


class NaturalGradient(GeometricOptimizer):
    r"""Natural gradient descent; without a `damping` it chooses its own steps.

    .. math:: \dot x = -F^{+}g - \eta x, \qquad F = J^T W J, \qquad
        d = (\bar F + \lambda M)^{-1}(\lambda\mu M d_- - g), \qquad
        x \leftarrow (1 - h\eta)\,x + h\,d .

    By default nothing needs tuning: :math:`\bar F` is an average over batches, exact for
    at most 512 parameters; beyond, K-FAC's metric M stands for it.
    Damping :math:`\lambda`, momentum and weight decay change as tensors under affine charts
    of a layer; `SelfTuning` chooses :math:`\lambda` and the length, and `lr` is a factor for
    schedulers and groups. The loss is to be a mean over samples.

    With a number as `damping` it follows the flow :math:`-(F + \lambda M)^{+}g` of
    the batch at hand by steps of size `lr`: natural in the limit h to 0, exactly so under
    affine maps where there is no damping, or a `damping_metric`.

    Args:
        params: a module or its parameters; groups of them beside `module`, with their
            `lr` and `weight_decay`.
        lr: the step size h, with a fixed damping; else a factor on each step.
        damping: None for steps that tune themselves, or :math:`\lambda`.
        integrator: with a fixed damping: `euler`; `midpoint` and `rk4` evaluate the closure
            2 and 4 times and are natural to order 2 and 4; `geodesic` adds
            :math:`-\tfrac{h^2}{2} F^{+}[vv, \cdot\,]` and is natural to order 2.
        module: the network, where `params` are groups.
        trust: the largest change of the outputs in one step, as a KL divergence (of
            squared loss: in units of the present loss), 0.05 by default.
        momentum: share of the last step that the next one is drawn to, 0.9 by default.
        weight_decay: :math:`\eta`, the share of the parameters that a step takes away,
            times `lr`: a vector under linear charts.
        interval: most steps from one curvature to the next, 10 by default, three times
            as many with K-FAC's metric; the first follow closely.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: options out of their ranges, trust, momentum, interval or groups beside a
            fixed damping, groups that are not the module's parameters, and what
            `GeometricOptimizer` refuses.

    `step(closure)` takes a closure that returns `(outputs, loss)`; self-tuned, `step()`
    after `loss.backward()` is possible with a module, an `output_metric` and `zero_grad()`
    before the forward pass. It takes the closure's step where that has K-FAC's metric,
    which it has always, as have layers of BatchNorm in training mode: the exact metric
    asks for a second call, to see that layers do not mix samples. Parameters outside
    linear layers have the squares of the gradient then, and of a likelihood no step is
    taken back, as its value is not told.

    Cost: one gradient a step and, every `interval` steps, one backward pass a root of
        the output metric (see `AveragedCurvature`); with fixed damping one solve of core's.

    Source: Amari 1998; Goodbrake 2023, abstract (i); :eq:`drv-naturality-ngd`. Martens
        and Grosse 2015 (damping, trust region); :eq:`drv-naturality-self-tuning`. Song, Song
        and Ermon 2018 (`geodesic`); :eq:`drv-naturality-geodesic` (derivations).

    Examples:
        >>> net = nn.Linear(2, 1).double()
        >>> a = 1e6 * torch.eye(2, dtype=torch.float64)
        >>> opt = NaturalGradient(net)
        >>> for _ in range(60):
        ...     _ = opt.step(lambda: (z := net(a), 0.5 * (z - 1).square().mean()))
        >>> bool((net(a) - 1).abs().max() < 1e-3)
        True
        >>> opt = NaturalGradient(net, lr=1.0, damping=0.0)  # one step, whatever the scaling
        >>> _ = opt.step(lambda: (z := net(a), 0.5 * z.square().mean()))
        >>> bool(net(a).abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1.0,
        *,
        damping: Annotated[float | None, "0 <= damping < inf"] = None,
        integrator: Annotated[str, INTEGRATORS] = "euler",
        module: nn.Module | None = None,
        trust: Annotated[float | None, "0 < trust < inf"] = None,
        momentum: Annotated[float | None, "0 <= momentum < 1"] = None,
        weight_decay: Annotated[float, "0 <= weight_decay < inf"] = 0.0,
        interval: Annotated[int | None, "1 <= interval <= 10**9"] = None,
        **options: Any,
    ) -> None:
        tunes = ("trust", trust), ("momentum", momentum), ("interval", interval)
        asked: dict[str, Any] = {name: v for name, v in tunes if v is not None}
        plain = damping is None or (not asked and module is None)
        wanted = "None beside trust, momentum, interval or module"
        expect(plain, "damping", wanted, damping)
        wanted, fits = "euler, where no damping is given", integrator == "euler"
        expect(damping is not None or fits, "integrator", wanted, integrator)
        self.integrator = integrator
        known: Any = params if module is None else module
        self.module = known if isinstance(known, nn.Module) else None
        self.tuning, self.mixing = SelfTuning(**asked), False
        self.tuned = damping is None
        if self.tuned and self.module is not None:
            self.mixing = any(
                isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
                for m in self.module.modules()
            )
        given = known.parameters() if self.mixing else known
        # self-tuned, no second derivative is taken, and layers are probed
        self.check = not self.tuned
        super().__init__(
            given, lr, weight_decay=weight_decay, damping=damping or 0.0, **options
        )
        if module is not None:
            self._regroup(list(params))  # type: ignore[arg-type]
        self._seen: tuple[JacobianFactors | None, Tensor] | None = None
        self._armed: list[Any] = []
        self._scale, self._whole, self._told = 1.0, not self.mixing, False

    def _regroup(self, groups: list[dict[str, Any]]) -> None:
        """Give the parameters of the module to groups with options of their own."""
        self.param_groups = []
        for group in groups:
            torch.optim.Optimizer.add_param_group(self, dict(group))
        held = {id(t) for group in self.param_groups for t in group["params"]}
        wanted = f"groups of all the module's trainable parameters, {len(self.leaves)}"
        expect(held == set(map(id, self.leaves)), "params", wanted, len(held))

    # ---- steps of fixed damping --------------------------------------------------

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        v = -self.solve(q, q.covector)
        eta = self.options["weight_decay"]
        return v - eta * flatten([t.detach() for t in q.params]) if eta else v

    def update(self, q: LocalGeometry) -> Tensor:
        x, h = self.position(), self.options["lr"]
        v = self.velocity(q, {})
        if self.integrator == "geodesic":
            return h * v - 0.5 * h * h * self.solve(q, q.christoffel_on_outputs(v, v))
        if self.integrator == "euler":
            return h * v

        def field(t: float, dx: Tensor) -> Tensor:
            if t == 0:
                return v
            self.move(x + dx)
            return self.velocity(self.point(), {})

        zero = torch.zeros_like(x)
        return integrate(field, zero, [0.0, h], method=self.integrator, step=h).final

    # ---- steps that tune themselves ----------------------------------------------

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss before it.

        Raises:
            ValueError: as for `GeometricOptimizer`; without a closure, that `zero_grad`
                did not come before the forward pass, or that there is no `module` or
                `output_metric`.
        """
        if not self.tuned:
            return super().step(closure)
        with differentiation():
            if closure is None:
                return self._advance(*self._from_backward())
            self._closure = closure
            with using_graph():
                seen = self._from_closure(self.tuning.due)
            return self._advance(*seen) * self._scale

    @torch.no_grad()
    def _advance(
        self, g: Tensor, loss: Tensor, unit: float, rows: JacobianFactors | None
    ) -> Tensor:
        """Move the parameters, or take the last step back."""
        tuning = self.tuning
        back, C = tuning.last, tuning.curvature
        exact = C.exact if C is not None else self._whole and len(g) <= EXACT
        g = g.double() if exact else g
        if not tuning.judge(g, float(loss)):
            assert back is not None
            tuning.remember(g, None)
            self._move(-back)
            return loss
        if not bool(torch.isfinite(g).all()):
            raise Diverged("closure: the gradient has entries that are not finite")
        if rows is not None:
            # the squares of the gradient stand for what the rows leave out
            loose = None if self._whole else rows.n * g.square()
            tuning.learn(rows, exact, loose)
        squared = isinstance(self.output_metric, Euclidean) and float(loss) > 0
        d = tuning.propose(g, unit, float(loss) if squared else None)
        rates = {id(t): q["lr"] for q in self.param_groups for t in q["params"]}
        scaled = set(rates.values()) != {1.0}
        if scaled:
            pieces = zip(self.leaves, unflatten(d, self.leaves), strict=True)
            d = flatten([rates[id(t)] * piece for t, piece in pieces])
        tuning.remember(g, d, scaled)
        for group in self.param_groups:
            if decay := group["lr"] * group["weight_decay"]:
                torch._foreach_mul_(group["params"], 1 - decay)
        self._move(d)
        return loss

    def _move(self, d: Tensor) -> None:
        torch._foreach_add_(self.leaves, unflatten(d.to(self.leaves[0]), self.leaves))

    def _from_closure(self, due: bool) -> Seen:
        """Gradient, loss, unit and rows, by one call of the closure."""
        watch = CallRecorder(self._named()) if self.mixing else self.watching()
        outputs, loss, record = self.called(watch if due else None)
        if not due:
            return *self._scaled(outputs, loss, False), None
        if self.infer_metric and not self._told:  # once: sure outputs tell it no more
            self.output_metric, self._told = metric_of_loss(loss, outputs), True
        if self.mixing:
            rows = self._layer_rows(outputs, record.calls)
        else:
            plain = record is None
            L = (
                Linearization(outputs, self._named())
                if plain
                else record.linearization()
            )
            require_same_outputs(L, outputs)
            rows = Metric.from_linearization(L, self.output_metric).rows()
        return *self._scaled(outputs, loss, True), rows

    def _scaled(
        self, outputs: Tensor, loss: Tensor, due: bool
    ) -> tuple[Tensor, Tensor, float]:
        """Gradient and loss in the unit of the metric, and the unit of lengths."""
        squared = isinstance(self.output_metric, Euclidean)
        if due and squared and self.infer_metric:
            self._scale = curvature_of_loss(loss, outputs)
        options: Any = {"retain_graph": due, "materialize_grads": True}
        g = flatten(torch.autograd.grad(loss, self.leaves, **options))
        loss = loss.detach()
        if self._scale != 1.0:
            g, loss = g / self._scale, loss / self._scale
        width = outputs.numel() // len(outputs)
        return g, loss, 2 * float(loss) / width if squared else 1.0

    # ---- after loss.backward() ---------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; without a closure, watch the next forward pass."""
        super().zero_grad(set_to_none)
        self._disarm()
        if self.tuned and self.module is not None and not self.infer_metric:
            self._arm(self.module)

    def _arm(self, module: nn.Module) -> None:
        recorder = CallRecorder(self._named())

        def before(*_: Any) -> None:
            recorder.__enter__()

        def after(_: nn.Module, __: Any, outputs: Any) -> None:
            recorder.__exit__(None, None, None)
            self._disarm()
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                due = self.tuning.due
                rows = self._layer_rows(outputs, recorder.calls) if due else None
                outputs.register_hook(partial(self._note, rows))

        self._armed = [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, always_call=True),
        ]

    def _disarm(self) -> None:
        for hook in self._armed:
            hook.remove()
        self._armed = []

    def _note(self, rows: JacobianFactors | None, u: Tensor) -> None:
        self._seen = rows, u.detach()

    def _from_backward(self) -> Seen:
        if self._seen is None:
            lacks = "a module" if self.module is None else "an output_metric"
            if self.module is not None and not self.infer_metric:
                lacks = "zero_grad() before the forward pass, and backward() after it"
            raise ValueError(f"closure: expected one; a step without it needs {lacks}")
        (rows, u), self._seen, self._whole = self._seen, None, False
        g = flatten(
            [torch.zeros_like(t) if t.grad is None else t.grad for t in self.leaves]
        )
        if not isinstance(self.output_metric, Euclidean):
            return g, torch.ones(()), 1.0, rows
        loss = 0.5 * len(u) * u.square().sum()  # u = (z - y) / n
        return g, loss, 2 * float(loss) / u[0].numel(), rows

    def _named(self) -> dict[str, Tensor]:
        return {str(k): t for k, t in enumerate(self.leaves)}

    def _layer_rows(self, outputs: Tensor, calls: list[LinearCall]) -> JacobianFactors:
        """The rows of linear layers, whether or not samples are mixed elsewhere."""
        L = Linearization(outputs, self._named(), calls)
        z = outputs.detach()
        local = self.output_metric.at(z, slice(0, len(z)))
        return factored_jacobian(L, local, len(z) ** -0.5, trusted=True)

    # ---- state -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the usual dictionary, with what the self-tuning step has learnt."""
        metric = self.output_metric
        told = (type(metric).__name__, dict(vars(metric))) if self._told else None
        kept = (self.tuning.state(), self._scale, told)
        return {**super().state_dict(), "tuning": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the optimizer: a run goes on exactly as it would have gone."""
        state = dict(state_dict)
        if (kept := state.pop("tuning", None)) is not None:
            self.tuning.load(kept[0])
            self._scale, told = kept[1:]
            if told is not None:  # what the loss said of its metric
                self.output_metric = getattr(metrics, told[0])(**told[1])
                self._told = True
        super().load_state_dict(state)


def curvature_of_loss(loss: Tensor, outputs: Tensor) -> float:
    """The factor between the Hessian of a squared loss and I / n; 1 where it has none.

    Examples:
        >>> z = torch.ones(4, 5, requires_grad=True)
        >>> round(curvature_of_loss(nn.functional.mse_loss(z, torch.zeros(4, 5)), z), 6)
        0.4
    """
    (u,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    Hu = hessian_product(loss, outputs, u)
    found = len(u) * float((Hu * u).sum()) / max(float(u.square().sum()), 1e-300)
    return found if 0 < found < math.inf else 1.0
