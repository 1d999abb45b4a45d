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
    eta = chart.lift(theta)
    begin = time.process_time()
    # no tolerance and no stall test: all 400 rows run all 5000 steps
    run = descend(kl, chart, eta, lr=0.1, steps=5000, tol=-np.inf, stall=-1.0)
    seconds = time.process_time() - begin
    return Result(ours=seconds, unit="s", note=f"largest final KL {run.loss.max():.1e}")


def _loop(kl: Any, chart: Any, eta0: torch.Tensor, steps: int) -> torch.Tensor:
    """One start at a time, gradients by autograd."""
    ends = []
    for start in eta0:
        eta = start[None]
        for _ in range(steps):
            leaf = eta.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(kl.value(chart.atoms(leaf)).sum(), leaf)
            step = 0.1 * g
            step = step * min(1.0, 1.0 / max(float(step.norm()), 1e-300))
            eta = chart.project(eta - step)
        ends.append(eta[0])
    return torch.stack(ends)


def against_loop(starts: int) -> Result:
    """Ten steps of descent from so many starts: batched, and one after the other."""
    from geolib.stratifolds import descend

    kl, chart, theta = _mixture_a(starts)
    eta = chart.project(chart.lift(theta))

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


def _planar(n: int, near: float | None) -> tuple[Any, Any]:
    """Ten Gaussians in the plane; with `near`, two of them that far apart."""
    from geolib.stratifolds import GaussianMixture

    rng = np.random.default_rng(SEED + 3)
    K = 10
    means = rng.normal(size=(K, 2)) * 5
    if near is not None:
        means[1] = means[0] + [near, 0.0]
    eye = torch.eye(2, dtype=torch.float64).repeat(K, 1, 1)
    weights = torch.full((K,), 1 / K, dtype=torch.float64)
    truth = GaussianMixture(weights, torch.tensor(means), eye)
    off = torch.tensor(rng.normal(size=means.shape)) * 0.3
    start = GaussianMixture(weights, truth.means + off, eye)
    return truth.sample(n, seed=SEED + 4), start


def _fits(near: float | None, n: int) -> Result:
    """Time to within 1e-6 nats a point of the same maximum, from the same start."""
    from geolib.stratifolds import em_fit, natural_fit

    x, start = _planar(n, near)
    best = natural_fit(x, start, tol=1e-12).log_likelihood[-1]
    target = best - 1e-6
    passes = em_fit(x, start, steps=5000, tol=0.0, target=target).iterations
    array, precisions = x.numpy(), torch.linalg.inv(start.covariances).numpy()

    def ours() -> float:
        fit = natural_fit(x, start, tol=0.0, target=target)
        return fit.mixture.log_likelihood(x)

    def sklearn() -> Any:
        import warnings

        from sklearn.mixture import GaussianMixture

        def run() -> float:
            model = GaussianMixture(
                10,
                tol=0.0,
                reg_covar=0.0,
                max_iter=passes,
                weights_init=start.weights.numpy(),
                means_init=start.means.numpy(),
                precisions_init=precisions,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that it did not converge
                model.fit(array)
            return float(model.score(array))

        return run

    def pomegranate() -> Any:
        from pomegranate.distributions import Normal
        from pomegranate.gmm import GeneralMixtureModel

        def run() -> float:
            parts = [
                Normal(m.float(), c.float(), covariance_type="full")
                for m, c in zip(start.means, start.covariances, strict=True)
            ]
            model = GeneralMixtureModel(
                parts, priors=start.weights.float(), max_iter=passes, tol=-1.0
            )
            model.fit(x.float())
            return float(model.log_probability(x.float()).double().mean())

        return run

    own, seconds = _seconds(ours)
    peers = []
    for name, prepare in (("scikit-learn", sklearn), ("pomegranate", pomegranate)):
        try:
            call = prepare()
        except ImportError as error:
            peers.append(Peer(name, not_run=str(error)))
            continue
        value, spent = _seconds(call)
        if abs(value - own) > 1e-5:
            raise DisagreementError(f"{name}: {value} and {own} nats a point")
        peers.append(
            Peer(
                name,
                version_of(name),
                spent,
                seconds / spent,
                agreement=abs(value - own),
            )
        )
    note = f"one round; EM needs {passes} passes to within 1e-6 of {best:.6f} nats"
    return Result(ours=seconds, unit="s", peers=tuple(peers), note=note)


def _seconds(call: Any) -> tuple[float, float]:
    """A call's value and its CPU seconds, once: EM runs here for minutes."""
    begin = time.process_time()
    value = call()
    return value, time.process_time() - begin


@benchmark("stratifolds.gmm", size="K = 10, d = 2, 1e5 points", slow=True)
def gmm() -> Result:
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
