"""What is asked of each public function on each module, and how it is known to be right.

Each function here calls geolib on a case and compares with something that shares no code
with it: central differences, dense algebra, layer inputs read off by hand, the function
of the returned module. It raises `AssertionError` where geolib is wrong; an error of
geolib's own passes through.
"""

from __future__ import annotations

import dis
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from trust_modules import (
    DTYPES,
    difference_jacobian,
    logits,
    make,
    outputs,
)  # fmt: skip

import geolib
from geolib.core import Categorical, PullbackMetric, Realization, normal
from geolib.geodesics import connect, learn_sequence, matrices, sparsify
from geolib.inverse_stability import canonicalize
from geolib.naturality import KFAC, NaturalGradient, audit
from geolib.networks import Task, align
from geolib.stratifolds import find_strata, learning_coefficient

HOME = Path(geolib.__file__).parent
BOUND = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1}
METHODS = ("auto", "cholesky", "woodbury", "cg", "nystrom", "kfac")
DAMPING = 0.1


def own_error(error: BaseException) -> bool:
    """Whether an error says what to do: geolib's own line raised it, of a known kind."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if tb is None or HOME not in Path(tb.tb_frame.f_code.co_filename).parents:
        return False
    raised = tb.tb_frame.f_code.co_code[tb.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    ours = type(error).__module__.startswith("geolib.")
    return raised and (ours or type(error) in (ValueError, TypeError))


def near(ours, slow, like, rounding=0.0):
    """Equal to within the bound of the case's precision, relative to the size."""
    size = float(slow.double().norm())
    gap = float((ours.double() - slow.double()).norm())
    assert gap <= BOUND[like] * (size + 1e-9) + rounding, f"off by {gap / size:.2g}"


def dtype_of(case):
    return next(case.module.parameters()).dtype


def softmax_fisher(z, J, dim):
    """The dense Fisher metric, sample by sample, from the softmax's own derivative."""
    G = torch.zeros(J.shape[-1], J.shape[-1], dtype=J.dtype)
    for zi, Ji in zip(z, J, strict=True):
        axis = dim if dim < 0 else dim - 1
        M = torch.autograd.functional.jacobian(lambda t, a=axis: t.softmax(a), zi)
        G += Ji.T @ M.reshape(zi.numel(), zi.numel()) @ Ji
    return G / len(z)


def metric(case):
    R = Realization(case.module)
    return PullbackMetric(R, case.x, Categorical(dim=case.dim)).at(R.theta0)


# ---- core ----------------------------------------------------------------------------


def jvp(name, case):
    z, J = difference_jacobian(name)
    R = Realization(case.module)
    L = R.linearize(R.theta0, case.x)
    v = normal(R.p, 1).to(R.theta0)
    near(L.outputs, z.flatten(1), R.theta0.dtype)
    near(L.jvp(v), J @ v.double(), R.theta0.dtype)


def vjp(name, case):
    _, J = difference_jacobian(name)
    R = Realization(case.module)
    L = R.linearize(R.theta0, case.x)
    u = normal(tuple(L.outputs.shape), 2).to(R.theta0)
    near(L.vjp(u), torch.einsum("nop,no->p", J, u.double()), R.theta0.dtype)


def dense(name, case):
    D = softmax_fisher(*difference_jacobian(name), case.dim)
    G = metric(case)
    v = normal(G.p, 3).to(G.theta)
    near(G.dense(), D, G.theta.dtype)
    near(G @ v, D @ v.double(), G.theta.dtype)


def spectrum(name, case):
    D = softmax_fisher(*difference_jacobian(name), case.dim)
    found = metric(case).spectrum(3)
    values = torch.linalg.eigvalsh(D).flip(0)[:3]
    near(found.values, values, dtype_of(case))


def solving(method):
    def solve(name, case):
        D = softmax_fisher(*difference_jacobian(name), case.dim)
        G = metric(case)
        g = normal(G.p, 4).to(G.theta)
        found = G.solve(g, DAMPING, method, tol=BOUND[g.dtype] / 30)
        assert found.converged
        near(D @ found.x.double() + DAMPING * found.x, g, g.dtype)

    return solve


class LayerCalls(TorchFunctionMode):
    """Linear and convolution calls, and how often each parameter is used at all."""

    def __init__(self, parameters):
        super().__init__()
        self.used = {id(p): 0 for p in parameters}
        self.calls = []

    def __torch_function__(self, fn, types, args=(), kwargs=None):
        out = fn(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and getattr(fn, "__name__", "") != "__get__":
            given = [a for a in (*args, *(kwargs or {}).values())]
            for a in given:
                if id(a) in self.used:
                    self.used[id(a)] += 1
            if getattr(fn, "__name__", "") in ("linear", "conv2d"):
                self.calls.append((fn.__name__, args, kwargs or {}, out))
        return out


def kronecker_step(case, z, J, g, n):
    """K-FAC's direction from layer inputs and output gradients that hooks have seen."""
    module = case.module
    named = [p for p in module.parameters() if p.requires_grad]
    with LayerCalls(named) as seen:
        out = logits(module(case.x))
    rows, place, start = out.flatten(1), {}, 0
    for p in named:
        place[id(p)] = slice(start, start + p.numel())
        start += p.numel()
    D = softmax_fisher(z, J, case.dim)
    step = g / (D.diagonal() + max(DAMPING, 0.0))
    axis = case.dim if case.dim < 0 else case.dim - 1
    for kind, args, kwargs, y in seen.calls:
        x, W = args[0], args[1]
        b = args[2] if len(args) > 2 else kwargs.get("bias")
        if seen.used.get(id(W), 0) != 1:
            continue
        if kind == "conv2d":
            padding = args[4] if len(args) > 4 else kwargs.get("padding", 0)
            x = F.unfold(x, W.shape[2:], padding=padding).mT
        x = x.detach().reshape(-1, x.shape[-1])
        if b is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        A = x.T @ x / len(x)
        B = torch.zeros(len(W), len(W), dtype=A.dtype)
        for i in range(n):
            grads = []
            for k in range(rows.shape[1]):
                (d,) = torch.autograd.grad(rows[i, k], y, retain_graph=True)
                d = d.movedim(1, -1) if kind == "conv2d" else d
                grads.append(d.reshape(-1, len(W)))
            M = torch.autograd.functional.jacobian(lambda t: t.softmax(axis), z[i])
            M, D_i = M.reshape(len(grads), -1), torch.stack(grads)
            B += torch.einsum("kta,kl,ltb->ab", D_i, M, D_i) / n
        places = [place[id(W)]] + ([place[id(b)]] if b is not None else [])
        V = torch.cat([g[q].view(len(W), -1) for q in places], 1)
        pi = (A.trace() / len(A) / (B.trace() / len(B))).sqrt()
        A = A + pi * DAMPING**0.5 * torch.eye(len(A), dtype=A.dtype)
        B = B + DAMPING**0.5 / pi * torch.eye(len(B), dtype=B.dtype)
        V = torch.linalg.inv(B) @ V @ torch.linalg.inv(A)
        width = V.shape[1] - (b is not None)
        step[places[0]] = V[:, :width].reshape(-1)
        if b is not None:
            step[places[1]] = V[:, width]
    return step


def cross_entropy(z, case):
    moved = z.movedim(case.dim, -1)
    return F.cross_entropy(
        moved.flatten(0, -2), case.y.flatten(), reduction="sum"
    ) / len(z)


def optimizer_step(name, case, kind):
    """What one step of an optimizer moved by, over lr, and how far that is rounded."""
    several = case.y.ndim > 1  # decisions: then the loss does not tell the axis
    options = {"output_metric": Categorical(dim=case.dim)} if several else {}
    opt = kind(case.module, lr=0.5, damping=DAMPING, **options)
    R = Realization(case.module)
    start = R.theta0

    def closure():
        z = logits(case.module(case.x))
        return z, cross_entropy(z, case)

    opt.step(closure)
    moved = (start - Realization(case.module).theta0).double() / 0.5
    return moved, float(start.norm()) * torch.finfo(start.dtype).eps / 0.5


def reference_gradient(case, z, J):
    z = z.detach().requires_grad_()
    (u,) = torch.autograd.grad(cross_entropy(z, case), z)
    return torch.einsum("nop,no->p", J, u.flatten(1))


def natural_gradient(name, case):
    z, J = difference_jacobian(name)
    moved, rounding = optimizer_step(name, case, NaturalGradient)
    D = softmax_fisher(z, J, case.dim)
    g = reference_gradient(case, z, J)
    slow = torch.linalg.solve(D + DAMPING * torch.eye(len(D), dtype=D.dtype), g)
    near(moved, slow, dtype_of(case), rounding)


def kfac(name, case):
    z, J = difference_jacobian(name)
    twin = make(name)
    if twin.module is not getattr(twin.module, "_orig_mod", twin.module):
        twin = replace(twin, module=twin.module._orig_mod)
    if dtype_of(case) in DTYPES.values():
        twin = replace(twin, module=twin.module.double(), x=twin.x.double())
    moved, rounding = optimizer_step(name, case, KFAC)
    g = reference_gradient(case, z, J)
    near(moved, kronecker_step(twin, z, J, g, len(z)), dtype_of(case), rounding)


# ---- chapters ------------------------------------------------------------------------


def audit_sgd(name, case):
    """Gradient descent is exact for rotations of weight space and for no shears."""
    report = audit(
        torch.optim.SGD,
        case.module,
        (case.x, case.y),
        families=["orthogonal", "affine"],
    )
    assert report.letters == "EU", report.letters


BN = ("weight", "bias", "running_mean", "running_var")
# whether to make the first two rows of all parameters equal, so that there is a deficit
WHOLE = {"lstm": False, "dict output": True, "dataclass output": True}
UNITS = {  # rows of the units that are made equal; what reads them
    "vgg-bn": (["0.weight", "0.bias", *(f"1.{t}" for t in BN)], "4"),
    **{
        f"resnet {name}": (
            [f"{at}.conv1.weight", f"{at}.conv1.bias", *(f"{at}.norm1.{t}" for t in BN)],
            f"{at}.conv2",
        )
        for name, at in (("block", "body"), ("chain", "body.0"))
    },
    **{
        f"{when}-norm transformer": (
            ["block.linear1.weight", "block.linear1.bias"], "block.linear2",
        )
        for when in ("pre", "post")
    },
    "token model": (["mix.weight", "mix.bias"], "read"),
    "segmentation": (["down.weight", "down.bias"], "up"),
    "group norm": ([f"body.{k}.{t}" for k in (0, 1) for t in BN[:2]], "read"),
    "layer norm": ([f"{k}.{t}" for k in (0, 1) for t in BN[:2]], "3"),
    "tied embeddings": (["mix.weight", "mix.bias"], "embed"),
}  # fmt: skip


def columns_rank(J, *columns):
    """Rank of some columns of a Jacobian.

    Those of `exact_jacobian` have digits enough to tell the least singular values from
    zero: a post-norm transformer had one of 1e-8, which central differences lose.
    """
    part = J.flatten(0, 1)[:, torch.cat(columns)]
    s = torch.linalg.svdvals(part / part.norm(dim=0).clamp_min(1e-9))
    return int((s >= 1e-12 * s[0]).sum())


def exact_jacobian(module, x):
    """Outputs' derivatives (n, o, p) by torch's own loop over them."""
    named = dict(module.named_parameters())

    def run(*parts):
        z = torch.func.functional_call(module, dict(zip(named, parts, strict=True)), x)
        return logits(z).flatten(1)

    given = tuple(t.detach() for t in named.values())
    parts = torch.autograd.functional.jacobian(run, given)
    return torch.cat([part.flatten(2) for part in parts], -1)


def strata(name, case):
    """Two units made equal are found, with the deficit that torch's own Jacobian shows."""
    x = case.x
    if isinstance(x, torch.Tensor):
        x = normal((40, *x.shape[1:]), 9).to(x)
    if name in ("token model", "tied embeddings"):
        x = torch.arange(120).reshape(40, 3) ** 2 % 5
    found = find_strata(case.module, x, near=1e-3, probes=40)
    if name in WHOLE:  # no units are known, so that only the whole deficit is said
        with torch.no_grad():
            for t in (t for t in case.module.parameters() if WHOLE[name]):
                t[1] = t[0]
        found = find_strata(case.module, x, near=1e-3)
        J = exact_jacobian(case.module.double(), x)
        lost = J.shape[-1] - columns_rank(J, torch.arange(J.shape[-1]))
        assert [(s.kind, s.deficit) for s in found] == [("unexplained", lost)]
        return
    assert all(s.kind == "dormant unit" for s in found)
    rows, reader = UNITS.get(name, ([], ""))
    linear = [n for n, m in case.module.named_modules() if isinstance(m, nn.Linear)]
    rows, reader = (
        (rows, reader) if rows else ([f"{linear[0]}.{t}" for t in BN[:2]], linear[1])
    )
    held = case.module.state_dict()
    tied = name == "tied embeddings"  # there a unit is a column of the embedding too
    with torch.no_grad():
        for t in rows:
            held[t][1] = held[t][0]
        if tied:
            held["embed.weight"][:, 1] = held["embed.weight"][:, 0]
    found = find_strata(case.module, x, near=1e-3, probes=40)
    pairs = [s for s in found if s.kind == "overlap" and s.units == (0, 1)]
    assert len(pairs) == 1, found
    assert pairs[0].verified
    if tied:  # rows and columns are one tensor: only that it is found is compared
        return
    twin = make(name).module
    twin.load_state_dict(case.module.state_dict())
    J = exact_jacobian(twin.double(), x.double() if x.is_floating_point() else x)
    where, start = {}, 0
    for n, p in case.module.named_parameters():
        where[n] = torch.arange(start, start + p.numel()).view(p.shape)
        start += p.numel()
    units = [
        torch.cat([where[f"{reader}.weight"][:, k].flatten(),
                   *(where[t][k].flatten() for t in rows if t in where)])
        for k in (0, 1)
    ]  # fmt: skip
    bias = [where[f"{reader}.bias"]] if f"{reader}.bias" in where else []
    if name == "lenet":  # what reads a silent channel is lost in any case
        silent = [c for c in range(3) if not J[..., where["3.bias"][c]].any()]
        read = where["6.weight"].unflatten(1, (3, 4))[:, silent]
        units = [u[~torch.isin(u, read)] for u in units]
    both = columns_rank(J, *units, *bias)
    # what the two share, beyond the biases and what each loses at all weights
    alone = [columns_rank(J, unit, *bias) for unit in units]
    deficit = sum(alone) - both - (columns_rank(J, *bias) if bias else 0)
    assert deficit == pairs[0].deficit


def space_of(case):
    """Where outputs are compared: on the sphere, or as they are for many decisions."""
    return "sphere" if case.y.ndim == 1 else "raw"


def embedded(case, z):
    z = z.flatten(1)
    return z if space_of(case) == "raw" else 2 * z.softmax(1).sqrt()


def drift(case, module):
    """Root mean square change of the embedded outputs of a returned module."""
    a, b = (embedded(case, outputs(m, case.whole)) for m in (case.module, module))
    return float((a - b).double().square().sum(1).mean().sqrt())


def connected(name, case):
    """The path ends in the two networks and is no longer than the straight line."""
    other = make(name, seed=1).module
    found = connect(case.module, other, case.x, steps=30, space=space_of(case))
    for t, end in ((0.0, case.module), (1.0, other)):
        near(
            outputs(found.module(t), case.whole),
            outputs(end, case.whole),
            dtype_of(case),
        )
    if found.statistics != "none":
        return

    def energy(path):
        times = torch.linspace(0, 1, 65, dtype=path.a.dtype)
        points, R = path(times), Realization(case.module)
        z = torch.stack([embedded(case, R(w, case.whole)) for w in points]).double()
        part = (z[1:] - z[:-1]).square().sum((1, 2)) / z.shape[1]
        weights = (points[1:] - points[:-1]).double().square().sum(1)
        return float(64 * (part + 1e-4 * weights).sum())

    line = replace(found.path, control=torch.zeros_like(found.path.control))
    assert energy(found.path) < energy(line) * (1 - 1e-3)


def sparse(name, case):
    """The zeros are there, and the drift is that of the returned module."""
    found = sparsify(case.module, case.x, 0.5, steps=6, space=space_of(case))
    R = Realization(found.module)
    zeros = (R.theta0[matrices(R)] == 0).double().mean()
    assert abs(float(zeros) - found.sparsity) < 1e-9
    assert abs(found.sparsity - 0.5) < 0.05
    slack = BOUND[dtype_of(case)]
    assert abs(drift(case, found.module) - found.drift) < slack * (1 + found.drift)


def sparse_units(name, case):
    """The module is smaller, and the drift is that of the returned module."""
    found = sparsify(
        case.module, case.x, 0.3, structured=True, steps=6, space=space_of(case)
    )
    sizes = [
        sum(p.numel() for p in m.parameters()) for m in (case.module, found.module)
    ]
    assert sizes[1] < sizes[0]
    slack = BOUND[dtype_of(case)]
    assert abs(drift(case, found.module) - found.drift) < slack * (1 + found.drift)


def sequence(name, case):
    """Fine-tuning is Adam on the task's labels; the table is what the weights score."""
    y, x = case.y.clone(), case.x
    y[:3], y[3:] = torch.tensor([0, 1, 0]), 2
    cut = x.__getitem__ if isinstance(x, torch.Tensor) else lambda rows: x
    tasks = [
        Task(cut(rows), y[rows], cut(rows), y[rows], classes)
        for rows, classes in ((slice(3), (0, 1)), (slice(3, None), (2,)))
    ]
    budget = {"gradient_evaluations": 60, "batch": 3}
    tuned = learn_sequence(
        case.module, tasks, "fine-tuning", memory=0, lr=0.1, **budget
    )
    kept = learn_sequence(case.module, tasks, memory=2, **budget)
    twin = make(name).module
    for found in (tuned, kept):
        Realization(twin).load(found.weights)
        for j, task in enumerate(tasks):
            hit = outputs(twin, task.x_test).argmax(1) == task.y_test
            assert abs(found.table[-1, j] - float(hit.double().mean())) < 1e-12
    twin = make(name).module
    for task in tasks:
        adam = torch.optim.Adam(twin.parameters())
        for step in range(20):
            adam.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / 20))
            adam.zero_grad()
            F.cross_entropy(logits(twin(task.x)), task.y).backward()
            adam.step()
    # Adam's first step is the sign of the gradient: rounding of one near zero is not small
    z = outputs(twin, x)
    Realization(twin).load(tuned.weights)
    near(outputs(twin, x), z, dtype_of(case))


def aligned(name, case):
    """The other network's function, no farther than before, at the distance that it says."""
    other = make(name, seed=1).module
    found = align(case.module, other)
    near(outputs(found.module, case.x), outputs(other, case.x), dtype_of(case))
    a, b, c = (
        torch.cat([t.detach().double().flatten() for t in (*m.parameters(), *m.buffers())
                   if t.is_floating_point()])
        for m in (case.module, other, found.module)
    )  # fmt: skip
    near(torch.tensor(found.distance), (a - c).norm(), dtype_of(case))
    assert found.distance <= float((a - b).norm()) * (1 + 1e-6)


def canonical(name, case):
    """The same function, with channels balanced."""
    found = canonicalize(case.module)
    near(outputs(found.module, case.x), outputs(case.module, case.x), dtype_of(case))
    again = canonicalize(found.module)
    slack = BOUND[dtype_of(case)]
    assert abs(again.energy[0] - found.energy[1]) < slack * found.energy[1]


def coefficient(name, case):
    """WBIC on a plane of weight space, against Gauss quadrature of the module's loss."""
    R, n = Realization(case.module), 20
    plane = torch.stack([normal(R.p, s) for s in (7, 8)]).to(R.theta0)

    def loss_of(z):
        return (
            cross_entropy(z.view(len(z), *shape), case) * len(z) / len(case.x)
        ).double()

    shape = outputs(case.module, case.x).shape[1:]

    def loss(t):
        w = R.theta0 + t.to(plane) @ plane
        return torch.stack([loss_of(R(v, case.x)) for v in w])

    one = 0.5 * torch.ones(2, dtype=torch.float64)
    base = float(loss(torch.zeros(1, 2)))
    found = learning_coefficient(loss, n, -one, one, base=base, points=(27, 27))
    twin = make(name).module
    nodes, weights = np.polynomial.legendre.leggauss(24)
    nodes, weights = 0.5 * nodes, 0.25 * weights
    top, bottom = 0.0, 0.0
    for s, ws in zip(nodes, weights, strict=True):
        for t, wt in zip(nodes, weights, strict=True):
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(
                    R.theta0 + torch.tensor([s, t]).to(plane) @ plane,
                    twin.parameters(),
                )
            value = float(loss_of(outputs(twin, case.x)))
            weight = ws * wt * np.exp(-n / np.log(n) * (value - base))
            top, bottom = top + weight * (value - base), bottom + weight
    slow = n / np.log(n) * top / bottom
    assert abs(found.value - slow) < 0.02 * abs(slow) + 1e-3


FUNCTIONS = {
    "jvp": jvp,
    "vjp": vjp,
    "dense": dense,
    "spectrum": spectrum,
    **{f"solve {m}": solving(m) for m in METHODS},
    "KFAC": kfac,
    "NaturalGradient": natural_gradient,
    "audit": audit_sgd,
    "find_strata": strata,
    "connect": connected,
    "sparsify": sparse,
    "sparsify units": sparse_units,
    "learn_sequence": sequence,
    "align": aligned,
    "canonicalize": canonical,
    "learning_coefficient": coefficient,
}
MOVES = ("KFAC", "NaturalGradient", "find_strata")  # these cells write to the module


def outcome(module: str, function: str) -> tuple[str, str]:
    """What came of a cell: right, refused, wrong or raw, and what was said.

    The module, its modes and torch's random state are the same afterwards.
    """
    case = make(module)
    inner = getattr(case.module, "_orig_mod", case.module)
    before = {k: t.clone() for k, t in inner.state_dict().items()}
    modes, random = [m.training for m in inner.modules()], torch.get_rng_state()
    try:
        FUNCTIONS[function](module, case)
        found = "right", ""
    except AssertionError as error:
        found = "wrong", str(error)
    except Exception as error:
        found = (
            "refused" if own_error(error) else "raw",
            f"{type(error).__name__}: {error}",
        )
    if function not in MOVES or found[0] == "refused":
        same = all(torch.equal(t, before[k]) for k, t in inner.state_dict().items())
        same = same and modes == [m.training for m in inner.modules()]
        if not (same and torch.equal(random, torch.get_rng_state())):
            found = "wrong", "the module, its mode or the random state was changed"
    return found
