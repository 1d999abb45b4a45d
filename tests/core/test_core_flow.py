"""Flows against closed forms, SciPy, and their own convergence orders."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from geolib.core import flow, normal


def rotation(t, y):
    return torch.stack([-y[1], y[0]]) * (1 + 0.5 * math.cos(t))


def turned(t):
    angle = t + 0.5 * math.sin(t)
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


START = torch.tensor([1.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("tol", [1e-5, 1e-8, 1e-11])
def test_adaptive_error_follows_the_tolerance_at_every_time(tol):
    times = np.linspace(0, 5, 23)
    run = flow(rotation, START, times, rtol=tol, atol=tol)
    exact = torch.stack([turned(t) for t in times])
    error = float((run.states - exact).abs().max())
    assert tol / 1e3 < error < 20 * tol


def test_adaptive_agrees_with_scipy_on_a_nonlinear_field():
    A = normal((4, 4), 0) / 2

    def field(t, y):
        return torch.tanh(A @ y) - 0.1 * y + math.sin(t)

    y0, times = normal(4, 1), [0.0, 0.3, 1.0, 4.0]
    ours = flow(field, y0, times, rtol=1e-10, atol=1e-12).states
    peer = solve_ivp(
        lambda t, y: field(t, torch.as_tensor(y)).numpy(),
        (0, 4),
        y0.numpy(),
        method="DOP853",
        t_eval=times,
        rtol=1e-12,
        atol=1e-13,
    )
    torch.testing.assert_close(ours, torch.as_tensor(peer.y.T), rtol=0, atol=2e-9)


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)]
)
def test_fixed_steps_converge_at_their_order(method, order):
    def error(step):
        run = flow(rotation, START, [0.0, 1.0, 2.0], method=method, step=step)
        return float((run.final - turned(2.0)).norm())

    slope = math.log2(error(0.05) / error(0.025))
    assert abs(slope - order) < 0.12


def test_evaluations_are_counted_and_shapes_kept():
    calls = []

    def field(t, y):
        calls.append(t)
        return -y

    y0 = torch.ones(2, 3, dtype=torch.float64)
    run = flow(field, y0, [0.0, 1.0])
    assert run.evaluations == len(calls) == 2 + 6 * (run.steps + run.rejected)
    assert run.states.shape == (2, 2, 3)
    assert torch.equal(run.final, run.states[-1])
    fixed = flow(field, y0, [0.0, 1.0], method="rk4", step=0.3)
    assert (fixed.steps, fixed.evaluations) == (4, 16)


def test_backwards_in_time_undoes_forwards():
    there = flow(rotation, START, [0.0, 3.0], rtol=1e-10, atol=1e-12).final
    back = flow(rotation, there, [3.0, 0.0], rtol=1e-10, atol=1e-12).final
    torch.testing.assert_close(back, START, rtol=0, atol=1e-8)


def test_a_narrow_peak_makes_it_reject_steps_and_the_answer_survives():
    width = 1e-3

    def peak(t, y):
        return torch.full_like(y, width / (width**2 + (t - 1) ** 2))

    run = flow(peak, torch.zeros(1, dtype=torch.float64), [0.0, 3.0], 1e-8, 1e-8)
    assert run.rejected > 0
    exact = math.atan(2 / width) + math.atan(1 / width)
    assert abs(run.final.item() - exact) < 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"times": []}, ValueError, "times: expected finite"),
        ({"times": [0.0, 0.0]}, ValueError, "times: expected a strictly monotone"),
        ({"times": [0.0, math.nan]}, ValueError, "times: expected finite"),
        ({"rtol": 0.0}, ValueError, "rtol, atol: expected positive"),
        ({"method": "magic"}, ValueError, "method: expected dopri5"),
        ({"method": "rk4"}, ValueError, "step: rk4 needs a positive step"),
        ({"y0": torch.zeros(2, dtype=torch.int64)}, TypeError, "y0: expected a float"),
        ({"y0": torch.tensor([math.inf])}, ValueError, "y0: 1 of 1 entries are not"),
        ({"field": lambda t, y: y[:1]}, ValueError, r"field: expected shape \(2,\)"),
        ({"field": lambda t, y: y / (y - y)}, ValueError, "field: not finite at time"),
        ({"max_steps": 3}, RuntimeError, "max_steps 3 used up at time"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"field": rotation, "y0": START, "times": [0.0, 9.0]} | change
    with pytest.raises(error, match=message):
        flow(**arguments)


def test_a_finite_time_blow_up_is_an_error_not_a_number():
    with pytest.raises((RuntimeError, ValueError), match=r"stiff|not finite|max_steps"):
        flow(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 2.0])


def test_one_time_returns_the_start():
    run = flow(rotation, START, [0.0])
    assert torch.equal(run.states, START[None])
    assert run.evaluations == 0
