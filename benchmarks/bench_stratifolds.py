"""Stratifolds: batched descent against a Python loop, and mixture fits against EM."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.harness import (
    DisagreementError,
    Peer,
    Result,
    benchmark,
    race,
    version_of,
)

SEED = 0
TRUTH = (0.3, 2.0)


def _mixture_a(starts: int) -> tuple[Any, Any, Any]:
    from geolib.stratifolds import mixture_a, resolve

    S = mixture_a()
    chart = resolve(S, eps=0.1, kind="tube").chart
    theta = S.sample_stratum(2, starts, seed=SEED + 1)
    return S.objective(torch.tensor(TRUTH, dtype=torch.float64)), chart, theta


@benchmark(
    "stratifolds.descent",
    bar="<= 10",
    of="ours",
    size="400 starts x 5000 steps, tube chart",
)
def descent() -> Result:
    """CPU seconds of a batched descent of mixture A with no row leaving early."""
    from geolib.stratifolds import descend

    kl, chart, theta = _mixture_a(400)
    eta = chart.to_chart(theta)
    begin = time.process_time()
    # no tolerance and no stall test: all 400 rows run all 5000 steps
    run = descend(kl, chart, eta, lr=0.1, steps=5000, tol=-np.inf, stall=-1.0)
    seconds = time.process_time() - begin
    return Result(
        ours=seconds,
        unit="s",
        note=f"The largest divergence left is {run.loss.max():.1e}.",
    )


def _loop(kl: Any, chart: Any, eta0: torch.Tensor, steps: int) -> torch.Tensor:
    """One start at a time, gradients by autograd."""
    ends = []
    for start in eta0:
        eta = start[None]
        for _ in range(steps):
            leaf = eta.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(kl.value(chart.embed(leaf)).sum(), leaf)
            step = 0.1 * g
            step = step * min(1.0, 1.0 / max(float(step.norm()), 1e-300))
            eta = chart.project(eta - step)
        ends.append(eta[0])
    return torch.stack(ends)


def against_loop(starts: int) -> Result:
    """Ten steps of descent from so many starts: batched, and one after the other."""
    from geolib.stratifolds import descend

    kl, chart, theta = _mixture_a(starts)
    eta = chart.project(chart.to_chart(theta))

    def ours() -> torch.Tensor:
        run = descend(kl, chart, eta, lr=0.1, steps=10, tol=-np.inf, stall=-1.0)
        return run.eta

    def loop() -> Any:
        return lambda: _loop(kl, chart, eta, 10)

    def gap(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    return race(ours, {"torch": loop}, agree=gap, within=1e-10, rounds=3)


@benchmark(
    "stratifolds.batching", bar="<= 0.0333", size="400 starts x 10 steps, mixture A"
)
def batching() -> Result:
    """Batched descent against a Python loop over starts with autograd."""
    return against_loop(400)


TIMED = 40  # EM passes that a peer is timed on
CAP = 3000  # passes after which EM is given up


def _planar(n: int, near: float | None) -> tuple[Any, Any, Any]:
    """Ten unit Gaussians six apart; with `near`, the second that close to the first."""
    from geolib.stratifolds import GaussianMixture

    rng = np.random.default_rng(SEED + 3)
    means = np.array([(6.0 * i, 6.0 * j) for i in range(4) for j in range(3)])[:10]
    means -= means.mean(0)
    if near is not None:
        means[1] = means[0] + [near, 0.0]
    eye = torch.eye(2, dtype=torch.float64).repeat(10, 1, 1)
    weights = torch.full((10,), 0.1, dtype=torch.float64)
    truth = GaussianMixture(weights, torch.tensor(means), eye)
    off = torch.tensor(rng.normal(size=means.shape)) * 0.3
    start = GaussianMixture(weights, truth.means + off, eye)
    return truth.sample(n, seed=SEED + 4), start, truth


def _sklearn(x: torch.Tensor, start: Any, passes: int) -> Any:
    """The fit to time, and the likelihood where it ends."""
    import warnings

    from sklearn.mixture import GaussianMixture

    settings = {"tol": 0.0, "reg_covar": 0.0, "max_iter": passes}
    model = GaussianMixture(
        len(start.weights),
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=torch.linalg.inv(start.covariances).numpy(),
        **settings,
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it did not converge
            model.fit(x.numpy())

    return run, lambda: float(model.score(x.numpy()))


def _pomegranate(x: torch.Tensor, start: Any, passes: int) -> Any:
    """The same of pomegranate, in float64 like the others."""
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    parts = [
        Normal(m, c, covariance_type="full")
        for m, c in zip(start.means, start.covariances, strict=True)
    ]
    model = GeneralMixtureModel(
        parts, priors=start.weights, max_iter=passes, tol=-np.inf
    )

    return lambda: model.fit(x), lambda: float(model.log_probability(x).mean())


def _fits(near: float | None, n: int) -> Result:
    """Time to within 1e-6 nats a point of the same maximum, from the same start.

    EM is one algorithm: a peer is timed on its first passes, must have the likelihood
    that our own EM has there, and is charged for as many passes as EM needs.
    """
    from geolib.stratifolds import em_fit, fit_mixture

    x, start, truth = _planar(n, near)
    # near overlap there are several maxima: the one to reach is that next to the truth
    best = fit_mixture(x, truth, tol=1e-13).log_likelihood[-1]
    target = best - 1e-6
    begin = time.process_time()
    slow = em_fit(x, start, max_iter=CAP, tol=-np.inf, target=target)
    per_pass = (time.process_time() - begin) / max(slow.iterations, 1)
    passes, timed = slow.iterations, min(slow.iterations, TIMED)
    fit, seconds = _seconds(lambda: fit_mixture(x, start, tol=0.0, target=target))
    if not fit.log_likelihood[-1] >= target:
        raise DisagreementError(f"ours ends {best - fit.log_likelihood[-1]:.1e} short")
    peers = []
    for name, prepare in (("scikit-learn", _sklearn), ("pomegranate", _pomegranate)):
        try:
            run, score = prepare(x, start, timed)
        except ImportError as error:
            peers.append(Peer(name, not_run=str(error)))
            continue
        spent = _seconds(run)[1]
        error = abs(score() - slow.log_likelihood[timed])
        if not error < 1e-6:
            raise DisagreementError(f"{name}: {error:.1e} nats from EM's likelihood")
        spent *= passes / timed
        peers.append(
            Peer(name, version_of(name), spent, seconds / spent, agreement=error)
        )
    short = best - slow.log_likelihood[-1]
    end = "is there" if slow.converged else f"is still {short:.0e} nats short"
    note = (
        f"The goal is 1e-6 nats a point. EM {end} after {passes} passes, ours is there "
        f"after {fit.iterations}. The peers are timed on {timed} passes and charged for "
        f"all; our own EM would take {per_pass * passes:.3g} s."
    )
    return Result(ours=seconds, unit="s", peers=tuple(peers), note=note)


def _seconds(call: Any) -> tuple[Any, float]:
    """A call's value and its CPU seconds, once: a fit is no matter of milliseconds."""
    begin = time.process_time()
    value = call()
    return value, time.process_time() - begin


@benchmark(
    "stratifolds.gmm_apart",
    bar="<= 1",
    size="K = 10, d = 2, 1e5 points, components 6 apart",
)
def gmm_apart() -> Result:
    """Maximum-likelihood fit of a well-separated mixture, time to equal likelihood."""
    return _fits(None, 100_000)


@benchmark(
    "stratifolds.gmm_overlap",
    bar="<= 1",
    size="K = 10, d = 2, 1e5 points, two components 0.8 apart",
    slow=True,
)
def gmm_overlap() -> Result:
    """Maximum-likelihood fit near overlap, time to equal likelihood."""
    return _fits(0.8, 100_000)
