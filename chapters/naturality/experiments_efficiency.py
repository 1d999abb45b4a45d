r"""The contest of optimizers on small networks, in raw units and standardised.

    geolib sweep naturality-efficiency --size full             # resumes
    geolib sweep naturality-efficiency --size full --publish
    geolib sweep naturality-mnist --size full                  # a race to 95 % of MNIST

A run is one optimizer on one table: every setting of its grid is trained from the seed
`TUNING`, the one with the least validation error is kept; a grid whose best rate is at its
edge grows until it is not, and the rates half a decade beside the best are tried too. Then
five seeds, each with a published split, a network and an order of batches of its own. Of
every run the validation and test error after each pass are kept, with the processor time
spent in steps. The natural gradient has no grid: its defaults are run, which were set while
trial runs on all tables with the seeds 100, 101, 102 were seen, and earlier ones on yacht,
concrete, energy, wine and naval with the seeds of the contest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matrix_rules import SOAP
from torch import Tensor, nn

from geolib.data import load
from geolib.naturality import NaturalGradient
from geolib.naturality.catalogue import Together
from geolib.networks import Table, lenet, mlp, table
from geolib.sweep import Sweep, grid, measured

TABLES = (
    "yacht",
    "concrete",
    "energy",
    "bostonHousing",
    "wine-quality-red",
    "power-plant",
    "kin8nm",
    "protein-tertiary-structure",
    "naval-propulsion-plant",
)
ROWS = {"train": 400, "validation": 300, "test": 1000}  # at most
HIDDEN, BATCH, PASSES = 20, 64, 20
IMAGES = ("mnist", "fashion_mnist")  # averaged over squares of four pixels
SIZES = {
    "train": 10_000,
    "validation": 5_000,
}  # of the images; all that are for the test
PIXELS = {"digits": 16.0, "digits-conv": 16.0, "mnist": 255.0, "fashion_mnist": 255.0}
UNITS = ("raw", "standardised", "chart")
CONDITION = 100.0  # of the affine charts
TUNING, SEEDS = 10, (0, 1, 2, 3, 4)
RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
EDGE = 4  # decades that a grid may grow by; then the best rate is refined

Setting = dict[str, float]
Make = Callable[[nn.Module, Any, Setting], Any]


@dataclass(frozen=True)
class Data(Table):
    """A table whose `unit` scales the error."""

    unit: float = 1.0

    @property
    def classes(self) -> bool:
        """Whether the targets are classes."""
        return not self.y.is_floating_point()

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Half the mean square, or the cross entropy."""
        if self.classes:
            return nn.functional.cross_entropy(z, y)
        return 0.5 * (z - y).square().mean()

    def error(self, net: nn.Module, x: Tensor, y: Tensor) -> float:
        """Root mean square error in standard deviations, or the share of wrong classes."""
        with torch.no_grad():
            z = net(x)
        if self.classes:
            return float((z.argmax(1) != y).double().mean())
        return float((z - y).square().mean().sqrt()) / self.unit


def data_of(name: str, units: str, seed: int) -> Data:
    """A table; `raw` in the units of the source, else standardised by training rows.

    The rows of images are the same for all seeds.
    """
    if name in IMAGES:
        found = table(name, **SIZES, dtype=torch.float32)
        x = (found.x, found.x_val, found.x_test)
        x = tuple(
            nn.functional.avg_pool2d(t.view(-1, 1, 28, 28), 2).flatten(1) for t in x
        )
        if units == "raw":  # `table` has standardised pixels in [0, 1]
            low, high = float(found.x.min()), float(found.x.max())
            x = tuple(PIXELS[name] * (t - low) / (high - low) for t in x)
        ys = (found.y, found.y_val, found.y_test)
        return Data(*(part for pair in zip(x, ys, strict=True) for part in pair), name)
    kind = name.removesuffix("-conv")
    if kind == "digits":
        d = load(kind, split=seed)
        scale = PIXELS[name] if units == "raw" else 1.0
        x, x_test, y, y_test = d.x * scale, d.x_test * scale, d.y, d.y_test
    else:
        d = load(f"uci/{name}", split=seed % 5)
        x, x_test = d.x, d.x_test
        y, y_test = d.y.reshape(-1, 1), d.y_test.reshape(-1, 1)
    order = np.random.default_rng(seed).permutation(len(x))
    held = min(len(x) // 5, ROWS["validation"])
    val, kept = order[:held], order[held:][: ROWS["train"]]
    unit = 1.0 if kind == "digits" else float(y[kept].std())
    if units != "raw" and kind != "digits":
        mean, sd = x[kept].mean(0), x[kept].std(0)
        sd = np.where(sd > 0, sd, 1.0)
        x, x_test = (x - mean) / sd, (x_test - mean) / sd
        middle = y[kept].mean()
        y, y_test, unit = (y - middle) / unit, (y_test - middle) / unit, 1.0
    parts = (x[kept], y[kept], x[val], y[val], x_test, y_test)
    return Data(*(torch.as_tensor(p[: ROWS["test"]]) for p in parts), name, unit)


def network(data: Data, units: str, seed: int) -> nn.Module:
    """The network of a table: a perceptron, or two convolutions; perhaps in a chart."""
    out = 1 + int(data.y.max()) if data.classes else 1
    if data.name.endswith("-conv"):
        image = nn.Unflatten(1, (1, 8, 8))
        return nn.Sequential(image, lenet(seed, side=8, widths=(8, 16, 32)))
    wide, active = (64, nn.ReLU) if data.name in IMAGES else (HIDDEN, nn.SiLU)
    net = mlp([data.x.shape[1], wide, out], seed, active, data.x.dtype)
    return in_charts(net, seed) if units == "chart" else net


def in_charts(net: nn.Sequential, seed: int) -> nn.Sequential:
    r"""The same function with each layer's parameters in an affine chart.

    A frozen map before a layer and one behind it are undone in its weights:
    :math:`x \mapsto U^{-1}(W'(V^{-1}x + c) + b')`. U and V have condition `CONDITION`.
    """
    rng, parts = np.random.default_rng(seed), list[nn.Module]()

    def drawn(n: int) -> Tensor:
        Q = [np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2)]
        s = CONDITION ** np.linspace(-0.5, 0.5, n) if n > 1 else np.ones(1)
        return torch.as_tensor((Q[0] * s) @ Q[1])

    def frozen(M: Tensor, shift: Tensor) -> nn.Linear:
        layer = nn.Linear(*M.T.shape).double().requires_grad_(False)
        layer.weight.copy_(M)
        layer.bias.copy_(shift)
        return layer

    for layer in net:
        if not isinstance(layer, nn.Linear):
            parts.append(layer)
            continue
        U, V = drawn(layer.out_features), drawn(layer.in_features)
        c = torch.as_tensor(rng.standard_normal(layer.in_features))
        W = U @ layer.weight.detach() @ V
        with torch.no_grad():
            layer.bias.copy_(U @ layer.bias - W @ c)
            layer.weight.copy_(W)
        back = frozen(torch.linalg.inv(U), torch.zeros(len(U)))
        parts += [frozen(torch.linalg.inv(V), c), layer, back]
    return nn.Sequential(*parts)


# ---- the optimizers -------------------------------------------------------------------


def _muon(net: nn.Module, _: Any, s: Setting) -> Any:
    known = [p for p in net.parameters() if p.requires_grad]
    matrices = [p for p in known if p.ndim == 2]
    rest = [p for p in known if p.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=s["lr"], weight_decay=0.0)
    return Together(muon, torch.optim.Adam(rest, lr=s["lr"]))


class Kfac:
    """curvlinops' K-FAC on the batch at hand, its factors every ten steps."""

    def __init__(self, net: nn.Module, loss: Any, s: Setting) -> None:
        self.net, self.loss, self.s, self.count = net, loss, s, 0
        self.params = [p for p in net.parameters() if p.requires_grad]

    def step(self, closure: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        import curvlinops

        closure()
        if self.count % 10 == 0:
            K = curvlinops.KFACLinearOperator(
                self.net,
                self.loss,
                self.params,
                [batch],
                check_deterministic=False,
                fisher_type="type-2",
                separate_weight_and_bias=False,
            )
            self.inverse = curvlinops.KFACInverseLinearOperator(
                K, damping=self.s["damping"], use_heuristic_damping=True
            )
        self.count += 1
        d = self.inverse @ [p.grad for p in self.params]
        with torch.no_grad():
            for p, move in zip(self.params, d, strict=True):
                p.sub_(self.s["lr"] * move)


def _torch(cls: Any, **fixed: Any) -> Make:
    def make(net: nn.Module, _: Any, s: Setting) -> Any:
        known = [p for p in net.parameters() if p.requires_grad]
        return cls(known, **{**fixed, **s})

    return make


MAKERS: dict[str, Make] = {
    "natural": lambda net, _, s: NaturalGradient(net),
    "Adam": _torch(torch.optim.Adam),
    "AdamW": _torch(torch.optim.AdamW),
    "LBFGS": _torch(
        torch.optim.LBFGS, max_iter=1, max_eval=10, line_search_fn="strong_wolfe"
    ),
    "Muon": _muon,
    "SOAP": _torch(SOAP),
    "K-FAC": Kfac,
}
SECOND: dict[str, list[Setting]] = {  # what is tuned beside the rate
    "natural": [],
    "AdamW": [{"weight_decay": w} for w in (0.01, 0.3)],
    "K-FAC": [{"damping": v} for v in (1e-2, 1.0)],
}


# ---- one training ---------------------------------------------------------------------


def epochs(
    method: str, setting: Setting, data: Data, seed: int, passes: int, units: str
) -> Iterator[tuple[float, float, float, float]]:
    """After each pass: passes, seconds in steps, validation and test error."""
    net = network(data, units, seed)
    loss = nn.CrossEntropyLoss() if data.classes else nn.MSELoss()
    optimizer = MAKERS[method](net, loss, setting)
    rng, n = np.random.default_rng(seed), len(data.x)
    size = n if method == "LBFGS" else 2 * BATCH if data.name in IMAGES else BATCH
    done, spent = 0.0, 0.0
    while done < passes:
        order = torch.as_tensor(rng.permutation(n))
        for rows in order.split(size):
            if len(rows) < size // 2:
                continue
            start = time.process_time()
            done += _step(method, optimizer, net, data, rows, loss) * len(rows) / n
            spent += time.process_time() - start
        done = round(done + 1e-9) if method != "LBFGS" else done
        yield (
            done,
            spent,
            data.error(net, data.x_val, data.y_val),
            data.error(net, data.x_test, data.y_test),
        )


def _step(
    method: str, optimizer: Any, net: nn.Module, data: Data, rows: Tensor, loss: Any
) -> int:
    """One step; how often its closure was called."""
    x, y, calls = data.x[rows], data.y[rows], 0

    def pair() -> tuple[Tensor, Tensor]:
        z = net(x)
        return z, data.loss(z, y)

    def backward() -> Tensor:
        nonlocal calls
        calls += 1
        for p in net.parameters():
            p.grad = None
        value = loss(net(x), y) if method == "K-FAC" else data.loss(net(x), y)
        value.backward()
        return value

    if method == "natural":
        optimizer.step(pair)
        return 1
    if method == "K-FAC":
        optimizer.step(backward, (x, y))
        return 1
    optimizer.step(backward)
    return calls if method == "LBFGS" else 1


def train(
    method: str, setting: Setting, data: Data, seed: int, units: str = "raw"
) -> list[tuple[float, float, float, float]]:
    """The curve of `epochs`, cut where a run leaves the finite numbers."""
    curve, passes = [], PASSES // 4 if data.name in IMAGES else PASSES
    try:
        for point in epochs(method, setting, data, seed, passes, units):
            if not all(map(math.isfinite, point)):
                break
            curve.append(point)
    except (ValueError, RuntimeError):  # a gradient or a factor that is not finite
        pass
    return curve


def least(curve: list[tuple[float, float, float, float]]) -> float:
    """The least validation error, infinity for a run that gave none."""
    return min((p[2] for p in curve), default=math.inf)


def tuned(method: str, data: Data, units: str) -> tuple[Setting, bool]:
    """The best setting by validation, and whether its rate is still at an edge."""
    if method == "natural":
        return {}, False
    second = SECOND.get(method, [{}])
    found: dict[tuple[float, int], float] = {}

    def tried(rate: float) -> None:
        for k, extra in enumerate(second):
            curve = train(method, {"lr": rate, **extra}, data, TUNING, units)
            found[rate, k] = least(curve)

    def best() -> tuple[float, int]:
        return min(found, key=lambda key: found[key])

    rates = list(RATES)
    for rate in rates:
        tried(rate)
    for _ in range(EDGE):
        rate = best()[0]
        if rate not in (min(rates), max(rates)):
            break
        rates.append(rate * (10.0 if rate == max(rates) else 0.1))
        tried(rates[-1])
    centre = best()[0]
    edge = centre in (min(rates), max(rates))
    for factor in (10**-0.5, 10**0.5):
        tried(centre * factor)
    rate, k = best()
    return {"lr": rate, **second[k]}, edge


# ---- reading what is stored -----------------------------------------------------------


def stored() -> dict[str, dict[str, dict[str, Any]]]:
    """The published entries: by "table | units", then by optimizer."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    path = Path(__file__).parent / "measured" / "naturality-efficiency.json"
    for key, entry in measured(path).entries.items():
        row, _, method = key.rpartition(" | ")
        found.setdefault(row, {})[method] = entry
    return found


def errors(entry: dict[str, Any], seconds: float = math.inf) -> np.ndarray:
    """Test errors of the seeds, each at its pass of least validation error.

    Args:
        entry: of one optimizer on one table.
        seconds: only passes that ended by then count; the first pass always does.
    """
    scores = []
    for curve in entry["curves"]:
        points = [p for p in curve if p[1] <= seconds] or curve[:1]
        scores.append(min(points, key=lambda p: p[2])[3] if points else math.inf)
    return np.array(scores)


def compared(entries: dict[str, dict[str, Any]], timed: bool = False) -> dict[str, Any]:
    """One row of the contest: the natural gradient, its best rival, and who is ahead.

    The rivals' best is chosen by its mean over seeds; the natural gradient is level with it
    where its own mean is within the standard error of that mean.

    Args:
        entries: of all optimizers on one table.
        timed: at equal time, that of Adam's passes, instead of equal passes.
    """
    limit = math.inf
    if timed:
        limit = float(np.mean([c[-1][1] for c in entries["Adam"]["curves"] if c]))
    found = {name: errors(entry, limit) for name, entry in entries.items()}
    ours = found.pop("natural")
    rival = min(found, key=lambda name: found[name].mean())
    gap, spread = ours.mean() - found[rival].mean(), found[rival].std(ddof=1)
    error = spread / math.sqrt(len(ours))
    ahead = "level" if abs(gap) <= error else "natural" if gap < 0 else rival
    return {
        "natural": float(ours.mean()),
        "best rival": float(found[rival].mean()),
        "which": rival,
        "ahead": ahead,
    }


# ---- the sweep ------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """One optimizer on one table."""

    table: str
    units: str
    method: str


def run(spec: Contest) -> dict[str, Any]:
    """Tune, then run the seeds; curves as lists of numbers."""
    torch.set_num_threads(1)
    start = time.process_time()
    name, units, method = spec.table, spec.units, spec.method
    setting, edge = tuned(method, data_of(name, units, TUNING), units)
    curves = [
        train(method, setting, data_of(name, units, seed), seed, units)
        for seed in SEEDS
    ]
    kept = [[[float(f"{v:.4g}") for v in point] for point in c] for c in curves]
    cpu = round(time.process_time() - start, 1)
    return {"setting": setting, "edge": edge, "curves": kept, "cpu": cpu}


def compact(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A row as the table keeps it, by table, units and optimizer."""
    kept = {k: row[k] for k in ("setting", "edge", "curves", "cpu")}
    return (
        "naturality-efficiency",
        f"{row['table']} | {row['units']} | {row['method']}",
        kept,
    )


def specs(tables: tuple[str, ...], units: tuple[str, ...] = UNITS) -> list[Contest]:
    """Every optimizer on some tables, those in raw units first."""
    return grid(Contest, units=list(units), table=list(tables), method=list(MAKERS))


EFFICIENCY = Sweep(
    "naturality-efficiency",
    run,
    {
        "small": lambda: specs(("yacht",)),
        "book": lambda: specs(TABLES),
        "full": lambda: [
            *specs((*TABLES, "digits")),
            *specs((*IMAGES, "digits-conv"), UNITS[:2]),
        ],
    },
    text="Optimizers on nine UCI tables, digits and images, raw, standardised, in charts.",
    kept_as=compact,
    about={"rows": ROWS, "hidden": HIDDEN, "batch": BATCH, "passes": PASSES},
)


# ---- a race on the whole of MNIST -----------------------------------------------------

BATCHES, TRIALS, RACERS = (512, 256, 1000, 128), (110, 111, 112), (10, 11, 12, 13, 14)
RACE_RATES, GOAL, EVERY, MOST = (0.003, 0.001, 0.01, 0.0003), 0.95, 2560, 10


@dataclass(frozen=True)
class Race:
    """Adam and the natural gradient at one size of batch."""

    batch: int


def reach(
    method: str,
    setting: Setting,
    data: Data,
    batch: int,
    seed: int,
    limit: float = math.inf,
) -> tuple[float, float]:
    """Steps, and processor seconds in steps, until `GOAL` of the test images are right.

    The images are looked at, outside the clock, whenever another 2,560 were trained on, so
    that a large batch does not wait longer for its look than a small one; infinity where
    ten passes or `limit` seconds do not suffice.
    """
    net = mlp([data.x[0].numel(), 128, 10], seed, nn.ReLU, data.x.dtype)
    optimizer, loss = MAKERS[method](net, nn.CrossEntropyLoss(), setting), None
    rng, count, spent = np.random.default_rng(seed), 0, 0.0
    for _ in range(MOST):
        for rows in torch.as_tensor(rng.permutation(len(data.x))).split(batch):
            start = time.process_time()
            _step(method, optimizer, net, data, rows, loss)
            spent += time.process_time() - start
            count += 1
            if spent > limit:
                return math.inf, math.inf
            if count * batch % EVERY >= batch:  # no multiple was passed
                continue
            wrong, most = 0.0, (1 - GOAL) * len(data.x_test)
            for x, y in zip(
                data.x_test.split(1000), data.y_test.split(1000), strict=True
            ):
                wrong += data.error(net, x, y) * len(x)
                if wrong > most + 0.5:
                    break
            else:
                return count, spent
    return math.inf, math.inf


def race(spec: Race) -> dict[str, Any]:
    """Adam's rate by its mean time over the trial seeds; then both, seed by seed in turn.

    A trial of Adam is given up at twice the least mean time so far.
    """
    torch.set_num_threads(1)
    found = table("mnist", validation=0, dtype=torch.float32)
    data = Data(
        found.x, found.y, found.x_val, found.y_val, found.x_test, found.y_test, "mnist"
    )

    def runs(method: str, setting: Setting, limit: float = math.inf) -> list[Any]:
        return [reach(method, setting, data, spec.batch, k, limit) for k in TRIALS]

    def mean(pairs: list[Any]) -> float:
        return float(np.mean([t for _, t in pairs]))

    ours, tried = runs("natural", {}), dict[float, list[Any]]()
    for rate in RACE_RATES:
        limit = 2 * min(map(mean, (ours, *tried.values())))
        tried[rate] = runs("Adam", {"lr": rate}, limit)
    rate = min(RACE_RATES, key=lambda r: mean(tried[r]))
    trial = {"natural": ours, "Adam": tried[rate]}
    final: dict[str, list[Any]] = {"natural": [], "Adam": []}
    for seed in RACERS:
        for method, setting in (("natural", {}), ("Adam", {"lr": rate})):
            final[method].append(reach(method, setting, data, spec.batch, seed))
    means = [mean(tried[r]) for r in RACE_RATES]
    seconds = [round(t, 3) if math.isfinite(t) else None for t in means]
    return {"rate": rate, "seconds": seconds, "trial": trial, "final": final}


MNIST = Sweep(
    "naturality-mnist",
    race,
    {
        "small": lambda: grid(Race, batch=[512]),
        "book": lambda: grid(Race, batch=list(BATCHES)),
        "full": lambda: grid(Race, batch=list(BATCHES)),
    },
    text="Adam and the natural gradient to 95 % of MNIST's test images, in seconds.",
    kept_as=lambda _, row: (
        "naturality-mnist",
        str(row["batch"]),
        {k: row[k] for k in ("rate", "seconds", "trial", "final")},
    ),
    about={"trials": TRIALS, "seeds": RACERS, "rates": RACE_RATES, "goal": GOAL},
    version=2,
)


def raced() -> dict[str, dict[str, Any]]:
    """The published entries of the race, by size of batch."""
    path = Path(__file__).parent / "measured" / "naturality-mnist.json"
    found = measured(path).entries
    return {str(b): found[str(b)] for b in BATCHES if str(b) in found}
