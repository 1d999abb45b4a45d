r"""A natural gradient that chooses its own steps, for the contest of the chapter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from self_tuning import SelfTuning
from torch import Tensor, nn

from geolib.core import (
    Euclidean,
    JacobianFactors,
    Linearization,
    Metric,
    OutputMetric,
    Realization,
)
from geolib.core.jacobian_factors import DenseBlock, LayerBlock, factored_jacobian
from geolib.core.linear_calls import CallRecorder, LinearCall
from geolib.core.linearization import differentiation
from geolib.core.validation import expect
from geolib.naturality import GeometricOptimizer
from geolib.naturality.geometric_optimizer import Closure, require_same_outputs
from geolib.naturality.local_geometry import (
    Diverged,
    flatten,
    metric_of_loss,
    unflatten,
)

EXACT = 512  # parameters up to which the metric itself is averaged, and not K-FAC's


class TunedNatural(GeometricOptimizer):
    r"""Natural gradient descent whose damping and step length tune themselves.

    .. math:: d = (\bar F + \lambda M)^{-1}(\lambda\mu M d_- - g), \qquad
        x \leftarrow (1 - h\eta)\,x + h\,d .

    :math:`\bar F` is an average over batches, exact for at most 512 parameters; beyond,
    K-FAC's metric M stands for it. Damping, momentum and weight
    decay change as tensors under affine charts of a layer. See `SelfTuning` for
    :math:`\lambda` and the trust region; the group's `lr` h is a factor, 1 unless a
    scheduler changes it.

    `step(closure)` takes a closure that returns `(outputs, loss)`; `step()` after
    `loss.backward()` is possible with a module, an `output_metric` and `zero_grad()`
    before the forward pass, always with K-FAC's metric, as are layers of BatchNorm in
    training mode. The loss is to be a mean over samples.

    Args:
        params: a module or its parameters; groups of them beside `module`, with their
            `lr` and `weight_decay`.
        module: the network, where `params` are groups.
        trust: the largest change of the outputs in one step, as a KL divergence (of
            squared loss: in units of the present loss).
        momentum: share of the last step that the next one is drawn to.
        weight_decay: share of the parameters that a step takes away, times `lr`: a
            vector under linear charts.
        interval: most steps from one curvature to the next; the first follow closely.
        output_metric: as for `GeometricOptimizer`.

    Raises:
        ValueError: options out of their ranges, groups that are not the module's
            parameters, and what `GeometricOptimizer` refuses.

    Cost: one gradient a step and, every `interval` steps, one backward pass a root of
        the output metric; see `AveragedCurvature`.

    Source: Martens and Grosse 2015 (damping, trust region); the rest is ours.

    Examples:
        >>> net = nn.Linear(2, 1).double()
        >>> a = 1e6 * torch.eye(2, dtype=torch.float64)
        >>> opt = TunedNatural(net)
        >>> for _ in range(60):
        ...     _ = opt.step(lambda: (z := net(a), 0.5 * (z - 1).square().mean()))
        >>> bool((net(a) - 1).abs().max() < 1e-3)
        True
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        *,
        module: nn.Module | None = None,
        trust: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        interval: int = 10,
        output_metric: OutputMetric | None = None,
    ) -> None:
        groups: list[Any] = [] if module is None else list(params)  # type: ignore[arg-type]
        known: Any = params if module is None else module
        self.tuning = SelfTuning(trust, momentum, interval)
        self.module = known if isinstance(known, nn.Module) else None
        self.mixing = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
            for m in (self.module.modules() if self.module is not None else ())
        )
        good = 0 <= weight_decay < math.inf
        expect(good, "weight_decay", "a finite number >= 0", weight_decay)
        given = known.parameters() if self.mixing else known
        super().__init__(
            given, 1.0, weight_decay=weight_decay, output_metric=output_metric
        )
        if self.R is not None:  # no second derivative is taken, and layers are probed
            self.R = Realization(self.R.module, check=False)
        if groups:
            self._regroup(groups)
        self._seen: tuple[JacobianFactors | None, Tensor | None] = (None, None)
        self._armed: list[Any] = []
        self._scale, self._whole = 1.0, not self.mixing

    def _regroup(self, groups: list[dict[str, Any]]) -> None:
        """Give the parameters of the module to groups with options of their own."""
        self.param_groups = []
        for group in groups:
            torch.optim.Optimizer.add_param_group(self, dict(group))
        held = {id(t) for group in self.param_groups for t in group["params"]}
        if held != set(map(id, self.leaves)):
            raise ValueError(
                "params: expected groups of all the module's trainable parameters and "
                f"of no others, {len(self.leaves)} in all, got {len(held)}"
            )

    # ---- steps that tune themselves ----------------------------------------------

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss before it.

        Raises:
            ValueError: as for `GeometricOptimizer`; without a closure, that `zero_grad`
                did not come before the forward pass, or that there is no `module` or
                `output_metric`.
        """
        with differentiation():
            if closure is None:
                return self._advance(*self._from_backward())
            self._closure = closure
            return self._advance(*self._from_closure(self.tuning.due))

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
            tuning.learn(rows, exact, self._loose(g, rows))
        squared = isinstance(self.output_metric, Euclidean) and float(loss) > 0
        d = tuning.propose(g, unit, float(loss) if squared else None)
        rates = {float(group["lr"]) for group in self.param_groups}
        rate = rates.pop() if len(rates) == 1 else None
        if rate is None:
            places = unflatten(d, self.leaves)
            of = {id(t): q["lr"] for q in self.param_groups for t in q["params"]}
            for t, piece in zip(self.leaves, places, strict=True):
                piece.mul_(of[id(t)])
        elif rate != 1.0:
            d = d * rate
        tuning.remember(g, d, rate)
        for group in self.param_groups:
            if decay := group["lr"] * group["weight_decay"]:
                torch._foreach_mul_(group["params"], 1 - decay)
        self._move(d)
        return loss

    def _move(self, d: Tensor) -> None:
        torch._foreach_add_(self.leaves, unflatten(d.to(self.leaves[0]), self.leaves))

    def _loose(self, g: Tensor, rows: JacobianFactors) -> Tensor | None:
        """The squares of the gradient stand for what the rows leave out."""
        if self._whole:
            return None
        left = torch.ones_like(g)
        for block in rows.blocks:
            if isinstance(block, LayerBlock):
                left[block.weight] = 0.0
                if block.bias is not None:
                    left[block.bias] = 0.0
        return rows.n * g.square() * left

    def _from_closure(
        self, due: bool
    ) -> tuple[Tensor, Tensor, float, JacobianFactors | None]:
        """Gradient, loss, unit and rows, by one call of the closure."""
        if not due:
            return *self._scaled(*self._closure(), False), None
        if self.module is None:
            q = self.point()
            n, p = len(q.z), len(q.g)
            block = DenseBlock(q.A.view(n, -1, p), torch.arange(p).to(q.g.device))
            rows = JacobianFactors([block], n, q.A.shape[0] // n, p, q.g)
            return *self._scaled(q.graph, q.loss, True), rows
        watch = CallRecorder(self._named()) if self.mixing else self.watching()
        with watch as record:
            result = self._closure()
        pair = isinstance(result, tuple) and len(result) == 2
        expect(pair, "closure", "a pair (outputs, loss)", type(result).__name__)
        outputs, loss = result
        if self.infer_metric:
            self.output_metric = metric_of_loss(loss, outputs)
        if self.mixing:
            rows = self._layer_rows(outputs, record.calls)
        else:
            L = record.linearization()
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
        g = flatten(
            torch.autograd.grad(
                loss, self.leaves, retain_graph=due, materialize_grads=True
            )
        )
        loss = loss.detach()
        if self._scale != 1.0:
            g, loss = g / self._scale, loss / self._scale
        width = outputs.numel() // len(outputs)
        return g, loss, 2 * float(loss) / width if squared else 1.0

    # ---- after loss.backward() ---------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; without a closure, watch the next forward pass."""
        super().zero_grad(set_to_none)
        if self.module is not None:
            self._disarm()
            if not self.infer_metric:
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
                self._seen = rows, None
                outputs.register_hook(self._note)

        self._armed = [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, always_call=True),
        ]

    def _disarm(self) -> None:
        for hook in self._armed:
            hook.remove()
        self._armed = []

    def _note(self, u: Tensor) -> None:
        self._seen = self._seen[0], u.detach()

    def _from_backward(self) -> tuple[Tensor, Tensor, float, JacobianFactors | None]:
        rows, u = self._seen
        if u is None:
            raise ValueError(
                "closure: expected one; a step without it needs a module, its "
                "output_metric, and zero_grad() before the forward pass"
            )
        self._seen, self._whole = (None, None), False
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
        return {**super().state_dict(), "tuning": (self.tuning.state(), self._scale)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the optimizer."""
        state = dict(state_dict)
        kept = state.pop("tuning", None)
        super().load_state_dict(state)
        if kept is not None:
            self.tuning.load(kept[0])
            self._scale = kept[1]


def curvature_of_loss(loss: Tensor, outputs: Tensor) -> float:
    """The factor between the Hessian of a squared loss and I / n; 1 where it has none.

    Examples:
        >>> z = torch.ones(4, 5, requires_grad=True)
        >>> round(curvature_of_loss(nn.functional.mse_loss(z, torch.zeros(4, 5)), z), 6)
        0.4
    """
    (dl,) = torch.autograd.grad(loss, outputs, create_graph=True)
    if not dl.requires_grad:
        return 1.0
    u = dl.detach()
    (Hu,) = torch.autograd.grad(dl, outputs, u, retain_graph=True)
    found = len(u) * float((Hu * u).sum()) / max(float(u.square().sum()), 1e-300)
    return found if 0 < found < math.inf else 1.0
