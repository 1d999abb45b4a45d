"""Regimes: the simulator against bare matrix products and a plain loop; the theories."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Result, benchmark, clocks, race

SLACK = 1 / 0.6  # at least 60 % of the matrix-product rate


def rate(d: int, n: int, dtype_name: str, device: str, last: float) -> Result:
    import torch

    from geolib.regimes import Setup, draw_weights
    from geolib.regimes.simulate import FlowProblem, draw_wishart, run

    dtype = getattr(torch, dtype_name)
    setup = Setup(d, d, n, 1 / d)
    place = {"dtype": dtype, "device": device}
    W = torch.as_tensor(draw_weights(setup, 0), **place)[None]
    if device == "cpu":
        S = torch.as_tensor(draw_wishart(setup, 0), **place)[None]
    else:  # the law is the same; a processor would take minutes for it
        L = torch.randn(n, d, generator=torch.Generator(device).manual_seed(0), **place)
        S = (L.mT @ L / n)[None]
    problem = FlowProblem(d, n, S=S)
    rtol = 1e-6 if dtype_name == "float64" else 1e-4

    def ours() -> float:
        path = run(W, problem, [last], "gram", rtol=rtol, atol=rtol * 1e-2)
        ours.products = 2 * path.work.evaluations + 2  # type: ignore[attr-defined]
        return float(path.train[0, -1])

    reference = ours()

    def matmul():
        A, out = W[0].mT @ W[0], torch.empty_like(S[0])

        def products() -> float:
            for _ in range(ours.products):  # type: ignore[attr-defined]
                torch.matmul(S[0], A, out=out)
            if device == "cuda":
                torch.cuda.synchronize()
            return reference

        return products

    return race(
        ours,
        {"torch matmul": matmul},
        rounds=3,
        clock="cpu" if device == "cpu" else "wall",
        note=f"The peer runs the same number of {d} x {d} products and nothing else.",
    )


@benchmark(
    "regimes.simulator_rate",
    bar=f"<= {SLACK:.3f}",
    size="d = h = 1024, n = 4096, float64",
)
def simulator_rate() -> Result:
    """Simulator against its own matrix products alone (60 % of the rate is 1.667)"""
    return rate(1024, 4096, "float64", "cpu", 0.02)


@benchmark(
    "regimes.simulator_rate_gpu",
    bar=f"<= {SLACK:.3f}",
    size="d = h = 8192, n = 32768, float32, GPU",
    slow=True,
    gpu=True,
)
def simulator_rate_gpu() -> Result:
    """Simulator against its own matrix products on a GPU, with TF32 products"""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    return rate(8192, 32768, "float32", "cuda", 0.05)


@benchmark(
    "regimes.euler_loop", bar="<= 0.2", size="d = h = 96, n = 384, error 1e-4 of L(0)"
)
def euler_loop() -> Result:
    """Simulator against a plain Euler loop in PyTorch at equal final error"""
    import torch

    from geolib.regimes import Setup, draw_covariance, draw_weights, gradient_flow

    setup, last = Setup(96, 96, 384, 1 / 96), 2.0
    W0 = torch.as_tensor(draw_weights(setup, 0))
    S = torch.as_tensor(draw_covariance(setup, 0))
    eye = torch.eye(96, dtype=torch.float64)
    tight = {"rtol": 1e-11, "atol": 1e-13, "covariance": True}
    times = np.linspace(0, last, 11)
    exact = gradient_flow(W0, S, times, **tight).train[0]  # type: ignore[arg-type]

    def ours() -> np.ndarray:
        loose = {"rtol": 3e-4, "atol": 3e-6, "covariance": True}
        return gradient_flow(W0, S, times, **loose).train[0]  # type: ignore[arg-type]

    error = float(np.abs(ours() - exact).max() / exact[0])

    def euler(per_output: int) -> np.ndarray:
        W, step = W0.clone(), last / 10 / per_output
        losses = []
        for k in range(10 * per_output + 1):
            B = W.T @ W - eye
            if k % per_output == 0:
                losses.append(float((S @ B * B).sum() / 2))
            W = W - step * (W @ (B @ S + S @ B))
        return np.array(losses)

    coarse = float(np.abs(euler(40) - exact).max() / exact[0])
    needed = int(np.ceil(40 * coarse / error))

    def torch_loop():
        return lambda: euler(needed)

    return race(
        ours,
        {"torch Euler loop": torch_loop},
        agree=lambda a, b: float(np.abs(a - b).max() / exact[0]),
        within=4 * error,
        rounds=3,
        note=f"Our error is {error:.1e} of L(0), and the loop needs {10 * needed} steps "
        "to come as close.",
    )


def _slowest(calls: dict) -> tuple[float, str]:
    worst, which = 0.0, ""
    for name, call in calls.items():
        call()
        spent = []
        for _ in range(3):
            before = clocks()[0]
            call()
            spent.append(clocks()[0] - before)
        if sorted(spent)[1] > worst:
            worst, which = sorted(spent)[1], name
    return worst, which


@benchmark("regimes.theory_curves", bar="<= 0.1", of="ours", size="200 times")
def theory_curves() -> Result:
    """Slowest of the solved faces' curves"""
    from geolib.regimes import (
        large_data,
        large_data_next,
        marchenko_pastur,
        mean_field,
        mean_field_next,
        narrow,
        small_data,
    )

    t = np.linspace(0, 2, 200)
    calls = {
        "large_data": lambda: large_data(t, 1, 1),
        "large_data by quadrature": lambda: large_data(
            t, 1, 1, law=marchenko_pastur(1, 1)
        ),
        "large_data_next": lambda: large_data_next(t, 1, 1),
        "mean_field": lambda: mean_field(t, 0.2, 1.0),
        "mean_field_next": lambda: mean_field_next(t, 0.2, 1.0),
        "narrow by ODE": lambda: narrow(t, 0.5, 1.0),
        "small_data": lambda: small_data(2 * t, 1, 1),
    }
    worst, which = _slowest(calls)
    return Result(
        worst, note=f"The slowest of the {len(calls)} curves is that of `{which}`."
    )


@benchmark(
    "regimes.predict", bar="<= 2", of="ours", size="six setups of the trial, d to 354"
)
def prediction() -> Result:
    """Slowest `predict` of the setups that once took longest"""
    from geolib.regimes import Setup, predict

    sizes = (187, 40, 169), (106, 56, 2), (206, 51, 225), (354, 104, 9), (154, 354, 2)
    kappas = 8.06, 24.48, 6.11, 11.39, 7.91
    setups = [Setup(*s, k / s[0]) for s, k in zip(sizes, kappas, strict=True)]
    setups.append(Setup(301, 251, 961, 0.355 / 301))
    worst, which = _slowest({repr(s): lambda s=s: predict(s) for s in setups})
    return Result(worst, note=f"The slowest of {len(setups)} is {which}.")


@benchmark(
    "regimes.fock", bar="<= 5", of="ours", size="depth 8, 511 vertices, 30 times"
)
def fock() -> Result:
    """Solver of the interior"""
    from geolib.regimes import fock_curves

    t = np.linspace(0, 3, 30)
    worst, which = _slowest(
        {
            f"h / d = {eta}": lambda eta=eta: fock_curves(t, eta, 1.0, 1.0, depth=8)
            for eta in (0.5, 1.0)
        }
    )
    return Result(worst, note=f"Two cases were timed; the slower one is {which}.")


def _cold(call) -> float:  # type: ignore[no-untyped-def]
    from geolib.regimes import trace_words

    for cached in (
        trace_words._mean,
        trace_words._planar_ring,
        trace_words._planar_table,
        trace_words.canonical,
        trace_words._derivative,
    ):
        cached.cache_clear()
    before = clocks()[0]
    call()
    return clocks()[0] - before


@benchmark("regimes.exact_loss", bar="<= 5", of="ours", size="s = 5, both losses")
def exact() -> Result:
    """The exact expansion, all genera, from cold caches"""
    from geolib.regimes import exact_loss

    kinds = ("train", "population")
    spent = [_cold(lambda: [exact_loss(kind, 5) for kind in kinds]) for _ in range(3)]
    return Result(sorted(spent)[1])


@benchmark("regimes.planar_loss", bar="<= 5", of="ours", size="s = 7, both losses")
def planar() -> Result:
    """The planar expansion from cold caches"""
    from geolib.regimes import planar_loss

    kinds = ("train", "population")
    spent = [_cold(lambda: [planar_loss(kind, 7) for kind in kinds]) for _ in range(3)]
    return Result(sorted(spent)[1])
