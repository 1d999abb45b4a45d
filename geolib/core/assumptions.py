r"""What the core takes for granted of a module, checked on two samples at first use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.module import register_module_buffer_registration_hook

from geolib.core.linear_calls import Call, graph_nodes, named_calls
from geolib.core.linearization import MISFIT, Linearization, Rerun
from geolib.core.validation import Inputs, map_inputs, num_samples, take, tensors

LOOK = 64  # samples among which one is sought that differs from the first
PERIOD = 1009  # of the pattern that stands for a random vector; no layer's width
ROUGH = 1e-4  # a precision that small differences of outputs do not survive
LARGE = 2.0**12  # a cotangent at which clipped gradients are seen
NEAR = 0.1  # how far from theta to look, in units of its root mean square


class AssumptionError(ValueError):
    """What core's formulas assume of a module, or of data in batches, does not hold.

    Attributes:
        assumption: "function" (the same inputs give the same outputs), "samples"
            (output i depends on input i only), "state" (a forward pass writes to
            nothing), "derivative" (forward and backward derivatives are those of the
            outputs) or "data" (batches repeat).
        where: the layer or call to blame, if that could be told.

    Source: ours.
    """

    def __init__(self, assumption: str, finding: str, where: str | None = None) -> None:
        super().__init__(finding + (f", because of {where}" if where else ""))
        self.assumption, self.where = assumption, where


class ModuleTrial:
    """A module near one point, asked for each assumption on one or two samples.

    Args:
        R: the `Realization`.
        theta: the point.
        x: inputs, of which two samples are taken.
        constants: buffers and frozen parameters, by name.
        reset: gives the layers back the attributes that passes have set.
    """

    def __init__(
        self,
        R: Any,
        theta: Tensor,
        x: Inputs,
        constants: Mapping[str, Tensor],
        reset: Callable[[], None],
    ) -> None:
        self.R, self.constants, self.theta, self.reset = R, constants, theta, reset
        self.x, self.distinct = _two_samples(x)
        self.eps = torch.finfo(theta.dtype).eps
        self.size = max(float(theta.norm()) / theta.numel() ** 0.5, 0.01)
        self.off = NEAR * self.size
        self.L: Linearization  # of the last look
        self.error: Exception | None = None  # in which it ended

    def check(self) -> None:
        """Ask for all of them; what looks odd is asked again, one by one.

        Raises:
            AssumptionError: one fails.

        Cost: three forward passes of two samples, and a backward pass and its transpose.
        """
        with torch.random.fork_rng(_cards()):
            if self.eps > ROUGH or not self.all_hold(0):
                self.blame()

    def all_hold(self, seed: int) -> bool:
        """Whether few passes near theta show nothing odd.

        The outputs at w + h v of copies of one sample are those of the pair at w, plus
        h J v: so they are only if the module is a function of each sample, with these
        derivatives, backward and forward. Here w is a little off theta along v.
        """
        v, h = self.along(seed), self.eps**0.5 * self.size
        parts = self.R.unflatten(v)
        named = self.R.unflatten(self.theta).items()
        leaves = {n: t.add(parts[n], alpha=self.off) for n, t in named}
        with self.untouched(leaves):
            try:
                L = self.L = Rerun(self.run, self.x).linearize(leaves, self.x)
                self.reads(L)
                z, d = L.outputs, torch.zeros_like(L.outputs)
                for i, k in zip(reversed(range(len(z))), (h, -h), strict=False):
                    copies = take(self.x, torch.tensor([i] * (len(z) + 1 - i)))
                    moved = self.outputs(self.theta.add(v, alpha=self.off + k), copies)
                    d[i] = (moved[0].flatten() - z[i]) / k
                    self.reset()
                g, t = L.vjp(LARGE * d), L.jvp(v)
            except (*MISFIT, ValueError) as error:
                if isinstance(error, AssumptionError | torch.OutOfMemoryError):
                    raise
                self.error = error
                return False
        if not math.isfinite(float(g.sum() + t.sum())):
            self.error = FloatingPointError("it is not finite")
        noise = 30 * self.eps * float(z.norm()) / h
        gap = (t - d).norm() - self.eps**0.2 * (t.norm() + d.norm())
        pair = (g @ v / LARGE - (d * t).sum()).abs()
        pair -= self.eps**0.5 * d.norm() * t.norm()
        agree = bool(gap <= noise) and bool(pair <= noise * d.norm())
        return agree and len(z) == num_samples(self.x)

    def blame(self) -> None:
        """Say which assumption fails; that of the derivatives is tried in float64."""
        z = self.state(self.theta.add(self.along(0), alpha=self.off))
        if not bool(torch.isfinite(z).all()):
            self.off = 0.0
            z = self.state(self.theta)
        else:
            self.theta = self.theta.add(self.along(0), alpha=self.off)
        again = self.outputs(self.theta)
        if not self.same([z], [again]):
            gap = float((z - again).abs().max())
            finding = f"two passes on the same inputs differ by {gap:.2g}"
            self.refuse("function", finding, self.differ)
        self.samples(z)
        if bool(torch.isfinite(z).all()):
            self.derivatives()

    def along(self, seed: int) -> Tensor:
        """A direction for the weights; none for rows that embeddings pad with."""
        v = _pattern(self.theta, seed)
        for name, row in self.R.padding.items():
            self.R.unflatten(v)[name][row] = 0
        return v

    def reads(self, L: Linearization) -> None:
        """The graph reads what it was given: no tensor that was made of weights before.

        A row that an embedding pads with, and has no gradient, is read by no other.
        """
        own = {id(t): n for n, t in self.R.module.named_parameters()}
        padded = {id(L.leaves[n]): n for n in self.R.padding}
        for node in graph_nodes(L.graph):
            read = [id(getattr(c, "variable", None)) for c, _ in node.next_functions]
            for name in (own[k] for k in read if k in own):
                finding = f"module: it holds a tensor that was computed from {name!r}"
                raise AssumptionError("derivative", f"{finding}; compute it in forward")
            for name in (padded[k] for k in read if k in padded):
                if "Emb" not in node.name():
                    finding = f"module: {name!r} has a row for padding, and is read by"
                    raise AssumptionError("derivative", f"{finding} {node.name()} too")

    def run(self, named: Mapping[str, Tensor], x: Inputs | None = None) -> Tensor:
        return self.R.run(named, self.x if x is None else x, self.constants)

    def outputs(self, theta: Tensor, x: Inputs | None = None) -> Tensor:
        return self.run(self.R.unflatten(theta), x).detach()

    def state(self, theta: Tensor) -> Tensor:
        """The outputs of a pass that is watched."""
        held = {n: t.clone() for n, t in self.R.unflatten(theta).items()}
        with self.untouched(held):
            return self.run(held).detach()

    @contextmanager
    def untouched(self, held: Mapping[str, Tensor]) -> Iterator[None]:
        """A pass writes to nothing that it is given, and draws no random number."""
        inputs = {f"input {k}": t for k, t in enumerate(tensors(self.x))}
        watched = {**inputs, **self.constants, **held}
        marks, random = {n: _mark(t) for n, t in watched.items()}, _random_state()
        with register_module_buffer_registration_hook(self.rebuffered):
            yield
        for name, t in watched.items():
            if _mark(t) != marks[name]:
                where = "" if name in inputs else name.rpartition(".")[0]
                finding = f"module: its forward pass writes to {name!r}"
                raise AssumptionError("state", finding, self.R.label(where))
        if random != _random_state():
            self.refuse("function", "a forward pass draws random numbers", self.differ)

    def rebuffered(self, layer: nn.Module, name: str, new: Tensor | None) -> None:
        """A pass that gives a buffer another value; one that grows is a cache."""
        old = layer._buffers.get(name)
        with torch._C.DisableTorchFunction():
            if old is None or new is None or old.shape != new.shape or old.equal(new):
                return
        finding = f"module: its forward pass sets the buffer {name!r}"
        raise AssumptionError("state", finding, self.R.label(layer))

    def samples(self, z: Tensor) -> None:
        """An output stays when the other sample is replaced by a copy of its own."""
        count = num_samples(self.x)
        if len(z) != count:
            finding = f"x: {count} samples gave {len(z)} rows of outputs"
            raise AssumptionError("samples", finding)
        for i in range(2 if self.distinct else 0):
            x = take(self.x, torch.tensor([i, i]))
            self.reset()
            if not self.same([z[[i, i]]], [self.outputs(self.theta, x)]):
                finding = (
                    "the output of a sample depends on the other samples, or on its place "
                    "(are they the leading axis of what each layer is given?)"
                )
                self.reset()
                self.refuse("samples", finding, partial(self.mix, i), x)
        three = torch.tensor([0, 0, 0])
        again = self.outputs(self.theta, take(self.x, three)) if count > 1 else z[:1]
        if not self.same([z[three[: len(again)]]], [again]):
            finding = "the output of a sample depends on how many samples there are"
            raise AssumptionError("samples", f"module: {finding}")

    def derivatives(self) -> None:
        """A doubt may be a kink or rounding: look elsewhere, and in float64."""
        for look, fine in ((1, False), (2, True)):
            if fine:
                self.theta = self.theta.double()
                self.eps = torch.finfo(self.theta.dtype).eps
                self.x, self.off = map_inputs(_double, self.x), NEAR * self.size
            self.error = None
            if self.eps < ROUGH and self.all_hold(look):
                return
        where = [
            f"the autograd.Function behind {node.name()}"
            for node in graph_nodes(self.L.graph)
            if isinstance(node, BackwardCFunction)
        ]
        finding, bad = "differences of its outputs are not its derivative", _cuts
        if self.error is not None:
            said = str(self.error).partition("\n")[0]
            finding, bad = f"its derivative ends in an error: {said}", self.lacks
        self.refuse("derivative", finding, bad, where=where)

    def same(self, a: list[Tensor], b: list[Tensor]) -> bool:
        """Whether tensors agree up to rounding."""
        slack = self.eps**0.75
        return all(
            s.shape == t.shape
            and torch.allclose(s, t, 0.0, slack * _largest(s), equal_nan=True)
            for s, t in zip(a, b, strict=False)
        )

    def differ(self, a: Call, b: Call) -> bool:
        return a.where != b.where or not self.same(a.outputs, b.outputs)

    def mix(self, i: int, a: Call, b: Call) -> bool:
        """A layer whose output changes for one input, in two passes or for two copies."""
        pairs = ((a, i, b, i), (b, 0, b, 1))
        return a.is_layer and any(
            self.same(_rows(p.inputs, j), _rows(q.inputs, k))
            and not self.same(_rows(p.outputs, j), _rows(q.outputs, k))
            for p, j, q, k in pairs
        )

    def lacks(self, a: Call, b: Call) -> bool:
        """A call that the words of the error name."""
        name = a.where.rpartition(" ")[2].strip("'")
        return not a.is_layer and name in str(self.error)

    def refuse(self, assumption, finding, bad, x=None, where=()) -> NoReturn:
        """Blame the first call that is `bad` in two passes, the second perhaps on x."""
        if not where:
            named = self.R.unflatten(self.theta.requires_grad_())
            run, calls = partial(self.run, named), []
            for q in (self.x, x):
                calls.append(named_calls(partial(run, q), self.R.label))
                if x is not None:
                    self.reset()
            a, b = calls
            where = [s.where for s, t in zip(a, b, strict=False) if bad(s, t)]
        raise AssumptionError(assumption, f"module: {finding}", next(iter(where), None))


def _cuts(a: Call, b: Call) -> bool:
    """Whether a call leaves the graph, as `detach` does and all under `no_grad`."""
    kept = all(t.requires_grad for t in a.outputs if t.is_floating_point())
    return any(t.requires_grad for t in a.inputs) and not kept


def _largest(t: Tensor) -> float:
    return float(torch.nan_to_num(t.detach()).abs().max()) if t.numel() else 0.0


def _rows(found: list[Tensor], i: int) -> list[Tensor]:
    return [t[i] for t in found if t.ndim and len(t) == 2]


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _mark(t: Tensor) -> tuple[int, str]:
    """What a write changes: the count of writes and, for one by `.data`, the sum."""
    return 0 if t.is_inference() else t._version, str(float(t.detach().sum()))


def _random_state() -> list[bytes]:
    states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _cards())]
    return [s.numpy().tobytes() for s in states]


def _cards() -> list[int]:
    return list(range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0))


def _pattern(like: Tensor, seed: int) -> Tensor:
    """A vector as good as random, of root mean square 1, at the cost of a copy."""
    angles = torch.arange(PERIOD, dtype=torch.float64) ** 2 * (0.7 + 0.1 * seed)
    short = (2**0.5 * torch.cos(angles)).to(like)
    return short.repeat(-(-len(like) // PERIOD))[: len(like)]


def _two_samples(x: Inputs) -> tuple[Inputs, bool]:
    """The first sample and one that differs from it, and whether there is one."""
    n, known = num_samples(x), [t for t in tensors(x) if t.ndim]

    def apart(k: int) -> bool:
        return any(bool((t[k] != t[0]).any()) for t in known)

    other = next(filter(apart, range(1, min(n, LOOK))), 0)
    return take(x, torch.tensor([0, other or 1][:n])), other > 0
