r"""One optimizer is one definition: the parts of its state, a velocity and a drive."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geolib.core import Euclidean, Linearization, OutputMetric, Realization, Solution
from geolib.core.checks import finite
from geolib.core.linearization import differentiation
from geolib.core.validation import expect, require_matching

from .local_geometry import Diverged, LocalGeometry, flatten, metric_of_loss, unflatten

Closure = Callable[[], tuple[Tensor, Tensor]]
DampingMetric = Tensor | Callable[[], Tensor] | None
State = dict[str, Tensor]


def check_tensors(items: Iterable[Any]) -> list[Tensor]:
    """Return dense floating-point tensors as a list, or refuse them by name.

    Raises:
        ValueError: none at all.
        TypeError: an entry that is no dense floating-point tensor, mixed dtypes or
            devices.
    """
    items = list(items)
    expect(items, "params", "at least one parameter that requires gradients", "none")
    for t in items:
        expect(isinstance(t, Tensor), "params", "tensors", type(t).__name__)
        expect(t.is_floating_point(), "params", "floating-point tensors", t.dtype)
        expect(t.layout == torch.strided, "params", "dense tensors", t.layout)
        expect(finite(t), "params", "finite numbers", t.detach())
        require_matching("params", t, items[0], "the first")
    expect(len(set(map(id, items))) == len(items), "params", "each once", "one twice")
    return items


def one_group(params: nn.Module | Iterable[Any]) -> list[Any]:
    """Return the entries of the one parameter group that a metric can have."""
    items = list(params.parameters() if isinstance(params, nn.Module) else params)
    if items and isinstance(items[0], dict):
        wanted = "one group (a metric couples all parameters)"
        expect(len(items) == 1, "params", wanted, len(items))
        items = list(items[0]["params"])
    parameters = [p for p in items if isinstance(p, nn.Parameter)]
    frozen = {id(p) for p in parameters if not p.requires_grad}
    return [p for p in items if id(p) not in frozen]


def require_same_outputs(L: Linearization, outputs: Tensor) -> None:
    """Refuse outputs that are not those of the module's last call."""
    shapes = (L.outputs.shape, (len(L.outputs), *L.output_shape))
    same = outputs.shape in shapes and torch.allclose(
        outputs.detach().flatten(1), L.outputs, rtol=0.0, atol=0.0, equal_nan=True
    )
    wanted = f"the outputs of one call of the module, shape {tuple(L.outputs.shape)}"
    expect(same, "closure", wanted, f"others, shape {tuple(outputs.shape)}")


@contextmanager
def using_graph() -> Iterator[None]:
    """Say it of the closure where its graph was used up."""
    try:
        yield
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        finding = "closure: expected no call of backward(), which uses the graph up"
        raise ValueError(finding) from error


class GeometricOptimizer(torch.optim.Optimizer):
    r"""The base of every optimizer whose step is computed from one `LocalGeometry`.

    .. math:: \dot x = \mathrm{velocity}(q, s), \qquad
        \dot s = \mathrm{drive}(q, s) - \gamma s .

    A subclass defines `tags` (each part s of the state besides x, and the space it
    lies in), `velocity` and `drive`. Everything else follows from these three: the
    step (the drive kicks the state, then the new velocity moves x), the vector field
    `rate` that `jet_defect` certifies, and the optimizer that `audit` trains. Implicit
    and multi-stage rules override `update` instead.

    `step(closure)` needs a closure that returns `(outputs, loss)`, differentiable in
    the parameters and with no call to `backward`; it may be called several times.

    Args:
        params: one group of dense floating-point tensors, or the module that the
            closure calls. From a module the step knows the layers: systems are then
            solved by `geolib.core`, which never forms the Jacobian of linear and
            convolutional layers, so that a million parameters are no hindrance.
        lr: the step size h.
        output_metric: of `geolib.core`. When None it is that of the loss, told by the
            loss's Hessian in the outputs: `Euclidean()` of squared loss, `Categorical()`
            of cross entropy, `Bernoulli()` of binary cross entropy with logits. A loss
            of another kind has none and is refused.
        damping: the number :math:`\lambda` in :math:`F + \lambda M`.
        damping_metric: M as a matrix or a callable giving it at the present
            parameters; the identity when None. With `damping=0` it chooses among the
            generalized inverses the one of minimum M-norm. With M every solve is dense.
        rtol: relative cut of small eigenvalues of F.

    Attributes:
        solution: of core's last solve (its residual, its method), or None.

    Raises:
        ValueError: no parameters or several groups, a step size or damping that is
            not a finite number in its range.
        TypeError: parameters that are no dense floating-point tensors, a metric that
            is no `OutputMetric`, or an option that the optimizer does not have.

    Source: :eq:`drv-naturality-square` (derivations).

    Examples:
        >>> class Descent(GeometricOptimizer):
        ...     def velocity(self, q, s):
        ...         return -q.g
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> def closure():
        ...     z = x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = Descent([x], lr=0.5).step(closure)
        >>> x.item()
        1.0
    """

    needs_outputs = True
    check = True  # whether the module is checked, as `Realization` does
    tags: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-2,
        *,
        output_metric: OutputMetric | None = None,
        damping: float = 0.0,
        damping_metric: DampingMetric = None,
        rtol: float = 1e-10,
        **defaults: Any,
    ) -> None:
        self.leaves = check_tensors(one_group(params))
        module = params if isinstance(params, nn.Module) else None
        self.R = None if module is None else Realization(module, check=self.check)
        metric = Euclidean() if output_metric is None else output_metric
        known = {
            name
            for cls in type(self).__mro__
            if "__init__" in vars(cls)
            for name in inspect.signature(vars(cls)["__init__"]).parameters
        }
        if unknown := sorted(set(defaults) - known):
            raise TypeError(f"{type(self).__name__}: unknown options {unknown}")
        self.output_metric, self.infer_metric = metric, output_metric is None
        self.damping_metric = damping_metric
        self.solution: Solution | None = None
        base = {"lr": lr, "damping": damping, "rtol": rtol}
        super().__init__(self.leaves, {**base, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse every group after the first: a metric couples all parameters.

        Raises:
            ValueError: there is a group already.
        """
        wanted = "one group only, as a metric couples them"
        expect(not self.param_groups, "param_group", wanted, "another")
        super().add_param_group(param_group)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the one parameter group."""
        return self.param_groups[0]

    @property
    def has_velocity(self) -> bool:
        """Whether the definition gives a generator (BFGS, for one, has none)."""
        return type(self).velocity is not GeometricOptimizer.velocity

    @property
    def memory(self) -> dict[str, Any]:
        """Flat state vectors, kept with the first parameter for `state_dict`."""
        return self.state[self.leaves[0]]

    # ---- the definition ----------------------------------------------------------

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        """Return the rate of the flat parameter vector, (p,)."""
        raise NotImplementedError

    def drive(self, q: LocalGeometry, s: State) -> State:
        """Return the rate of each part of the state, friction apart."""
        return {}

    def initial(self, q: LocalGeometry) -> State:
        """Return the parts of the state before the first step."""
        return {k: torch.zeros_like(q.g) for k in self.tags}

    # ---- what follows from it ----------------------------------------------------

    def rate(self, q: LocalGeometry, s: State) -> State:
        """Return the generator: the rates of x and of each part at h = 0."""
        friction = self.options.get("friction", 0.0)
        drive = self.drive(q, s)
        rates = {k: drive[k] - friction * s[k] for k in self.tags}
        return {"x": self.velocity(q, s), **rates}

    def gains(self) -> tuple[float, float]:
        """Return the factors of a part and of its drive in one step."""
        h = self.options["lr"]
        return math.exp(-self.options.get("friction", 0.0) * h), h

    def update(self, q: LocalGeometry) -> Tensor:
        """Return the displacement of x in one step: kick the state, then drift."""
        s: State = {}
        if self.tags:
            start = self.initial(q)
            old = {k: self.memory.get(k, start[k]) for k in self.tags}
            drive, (keep, gain) = self.drive(q, old), self.gains()
            s = {k: keep * old[k] + gain * drive[k] for k in self.tags}
            self.memory.update(s)
        return self.options["lr"] * self.velocity(q, s)

    def solve(self, q: LocalGeometry, v: Tensor) -> Tensor:
        """Apply the metric's inverse to a covector, with this group's damping.

        Args:
            v: on the parameters, (p,), or on the outputs, (n, c) (see
                `LocalGeometry.solve`).
        """
        p, z = q.linearization.p, q.z.shape
        expect(v.shape in ((p,), z), "v", f"shape ({p},) or {tuple(z)}", tuple(v.shape))
        require_matching("v", v, q.z, "the outputs")
        x = q.solve(v, self.options["damping"], self.damping_metric)
        s = self.solution = q.solution
        if s is not None and not s.converged and s.residual > 1e-2:
            g = q.vjp(v) if v.ndim == 2 else v
            if float(g.norm()) > 1e-6 * float(q.g.norm()):  # else g is round-off
                warnings.warn(
                    f"{type(self).__name__}: a solve by {s.method} left a residual of "
                    f"{s.residual:.1e}; damp more or use float64",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return x

    # ---- one call of the closure -------------------------------------------------

    def watching(self) -> AbstractContextManager[Any]:
        """Return what is to see the closure's calls of the module."""
        return nullcontext() if self.R is None else self.R.recording()

    def called(
        self, watch: AbstractContextManager[Any] | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Call the closure; return its outputs, its loss, and what watched it."""
        with watch or nullcontext() as record:
            result = self._closure()
        pair = isinstance(result, tuple) and len(result) == 2
        expect(pair, "closure", "a pair (outputs, loss)", type(result).__name__)
        return *result, record

    def point(self) -> LocalGeometry:
        """Return the geometry at the present parameters, by one call of the closure."""
        with torch.enable_grad():
            outputs, loss, record = self.called(self.watching())
            L = None
            if self.R is not None:
                L = record.linearization()
                require_same_outputs(L, outputs)
                if not bool(torch.isfinite(L.theta).all()):
                    raise Diverged("theta: expected finite parameters")
            if self.infer_metric:
                self.output_metric = metric_of_loss(loss, outputs)
            rtol = self.options["rtol"]
            return LocalGeometry(
                outputs, loss, self.leaves, self.output_metric, rtol, L
            )

    def position(self) -> Tensor:
        """Return the parameters as one flat vector (a copy)."""
        return flatten([t.detach() for t in self.leaves]).clone()

    @torch.no_grad()
    def move(self, x: Tensor) -> None:
        """Write a flat vector into the parameters."""
        p = sum(t.numel() for t in self.leaves)
        expect(x.shape == (p,), "x", f"shape ({p},)", tuple(x.shape))
        for t, piece in zip(self.leaves, unflatten(x, self.leaves), strict=True):
            t.copy_(piece)

    @differentiation()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss before it.

        Raises:
            ValueError: no closure, or one that does not return `(outputs, loss)`, or
                an update that is not finite (the parameters are left as they were).
        """
        if closure is None:
            raise ValueError("closure: expected one giving (outputs, loss), got None")
        self._closure = closure
        x = self.position()
        with using_graph():
            q = self.point()
            dx, loss = self.update(q), q.loss.detach()
        if not bool(torch.isfinite(dx).all()):
            self.move(x)
            raise Diverged(
                f"update: {type(self).__name__} produced entries that are not finite; "
                "the metric is singular, a gradient not finite or the step too large"
            )
        self.move(x + dx)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_closure"}
