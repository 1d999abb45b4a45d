"""The simulator: gradient flow of a linear autoencoder on Gaussian or given data.

With :math:`A = W^T W`, :math:`B = A - I`, :math:`S = X X^T / n` the flow of the
training loss is :math:`W' = -W (B S + S B)`. Four formulations of it differ in what they
keep in memory; `choose` takes the cheapest that fits the promise that no d x d matrix
is formed when h is small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from geolib.core import IntegrationError, Trajectory
from geolib.core.validation import expect
from geolib.regimes.descent import Rule, descend
from geolib.regimes.loss_curves import follow
from geolib.regimes.setup import Setup, check_covariance, check_times
from geolib.regimes.spectral_measures import gaussian_factor

# Local errors are summed as if the flow carried them unchanged; where it spreads them
# the sum came out up to 4 times too small on the setups of the tests.
SAFETY = 5.0
CHUNK = 4096  # samples drawn at once: bounds memory when n is far above d


# ---- four formulations of one flow ---------------------------------------------------

FORMS = ("gram", "covariance", "latent", "samples")


def trace_product(a: Tensor, b: Tensor) -> Tensor:
    """The inner product <a, b> of each member of a batch, shape (batch,)."""
    return (a * b).flatten(1).sum(1)


@dataclass
class FlowProblem:
    """Data of a batch of flows: `S` or `X` (b, d, n), and the population.

    `S` is (b, d, d), or (b, d): the eigenvalues where S is diagonal.
    `P` (d, d) or (b, d, d) is the population covariance, None for the identity. `target=False`
    drops the target: the flow of the loss with :math:`B` replaced by :math:`A`.
    `seen` (d,) stands for a diagonal S where the training loss is read, not in the flow.
    """

    d: int
    n: int
    S: Tensor | None = None
    X: Tensor | None = None
    P: Tensor | None = None
    target: bool = True
    seen: Tensor | None = None

    @property
    def trace(self) -> Tensor:
        """tr S, shape (batch,)."""
        if self.seen is not None:
            return self.seen.sum()[None]
        if self.S is not None:
            return (self.S if self.S.ndim == 2 else _diagonal(self.S)).sum(1)
        assert self.X is not None
        return self.X.square().flatten(1).sum(1) / self.n

    @cached_property
    def blind(self) -> int:
        """How many inputs come first on which a diagonal S is zero."""
        if self.S is None or self.S.ndim == 3:
            return 0
        return int((self.S != 0).any(0).int().argmax())

    def by_s(self, M: Tensor) -> Tensor:
        """S M for M (b, d, k)."""
        assert self.S is not None
        return self.S[:, :, None] * M if self.S.ndim == 2 else self.S @ M


class Gram:
    r"""State A (b, d, d): :math:`A' = -(C A + A C)`, :math:`C = S B + B S`.

    Two d x d x d products an evaluation. For h >= d: a small error in a null direction
    of A grows like e^{4xt}, so that for h < d the rank would leak away at long times.
    """

    def __init__(self, problem: FlowProblem) -> None:
        self.p = problem

    def start(self, W: Tensor) -> Tensor:
        return W.mT @ W

    def _error(self, A: Tensor) -> Tensor:
        """B = A - I, or A itself without the target."""
        B = A.clone()
        _diagonal(B).sub_(float(self.p.target))
        return B

    def flow(self, A: Tensor) -> Tensor:
        blind = self.p.blind
        if 2 * blind > A.shape[1]:  # S is diagonal and of low rank: two thin products
            assert self.p.S is not None
            s, B = self.p.S[:, blind:, None], A[:, blind:].clone()
            _diagonal(B[:, :, blind:]).sub_(float(self.p.target))
            D = B.mT @ (s * A[:, blind:])
            D[:, blind:] += s * (B @ A)
        else:
            N = self.p.by_s(self._error(A))
            D = (N + N.mT) @ A
        return (D + D.mT).neg_()

    def losses(self, A: Tensor, dA: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        """Train and population loss, and the first-order effect of the error `e`."""
        B, seen = self._error(A), self.p.seen
        N = self.p.by_s(B) if seen is None else seen[:, None] * B
        M = B if self.p.P is None else self.p.P @ B
        pair = (trace_product(N, B) / 2, trace_product(M, B) / 2)
        return *pair, trace_product(N, e).abs(), trace_product(M, e).abs()


class _Weights:
    """State W (b, h, d); subclasses supply G = W S and the flow."""

    def __init__(self, problem: FlowProblem) -> None:
        self.p = problem
        self.two = 2.0 if problem.target else 0.0
        self.base = problem.trace / 2 if problem.target else 0.0 * problem.trace
        P = problem.P
        self.size = float(problem.d) if P is None else _diagonal(P).sum(-1)

    def start(self, W: Tensor) -> Tensor:
        return W.clone()

    def image(self, W: Tensor) -> Tensor:
        raise NotImplementedError

    def flow(self, W: Tensor) -> Tensor:
        r""":math:`W' = -(K G + Q W - 2 G)`, K = W W^T, Q = G W^T, as two products."""
        G = self.image(W)
        h = W.shape[1]
        both = torch.cat((W, G), 1) @ W.mT  # (b, 2h, h): K above Q
        KQ = torch.cat((both[:, h:], both[:, :h]), 2)  # (b, h, 2h): Q beside K
        return torch.baddbmm(G, KQ, torch.cat((W, G), 1), beta=self.two, alpha=-1.0)

    def losses(self, W: Tensor, dW: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        """Train and population loss, and the first-order effect of the error `e`."""
        G = self.image(W) if self.p.seen is None else W * self.p.seen
        K, Q = W @ W.mT, G @ W.mT
        train = self.base - self.two / 2 * _diagonal(Q).sum(1) + trace_product(K, Q) / 2
        H, R = (W, K) if self.p.P is None else (W @ self.p.P, (W @ self.p.P) @ W.mT)
        base = self.size / 2 if self.p.target else 0.0
        population = base - self.two / 2 * _diagonal(R).sum(1) + trace_product(K, R) / 2
        slope = (K @ W) * 2 if self.p.P is None else K @ H + R @ W
        slope -= self.two * H
        # The training loss falls along its own flow: its gradient is -dW.
        return train, population, *(trace_product(v, e).abs() for v in (dW, slope))


class Covariance(_Weights):
    """G = W S with S kept (d x d): many samples, moderate width."""

    def image(self, W: Tensor) -> Tensor:
        return self.p.by_s(W.mT).mT

    def flow(self, W: Tensor) -> Tensor:
        """A diagonal S of rank r leaves 6 h d r or 4 h d^2 operations, if that is less."""
        blind, S, (h, d) = self.p.blind, self.p.S, W.shape[1:]
        assert S is not None
        if S.ndim == 3 or 4 * h <= min(2 * d, 3 * (d - blind)):
            return super().flow(W)
        if 2 * d < 3 * (d - blind):
            C = W.mT @ W
            _diagonal(C).sub_(self.two / 2)
            return W @ C.mul_(-S[:, None] - S[:, :, None])
        s, seen = -S[:, None, blind:], W[:, :, blind:]
        B = seen.mT @ W
        _diagonal(B[:, :, blind:]).sub_(self.two / 2)
        out = (seen * s) @ B
        out[:, :, blind:] += (W @ B.mT) * s
        return out


class Latent(_Weights):
    """G = (W X) X^T / n with the data kept: no d x d matrix anywhere."""

    def image(self, W: Tensor) -> Tensor:
        assert self.p.X is not None
        return (W @ self.p.X) @ self.p.X.mT / self.p.n


class Samples(Latent):
    r"""For few samples: U = W X, Z = W^T U,
    :math:`W' = ((2 U - W Z) X^T - U Z^T) / n`, with no h x h matrix in the flow."""

    def flow(self, W: Tensor) -> Tensor:
        X = self.p.X
        assert X is not None
        U = W @ X
        Z = W.mT @ U
        V = torch.baddbmm(U, W, Z, beta=self.two, alpha=-1.0)
        left, right = torch.cat((V, -U), 2), torch.cat((X, Z), 2)
        return left @ right.mT / self.p.n


def _diagonal(Q: Tensor) -> Tensor:
    return Q.diagonal(dim1=-2, dim2=-1)


Form = type[Gram] | type[_Weights]
KINDS: tuple[Form, ...] = Gram, Covariance, Latent, Samples
BY_NAME = dict(zip(FORMS, KINDS, strict=True))


def flops(form: str, d: int, h: int, n: int) -> float:
    """Floating-point operations of one evaluation of the flow, products only.

    Examples:
        >>> flops("gram", 10, 10, 40)
        4000.0
    """
    square, latents, data = 2.0 * h * d * d, 8.0 * h * h * d, h * d * n
    each = 4.0 * d**3, square + latents, 4.0 * data + latents, 10.0 * data
    return each[FORMS.index(form)]


def choose(d: int, h: int, n: int, weights: bool = False) -> str:
    """The cheapest form; when 8 h < d only those that form no d x d matrix.

    The Gram form is for h >= d only, where A has no null space to keep.

    `weights=True` keeps to those whose state is W: a step of length epsilon is then a
    step of gradient descent, which it is not in A.

    Examples:
        >>> choose(64, 64, 4096), choose(64, 64, 4), choose(1600, 11, 1600)
        ('gram', 'samples', 'latent')
    """
    allowed = FORMS[2:] if 8 * h < d else FORMS[weights or h < d :]
    return min(allowed, key=lambda form: flops(form, d, h, n))


# ---- draws and runs ------------------------------------------------------------------


@dataclass(frozen=True)
class LossTrajectory:
    """Losses along a batch of flows; rows are seeds, columns are times.

    Attributes:
        times: (T,).
        train, population: (seeds, T) sums over the d coordinates, not divided by d.
        train_error, population_error: (seeds, T) the simulator's own estimates of the
            integration error.
        trace: (seeds,) tr S of each draw: twice the training loss of the zero map.
        d: input dimension.
        form: the formulation that ran.
        work: what the integration of a flow cost; of its states only the last.
    """

    times: np.ndarray
    train: np.ndarray
    population: np.ndarray
    train_error: np.ndarray
    population_error: np.ndarray
    trace: np.ndarray
    d: int
    form: str
    work: Trajectory | None

    @property
    def error(self) -> float:
        """Largest estimated error of either loss, relative to its initial value."""
        train = self.train_error / np.maximum(self.train[:, :1], 1e-300)
        population = self.population_error / np.maximum(self.population[:, :1], 1e-300)
        return float(max(train.max(), population.max()))


def draw_weights(setup: Setup, seed: int) -> np.ndarray:
    r"""The initial weights of one seed are independent normal numbers.

    .. math:: W_{ij} \sim N(0, \sigma^2)

    Args:
        setup: the sizes and the variance.
        seed: any whole number >= 0; the same seed gives the same draw.

    Returns:
        (h, d) float64.

    Source: Golikov, Gusev and Yarotsky 2026.

    Examples:
        >>> draw_weights(Setup(4, 2, 8, 0.1), seed=0).shape
        (2, 4)
    """
    rng = np.random.default_rng([seed, 0])
    return rng.standard_normal((setup.h, setup.d)) * np.sqrt(setup.sigma2)


def draw_covariance(setup: Setup, seed: int) -> np.ndarray:
    r"""The sample covariance of one seed comes from chunks of samples.

    .. math:: S = X X^T / n

    It is that of `simulate`'s data, without ever holding the n samples together.

    Args:
        setup: the sizes.
        seed: any whole number >= 0; the same seed gives the same draw.

    Returns:
        (d, d) float64.

    Cost: n d^2 operations, memory for 4096 samples.

    Source: Golikov, Gusev and Yarotsky 2026.

    Examples:
        >>> S = draw_covariance(Setup(3, 2, 5000, 0.1), seed=0)
        >>> bool(np.abs(S - np.eye(3)).max() < 0.1)
        True
    """
    rng = np.random.default_rng([seed, 1])
    S = np.zeros((setup.d, setup.d))
    for first in range(0, setup.n, CHUNK):
        x = rng.standard_normal((min(CHUNK, setup.n - first), setup.d))
        S += x.T @ x
    return S / setup.n


def draw_wishart(setup: Setup, seed: int) -> np.ndarray:
    """S (d, d) in law that of `draw_covariance`, without the n samples.

    Raises:
        ValueError: n < d, where samples are fewer numbers.
    """
    expect(setup.n >= setup.d, "n", f"n >= d = {setup.d}, to draw S alone", setup.n)
    L = gaussian_factor(setup.d, setup.n, np.random.default_rng([seed, 2]))
    return L @ L.T / setup.n


def draw_data(setup: Setup, seed: int) -> np.ndarray:
    """The training data X (d, n) of one seed, one sample a column, float64."""
    rng = np.random.default_rng([seed, 1])
    return np.ascontiguousarray(rng.standard_normal((setup.n, setup.d)).T)


def simulate(
    setup: Setup,
    times: ArrayLike,
    *,
    seeds: int | Iterable[int] = 1,
    target: bool = True,
    draw: Annotated[str, ("samples", "wishart")] = "samples",
    form: str = "auto",
    rule: Rule | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> LossTrajectory:
    r"""The gradient flow of the training loss runs from Gaussian weights on Gaussian data.

    .. math::
        L_{train} = \tfrac{1}{2n} \sum_i |x_i - W^T W x_i|^2 , \qquad
        L_{pop} = \tfrac12 |I - W^T W|_F^2 , \qquad W' = -\nabla L_{train}(W)

    Args:
        setup: the sizes and the initial variance.
        times: (T,) increasing output times.
        seeds: how many seeds (0, 1, ...) or which; they run as one batch.
        target: False drops the target (the flow of the free regime).
        draw: `samples`, or `wishart` to draw S itself where no samples are needed,
            which takes d^2 / 2 numbers instead of n d (other draws, the same law).
        form: how the products are arranged: `auto`, `gram`, `covariance`, `latent` or
            `samples`.
        rule: steps in discrete time instead of the flow; `times` are whole numbers of
            them, and a loss is infinite from where a run has diverged.
        rtol, atol: tolerance of the adaptive method that follows the flow.
        dtype, device: of the flow; draws are NumPy float64 whatever they are.

    Returns:
        `LossTrajectory` with (seeds, T) losses, their stated errors and tr S.

    Raises:
        ValueError: an unknown form, bad times, no seed.
        MemoryError: the run would not fit, with its size.
        IntegrationError: the flow could not be followed.

    Cost: the cheapest of 4 d^3, 2 h d^2 + 8 h^2 d, 4 h d n + 8 h^2 d and 10 h d n
    operations an evaluation and seed, about 300 evaluations on [0, 3 / T].

    Source: :eq:`drv-regimes-flow` and :eq:`drv-regimes-error` (derivations).

    Examples:
        >>> run = simulate(Setup(8, 8, 64, 0.1), [0.0, 1.0])
        >>> bool(run.train[0, 1] < run.train[0, 0])
        True
    """
    chosen = _seeds(seeds)
    form = _form(form, setup.d, setup.h, setup.n, rule)
    memory_needed(setup, len(chosen), form, dtype)

    def place(draws: Iterable[np.ndarray]) -> Tensor:
        whole = torch.stack([torch.as_tensor(a) for a in draws])
        return whole.to(device, dtype)

    W = place(draw_weights(setup, s) for s in chosen)
    if form in ("gram", "covariance"):
        source = draw_wishart if draw == "wishart" else draw_covariance
        S = place(source(setup, s) for s in chosen)
        problem = FlowProblem(setup.d, setup.n, S=S, target=target)
    else:
        X = place(draw_data(setup, s) for s in chosen)
        problem = FlowProblem(setup.d, setup.n, X=X, target=target)
    return run(W, problem, times, form, rule, rtol, atol)


def gradient_flow(
    W0: ArrayLike | Tensor,
    data: ArrayLike | Tensor,
    times: ArrayLike,
    *,
    population: ArrayLike | Tensor | None = None,
    covariance: bool = False,
    target: bool = True,
    form: str = "auto",
    rule: Rule | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> LossTrajectory:
    r"""The same flow runs from given weights on given data.

    .. math:: W' = -W (B S + S B), \qquad B = W^T W - I

    Args:
        W0: (h, d) initial weights; dtype and device of a tensor are kept.
        data: (d, n), one sample a column; or S (d, d) with `covariance=True`.
        times: (T,) increasing output times.
        population: (d, d) covariance that the population loss is taken over;
            default the identity.
        covariance: says that `data` is S itself.
        target, form, rule, rtol, atol: as in `simulate`.

    Returns:
        `LossTrajectory` with (1, T) losses.

    Raises:
        ValueError: shapes that do not fit together, NaN or infinite entries, or a
            form that needs samples when only S was given.

    Source: :eq:`drv-regimes-flow` (derivations).

    Examples:
        >>> run = gradient_flow(np.eye(2) * 0.5, np.eye(2), [0.0, 1.0], covariance=True)
        >>> float(run.train[0, 0])        # (1 - 1/4)^2 for two coordinates, halved
        0.5625
    """
    W = _matrix("W0", W0)[None]
    D = _matrix("data", data).to(W)
    h, d = W.shape[1:]
    fits = D.shape[0] == d and (not covariance or D.shape[1] == d)
    wanted = f"shape ({d}, {d if covariance else 'n'}), as W0 has {d} columns"
    expect(fits, "data", wanted, tuple(D.shape))
    P = None
    if population is not None:
        known = check_covariance(_matrix("population", population).cpu(), d)
        P = torch.as_tensor(known).to(W)
    n = max(d, 1) if covariance else D.shape[1]
    if covariance:
        cheapest = "gram" if d <= h and rule is None else "covariance"
        form = cheapest if form == "auto" else _form(form, d, h, n, rule)
        expect(form in FORMS[:2], "form", "one that needs no samples, with S", form)
    else:
        form = _form(form, d, h, n, rule)
    memory_needed(Setup(d, h, n, 1.0), 1, form, W.dtype)
    if form in ("latent", "samples"):
        problem = FlowProblem(d, n, X=D[None], P=P, target=target)
    else:
        S = D if covariance else D @ D.mT / n
        problem = FlowProblem(d, n, S=S[None], P=P, target=target)
    try:
        return run(W, problem, times, form, rule, rtol, atol)
    except IntegrationError as error:
        raise IntegrationError(f"W0, data, times: {error}") from error


def run(
    W: Tensor,
    problem: FlowProblem,
    times: ArrayLike,
    form: str,
    rule: Rule | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> LossTrajectory:
    """Follow one prepared batch; see `simulate` and `gradient_flow`."""
    t, law, path = check_times(times), BY_NAME[form](problem), None
    if rule is not None:
        found = descend(law, law.start(W), rule, t)
        parts = [*found, *map(torch.zeros_like, found)]
    else:
        rows, path = follow(law.flow, law.start(W), t, law.losses, rtol=rtol, atol=atol)
        parts = [torch.stack(part, 1) for part in zip(*rows, strict=True)]
    arrays = [part.double().cpu().numpy() for part in (*parts, problem.trace)]
    train, population, off, away, trace = arrays
    errors = SAFETY * off, SAFETY * away
    return LossTrajectory(t, train, population, *errors, trace, problem.d, form, path)


def memory_needed(setup: Setup, seeds: int, form: str, dtype: torch.dtype) -> int:
    """Bytes that a run holds at its peak: data, ten states and scratch.

    Raises:
        MemoryError: that is more than this machine has.

    Examples:
        >>> memory_needed(Setup(1024, 1024, 4096, 1e-3), 1, "gram", torch.float64) >> 20
        120
    """
    d, h, n = setup.d, setup.h, setup.n
    by_samples = form in ("latent", "samples")
    state = d * d if form == "gram" else h * d
    numbers = 14 * state + (d * n + 4 * h * n if by_samples else d * d)
    need = seeds * numbers * torch.empty((), dtype=dtype).element_size()
    if need > (free := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise MemoryError(
            f"the run needs about {need / 2**30:.3g} GiB of {free / 2**30:.3g} GiB; "
            "take fewer seeds, smaller sizes, or dtype=torch.float32"
        )
    return need


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    chosen = range(seeds) if isinstance(seeds, int) else list(seeds)
    fits = 0 < len(chosen) < 10**6 and min(chosen) >= 0
    expect(fits, "seeds", "one or more, below a million, none negative", seeds)
    return list(chosen)


def _form(form: str, d: int, h: int, n: int, rule: Rule | None) -> str:
    if form == "auto":
        return choose(d, h, n, weights=rule is not None)
    allowed = FORMS[rule is not None :]
    expect(form in allowed, "form", f"'auto' or one of {allowed}", form)
    return form


def _matrix(name: str, value: ArrayLike | Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(np.asarray(value, dtype=np.float64))
    M = value.detach()
    expect(M.ndim == 2 and M.numel() > 0, name, "a matrix", tuple(M.shape))
    expect(bool(torch.isfinite(M).all()), name, "finite entries", "NaN or infinity")
    return M
