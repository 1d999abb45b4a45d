"""Steps and shapes: largest learning rates, online SGD, untied and deep expansions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from geolib.data import load
from geolib.regimes import (
    Rule,
    Setup,
    SpectralMeasure,
    draw_weights,
    face,
    gradient_flow,
    marchenko_pastur,
    mean_field,
    narrow,
    prepare,
    small_data,
    theory_curves,
)
from geolib.regimes.loss_curves import logistic, solve
from geolib.regimes.simulate import draw_data
from geolib.regimes.spectral_measures import coarser, gaussian_factor
from geolib.sweep import Sweep, grid
from polytope import hull

# ---- the largest learning rate -------------------------------------------------------


def largest_rate(
    losses: Callable[[Rule, np.ndarray], np.ndarray],
    low: float,
    high: float,
    *,
    steps: int = 150,
    halvings: int = 7,
    **options: float,
) -> float:
    """The largest learning rate that still reaches the loss of a cautious run.

    A rate is good if the loss after `steps` is within .002 of the first loss of what
    `low` reaches in four times as many, from either side; by bisection in the logarithm
    of the rate.

    Args:
        losses: of a rule and two times, the start and the end.
        low, high: a rate that is good, and one that is not.
        steps: of a run.
        halvings: of the logarithm of high / low.
        options: of the `Rule`.
    """

    def ends(lr: float, steps: int) -> np.ndarray:
        rule = Rule(lr, **options)
        return losses(rule, np.array([0, steps]) * rule.stride)

    first, floor = ends(low, 4 * steps)
    for _ in range(halvings):
        middle = float(np.sqrt(low * high))
        good = abs(ends(middle, steps)[1] - floor) < 0.002 * first
        low, high = (middle, high) if good else (low, middle)
    return float(np.sqrt(low * high))


def both_rates(
    name: str, setup: Setup, seed: int, **options: float
) -> tuple[float, float]:
    """The largest rate by a face's small problem, and that of one network."""
    W, X = draw_weights(setup, seed), draw_data(setup, seed)
    if setup.h > setup.d:
        W = np.linalg.qr(W, mode="r")
    covariance = setup.n > setup.d
    data = X @ X.T / setup.n if covariance else X

    def told(rule: Rule, t: np.ndarray) -> np.ndarray:
        return theory_curves(name, t, setup, rule=rule).train

    def found(rule: Rule, t: np.ndarray) -> np.ndarray:
        return gradient_flow(W, data, t, covariance=covariance, rule=rule).train[0]

    low, high = 0.1 / setup.rate, 1.5 / max(1.0, setup.c)
    return tuple(largest_rate(f, low, high, **options) for f in (told, found))


# ---- online SGD ----------------------------------------------------------------------


def online_sgd(
    setup: Setup, lr: float, batch: int, steps: int, every: int, seed: int
) -> np.ndarray:
    """The population loss over d at every so many steps on fresh batches."""
    rng, W = np.random.default_rng([seed, 4]), draw_weights(setup, seed)
    losses = []
    for k in range(steps + 1):
        if k % every == 0:
            A = W.T @ W
            losses.append(((A - np.eye(setup.d)) ** 2).sum() / 2 / setup.d)
        x = rng.standard_normal((setup.d, batch))
        u = W @ x
        z = W.T @ u
        # The gradient of |x - A x|^2 / 2 by the rows of few samples.
        W = W - lr / batch * (u @ (z - x).T + (W @ (z - x)) @ x.T)
    return np.array(losses)


def online_next(times: np.ndarray, law: SpectralMeasure) -> np.ndarray:
    r"""The first correction of large data where every step draws new samples.

    With :math:`V_{ij}` the variance that white noise leaves,

    .. math::
        V_{ij}' &= -8 (a_i + a_j - 1) V_{ij} + (a_i + a_j)^2 (b_i + b_j)^2 \\
        Z_i' &= -4 (2 a_i - 1) Z_i + \sum_j w_j [(b_i + b_j)^2 a_j - 4 V_{ij}]

    Args:
        times: (T,) increasing.
        law: spectral law of the initial map.

    Returns:
        (T,) to be multiplied by (learning rate) d / (batch size) and added to both losses
        over d.

    Source: :eq:`drv-regimes-online` (derivations).
    """
    law, _ = coarser(law, law.nodes, 64)
    w, a0, size = law.weights, law.nodes, law.nodes.size

    def field(time: float, y: np.ndarray) -> np.ndarray:
        a = logistic(a0, time)
        V, Z = y[:-size].reshape(size, size), y[-size:]
        pair = a[:, None] + a
        dV = -8 * (pair - 1) * V + (pair * (pair - 2)) ** 2
        dZ = -4 * (2 * a - 1) * Z + ((pair - 2) ** 2 * a - 4 * V) @ w
        return np.append(dV, dZ)

    states = solve(field, np.zeros(size * (size + 1)), times, 1e-9, 1e-11)
    V, Z = states[:, :-size].reshape(-1, size, size), states[:, -size:]
    b = logistic(a0, np.multiply.outer(times, np.ones(size))) - 1
    return (2 * b * Z + V @ w) @ w / 2


def online_limit(d: int, batch: int, seed: int, steps: int = 120) -> float:
    """The learning rate from which fresh batches drive a square network off A = I.

    From A = I and a small error the loss is followed until its logarithm has a slope.
    """
    rng = np.random.default_rng([seed, 5])
    noise = rng.standard_normal((d, d))
    W0 = np.eye(d) + 1e-6 * (noise + noise.T)

    def slope(lr: float) -> float:
        draws, W = np.random.default_rng([seed, 6]), W0
        for _ in range(steps):
            x = draws.standard_normal((d, batch))
            u = W @ x
            z = W.T @ u
            W = W - lr / batch * (u @ (z - x).T + (W @ (z - x)) @ x.T)
            size = np.abs(W.T @ W - np.eye(d)).max()
            if size > 1e-3 or size < 1e-10:
                break
        return float(np.log(size / np.abs(W0.T @ W0 - np.eye(d)).max()))

    low, high = 0.02 / (2 + d / batch), 4 / (2 + d / batch)
    for _ in range(9):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.sqrt(low * high))


def online_rate(setup: Setup, batch: int, seed: int, steps: int = 400) -> float:
    """The largest learning rate with which fresh batches bring a network to A = I.

    From its own start, to a hundredth of the first population loss, by bisection.
    """
    d, W0 = setup.d, draw_weights(setup, seed)
    if setup.h > d:
        W0 = np.linalg.qr(W0, mode="r")

    def arrives(lr: float) -> bool:
        draws, W = np.random.default_rng([seed, 9]), W0
        first = np.linalg.norm(W0.T @ W0 - np.eye(d))
        for k in range(steps):
            x = draws.standard_normal((d, batch))
            u = W @ x
            z = W.T @ u
            W = W - lr / batch * (u @ (z - x).T + (W @ (z - x)) @ x.T)
            if k % 10 == 9:
                left = np.linalg.norm(W.T @ W - np.eye(d)) / first
                if not left < 1e3 or left < 0.1:
                    return bool(left < 0.1)
        return False

    low, high = 0.1 / (2 + d / batch), 4 / (2 + d / batch)
    for _ in range(8):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if arrives(middle) else (low, middle)
    return float(np.sqrt(low * high))


# ---- populations that decay ----------------------------------------------------------


def power_law_slopes(
    d: int, alpha: float, window: tuple[float, float], seed: int, **sizes: int
) -> dict[str, float]:
    r"""Log-log slopes in time of simulated losses, population variances k^{-alpha}.

    Args:
        d: inputs.
        alpha: of the power law, above 1.
        window: of t lambda_1.
        seed: of weights and data.
        sizes: `h` latents and `n` samples; without n, S is the population's covariance.

    Returns:
        The slopes of the `train` and `population` loss, and of the theory (mean-field
        on the sampled spectrum): `theory` of the first, `theory_population` of the other.
    """
    variances = np.arange(1.0, d + 1) ** -alpha
    h, n = sizes["h"], sizes.get("n")
    rng = np.random.default_rng([seed, 7])
    W = rng.standard_normal((h, d)) * np.sqrt(0.3 / h)
    if h > d:
        W = np.linalg.qr(W, mode="r")
    S = np.diag(variances)
    if n is not None:
        X = np.sqrt(variances)[:, None] * rng.standard_normal((d, n))
        S = X @ X.T / n
    t = np.geomspace(*window, 9)
    options = {"covariance": True, "population": np.diag(variances), "rtol": 1e-5}
    run = gradient_flow(W, S, t, **options)
    values, vectors = np.linalg.eigh(S)
    law = SpectralMeasure.of_eigenvalues(values)
    overlap = variances @ vectors**2
    theory = mean_field(t, 0.3, law=law, overlap=overlap)

    def slope(y: np.ndarray) -> float:
        return float(np.polyfit(np.log(t), np.log(y), 1)[0])

    return {
        "train": slope(run.train[0]),
        "population": slope(run.population[0]),
        "theory": slope(theory.train),
        "theory_population": slope(theory.population),
    }


RHO = 0.3  # of the wide networks on data


def tail_slopes(
    X: np.ndarray, held: np.ndarray, window: tuple[float, float], seed: int
) -> dict[str, Any]:
    r"""The same for data of any spectrum: wide networks against the sum of its tail.

    By the rule that a direction is learned at :math:`4 x t = \log((1 - \rho)/\rho)`, half
    way of its logistic, the losses are the variance in what is left,
    :math:`\tfrac12 \sum_{x_k t < const} x_k` and the held-out variance of the same
    directions.

    Args:
        X: (d, n) training data.
        held: (d, m) others.
        window: of t, over which slopes are fitted.
        seed: of the weights.

    Returns:
        Slopes of the `train` and `held` loss, by the tail sums `tail_train` and
        `tail_held`, and by mean-field on the same spectrum, `theory_train` and
        `theory_held`; and `range_train`, `range_held`, the least and the largest slope
        of tail sums that are cut where the loss of a direction is between nine tenths
        and one tenth of its first value: the logistic averages over these.
    """
    d, rho = len(X), RHO
    rng = np.random.default_rng([seed, 10])
    W = rng.standard_normal((50 * d, d)) * np.sqrt(rho / (50 * d))
    S, P = X @ X.T / X.shape[1], held @ held.T / held.shape[1]
    t = np.geomspace(*window, 9)
    R = np.linalg.qr(W, mode="r")
    run = gradient_flow(R, S, t, covariance=True, population=P, rtol=1e-5)
    values, vectors = np.linalg.eigh(S)
    along = np.einsum("ij,ij->j", vectors, P @ vectors)
    law = SpectralMeasure.of_eigenvalues(values)
    theory = mean_field(t, rho, law=law, overlap=along)

    def slope(y: np.ndarray) -> float:
        return float(np.polyfit(np.log(t), np.log(y), 1)[0])

    def tail(variance: np.ndarray, cut: float) -> float:
        return slope((np.multiply.outer(4 * t, values) < cut) @ variance)

    ends = [1 - (1 - rho) * q**0.5 for q in (0.9, 0.1)]  # the map a of a direction
    cuts = np.geomspace(*(np.log(a / (1 - a) * (1 - rho) / rho) for a in ends), 9)
    found = {
        "train": slope(run.train[0]),
        "held": slope(run.population[0]),
        "theory_train": slope(theory.train),
        "theory_held": slope(theory.population),
    }
    for kind, variance in (("train", values), ("held", along)):
        found[f"tail_{kind}"] = tail(variance, np.log((1 - rho) / rho))
        slopes = [tail(variance, cut) for cut in cuts]
        found[f"range_{kind}"] = [min(slopes), max(slopes)]
    return found


@dataclass(frozen=True)
class Exponents:
    """A data set, of which at most 2,000 rows are taken."""

    name: str


def exponents(spec: Exponents) -> dict[str, Any]:
    """`tail_slopes` on half of the rows, with the other half held out.

    The window is that in which the rule has the third to the (d / 4)-th direction
    learned. Images are pooled to 14 x 14, and the columns of a table have unit variance.
    """
    x = load(spec.name).x
    x = x[np.random.default_rng(20).permutation(len(x))[:2000]].astype(float)
    if x.ndim == 3:
        x = x.reshape(len(x), 14, 2, 14, 2).mean((2, 4)).reshape(len(x), -1)
    else:
        x = x / x.std(0)
    data = prepare(x.T, drop_constant=True)
    half = data.n // 2
    seen, held = data.take(slice(0, half)), data.take(slice(half, None))
    values = np.linalg.eigvalsh(seen.X @ seen.X.T / seen.n)[::-1]
    middle = np.log((1 - RHO) / RHO) / 4
    window = middle / values[2], middle / values[data.d // 4 - 1]
    slopes = tail_slopes(seen.X, held.X, window, 0)
    return {"d": data.d, "n": half, "window": list(window), **slopes}


EXPONENTS = Sweep(
    "exponents",
    exponents,
    {
        "small": lambda: [Exponents("breast_cancer")],
        "full": lambda: grid(Exponents, name=["mnist", "fashion_mnist", "uci/sonar"]),
    },
    text="Slopes of wide networks' losses on data, by the spectrum and by training.",
)


def population_of(d: int, alpha: float) -> np.ndarray:
    """Variances (d,) that fall as k^-alpha, with a mean of one."""
    variances = np.arange(1.0, d + 1) ** -alpha
    return variances / variances.mean()


def size_exponents(name: str, kind: str, alpha: float) -> tuple[float, float]:
    r"""Powers of d in a face's rate and in what its loss moves by, by its monomials.

    With :math:`P_j \sim d^{\max(0, j \alpha - 1)}`, alpha < 1, each derivative of the
    loss over d has the power of its largest monomial; a straight line in the order is
    fitted to orders 2 to 4.
    """
    powers = []
    for s in range(2, 5):
        table = face(name, kind, s, covariance=True)
        powers.append(
            max(
                sum(e * max(0.0, j * alpha - 1) for j, e in enumerate(key[3:], 1))
                for key in table
            )
        )
    rate, first = np.polyfit(range(2, 5), powers, 1)
    return float(rate), float(first)


def learned(
    name: str, d: int, alpha: float, seeds: range
) -> tuple[np.ndarray, np.ndarray]:
    r"""What both losses (2,) gain in a window of a face's own rate, told and found.

    On a population with variances :math:`k^{-\alpha}`. Small data has two samples, and
    its formula needs no draw; mean-field and narrow get each sampled spectrum, narrow
    what its two rows see of it. Over d, for narrow over h; small data's population loss
    over n.
    """
    variances = population_of(d, alpha)
    n = 2 if name == "small-data" else 4 * d
    h = {"mean-field": 50 * d, "narrow": 2, "small-data": d // 2}[name]
    rho = 0.3 if name == "mean-field" else 0.5 * h / d
    end = 3 * n / d if name == "small-data" else 0.5 / variances[0]
    t, told, found = np.array([0.0, end]), [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 11])
        X = np.sqrt(variances)[:, None] * rng.standard_normal((d, n))
        W = gaussian_factor(d, h, rng).T if h > d else rng.standard_normal((h, d))
        W = W * np.sqrt(rho / h)
        options = {"population": np.diag(variances), "rtol": 1e-7, "atol": 1e-10}
        run = gradient_flow(W, X, t, **options)
        unit = {"narrow": [h, h], "small-data": [d, n]}.get(name, [d, d])
        gain = [np.diff(y[0])[0] for y in (run.train, run.population)]
        found.append(np.divide(gain, unit))
        if name == "small-data":
            few, second = small_data(t * d / n, rho, rho * d / h), (variances**2).mean()
            gain = np.diff(few.train)[0]
            told.append([gain, np.diff(few.population)[0] + (second - 1) * gain])
            continue
        values, vectors = np.linalg.eigh(X @ X.T / n)
        values = np.maximum(values, 0.0)
        along = variances @ vectors**2
        if name == "mean-field":
            law = SpectralMeasure.of_eigenvalues(values)
            curves = mean_field(t, rho, law=law, overlap=along)
        else:  # what the drawn rows see of each direction
            seen = ((W @ vectors) ** 2).mean(0)
            law = SpectralMeasure(values, seen / seen.sum())
            curves = narrow(t, seen.sum(), law=law, overlap=along)
        told.append([np.diff(y)[0] for y in curves])
    return np.mean(told, 0), np.mean(found, 0)


def spiked_theory(
    t: np.ndarray, d: int, n: int, spike: float, rho: float
) -> tuple[float, np.ndarray]:
    r"""The largest sample eigenvalue, and both mean-field losses (2, T), by sizes alone.

    Of the population one variance is :math:`\lambda` and the others are 1, :math:`c = d/n`.
    For :math:`\lambda > 1 + \sqrt c` an eigenvalue leaves the bulk,

    .. math:: x = \lambda \Big(1 + \frac{c}{\lambda - 1}\Big), \qquad
        \gamma^2 = \frac{1 - c/(\lambda - 1)^2}{1 + c/(\lambda - 1)} ,

    with :math:`\gamma` the cosine of its vector with the true one (Baik, Ben Arous and
    Péché 2005; Paul 2007); else it stays at the edge of the bulk.
    """
    c = d / n
    bulk = marchenko_pastur(1.0, c)
    if spike <= 1 + c**0.5:
        out = mean_field(t, rho, law=bulk)
        return (1 + c**0.5) ** 2, np.stack(out)
    top = spike * (1 + c / (spike - 1))
    found = (1 - c / (spike - 1) ** 2) / (1 + c / (spike - 1))
    law = SpectralMeasure(
        np.append(bulk.nodes, top), np.append(bulk.weights * (1 - 1 / d), 1 / d)
    )
    missed = np.full(bulk.nodes.size, 1 + (spike - 1) * (1 - found) / (d - 1))
    overlap = np.append(missed, 1 + (spike - 1) * found)
    return top, np.stack(mean_field(t, rho, law=law, overlap=overlap))


def spiked_runs(
    t: np.ndarray, d: int, n: int, spike: float, rho: float, seeds: range
) -> tuple[float, np.ndarray]:
    """The same of wide networks (h = 50 d) on drawn data, the mean over seeds."""
    variances = np.append(np.ones(d - 1), spike)
    tops, losses = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 8])
        X = np.sqrt(variances)[:, None] * rng.standard_normal((d, n))
        W = rng.standard_normal((50 * d, d)) * np.sqrt(rho / (50 * d))
        S, R = X @ X.T / n, np.linalg.qr(W, mode="r")
        options = {"covariance": True, "population": np.diag(variances), "rtol": 1e-5}
        run = gradient_flow(R, S, t, **options)
        tops.append(np.linalg.eigvalsh(S)[-1])
        losses.append([run.train[0] / d, run.population[0] / d])
    return float(np.mean(tops)), np.mean(losses, 0)


# ---- untied and deep networks --------------------------------------------------------

# A letter is (name, transposed); its row and column spaces are "d" (inputs and outputs)
# or "h" (latents). X is d x n.
Letter = tuple[str, bool]
Word = tuple[Letter, ...]


def flip(word: Word) -> Word:
    """The transpose."""
    return tuple((name, not turned) for name, turned in reversed(word))


class Network:
    r"""Planar expansion of :math:`\tfrac12 tr (1 - \Pi) S (1 - \Pi)^T`, by layers.

    :math:`\Pi = W_L \cdots W_1` with every hidden width h. Words in the W, their
    transposes and S are differentiated along :math:`W_l' = W_{>l}^T (1 - \Pi) S
    W_{<l}^T`; the planar mean pairs each letter with one of its transposes, without
    crossings, which counts faces of d, h and n.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [str(k) for k in range(1, layers + 1)]

    @property
    def path(self) -> Word:
        """The map of the network, from its last layer to its first."""
        return tuple((name, False) for name in reversed(self.layers))

    def loss(self, kind: str) -> Counter[Word]:
        """Twice the loss as traces."""
        S: Word = (("S", False),) if kind == "train" else ()
        out: Counter[Word] = Counter({S: 1})
        out[self.path + S] -= 2
        out[self.path + S + flip(self.path)] += 1
        return out

    def velocity(self, name: str) -> list[tuple[Word, int]]:
        """The derivative of one layer as words with signs."""
        k = self.path.index((name, False))
        above, below = flip(self.path[:k]), flip(self.path[k + 1 :])
        S: Word = (("S", False),)
        return [(above + S + below, 1), (above + self.path + S + below, -1)]

    def derive(self, traces: Counter[Word]) -> Counter[Word]:
        """The time derivative of a sum of traces."""
        out: Counter[Word] = Counter()
        for word, factor in traces.items():
            for i, (name, turned) in enumerate(word):
                if name != "S":
                    for piece, sign in self.velocity(name):
                        new = (
                            word[:i]
                            + (flip(piece) if turned else piece)
                            + word[i + 1 :]
                        )
                        out[least(new)] += sign * factor
        return Counter({word: f for word, f in out.items() if f})

    def space(self, letter: Letter) -> str:
        """The space that a letter maps to: d, or h."""
        name, turned = letter
        if name == "S":
            return "d"
        end = self.layers[0] if turned else self.layers[-1]
        return "d" if name == end else "h"

    def planar(self, kind: str, order: int) -> dict[tuple[int, int, int], int]:
        """Twice the planar derivative over d: {(2 l, k, m): coefficient}.

        Of sigma^{2l} d^{l-k} h^k (d / n)^m, with 2 l letters W of variance sigma^2.
        """
        traces = self.loss(kind)
        for _ in range(order):
            traces = self.derive(traces)
        total: Counter[tuple[int, int, int]] = Counter()
        for word, factor in traces.items():
            letters = sum(name != "S" for name, _ in word)
            for (h, m), count in _trace(self, least(word), "d").items():
                total[letters, h, m] += factor * count
        return {key: f for key, f in sorted(total.items()) if f}


@cache
def least(word: Word) -> Word:
    """The first of a trace's rotations and transposes in the alphabet.

    Rotations that begin with an S come last, so that words of weights shrink first.
    """
    both = (word, flip(word))
    turns = [w[i:] + w[:i] for w in both for i in range(len(word))]
    turns = [tuple((n, t if n != "S" else False) for n, t in w) for w in turns]
    return min(turns, default=())


@cache
def _trace(network: Network, word: Word, space: str) -> Counter[tuple[int, int]]:
    """The planar trace of a canonical word: powers of h and of d / n, those of d left out.

    `space` is that of the empty word.
    """
    if not word:
        return Counter({(int(space == "h"), 0): 1})
    (name, turned), rest = word[0], word[1:]
    out: Counter[tuple[int, int]] = Counter()
    pairs = []
    if name == "S":  # words of S alone are left: one S is freed, or linked to another
        out.update(_trace(network, rest, "d"))
        pairs = [
            ((word[0], *rest[:j]), rest[j + 1 :], "d", 1) for j in range(len(rest))
        ]
    for j, (other, back) in enumerate(rest):
        if name != "S" and other == name and back != turned:
            inside = network.space((name, not turned))
            pairs.append((rest[:j], rest[j + 1 :], inside, 0))
    for inner, outer, inside, link in pairs:
        one = _trace(network, least(inner), inside)
        two = _trace(network, least(outer), network.space(word[0]))
        for ((a, b), f), ((c, e), g) in product(one.items(), two.items()):
            out[a + c, b + e + link] += f * g
    return out


def solid(points: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Vertices and facets of the convex hull of lattice points; (0, 0) if it is flat."""
    body = hull(points)
    return (len(body.vertices), len(body.facets)) if body.dimension == 3 else (0, 0)
