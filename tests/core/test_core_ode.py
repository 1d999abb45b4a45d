"""Flows against closed forms, SciPy, and their own convergence orders."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from geolib.core import IntegrationError, integrate, normal


def rotation(t, y):
    return torch.stack([-y[1], y[0]]) * (1 + 0.5 * math.cos(t))


def turned(t):
    angle = t + 0.5 * math.sin(t)
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


START = torch.tensor([1.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("tol", [1e-5, 1e-8, 1e-11])
def test_adaptive_error_follows_the_tolerance_at_every_time(tol):
    times = np.linspace(0, 5, 23)
    run = integrate(rotation, START, times, rtol=tol, atol=tol)
    exact = torch.stack([turned(t) for t in times])
    error = float((run.states - exact).abs().max())
    assert tol / 1e3 < error < 20 * tol


def test_adaptive_agrees_with_scipy_on_a_nonlinear_field():
    A = normal((4, 4), 0) / 2

    def field(t, y):
        return torch.tanh(A @ y) - 0.1 * y + math.sin(t)

    y0, times = normal(4, 1), [0.0, 0.3, 1.0, 4.0]
    ours = integrate(field, y0, times, rtol=1e-10, atol=1e-12).states
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
        run = integrate(rotation, START, [0.0, 1.0, 2.0], method=method, step=step)
        return float((run.final - turned(2.0)).norm())

    slope = math.log2(error(0.05) / error(0.025))
    assert abs(slope - order) < 0.12


def test_evaluations_are_counted_and_shapes_kept():
    calls = []

    def field(t, y):
        calls.append(t)
        return -y

    y0 = torch.ones(2, 3, dtype=torch.float64)
    run = integrate(field, y0, [0.0, 1.0])
    assert run.evaluations == len(calls) == 1 + 6 * (run.steps + run.rejected)
    assert run.states.shape == (2, 2, 3)
    assert torch.equal(run.final, run.states[-1])
    fixed = integrate(field, y0, [0.0, 1.0], method="rk4", step=0.3)
    assert (fixed.steps, fixed.evaluations) == (4, 16)


def test_backwards_in_time_undoes_forwards():
    there = integrate(rotation, START, [0.0, 3.0], rtol=1e-10, atol=1e-12).final
    back = integrate(rotation, there, [3.0, 0.0], rtol=1e-10, atol=1e-12).final
    torch.testing.assert_close(back, START, rtol=0, atol=1e-8)


def test_a_narrow_peak_makes_it_reject_steps_and_the_answer_survives():
    width = 1e-3

    def peak(t, y):
        return torch.full_like(y, width / (width**2 + (t - 1) ** 2))

    run = integrate(peak, torch.zeros(1, dtype=torch.float64), [0.0, 3.0], 1e-8, 1e-8)
    assert run.rejected > 0
    exact = math.atan(2 / width) + math.atan(1 / width)
    assert abs(run.final.item() - exact) < 1e-6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"times": []}, ValueError, "times: expected finite"),
        ({"times": [0.0, 0.0]}, ValueError, "times: expected a strictly monotone"),
        ({"times": [0.0, math.nan]}, ValueError, "times: expected finite"),
        ({"rtol": 0.0}, ValueError, "rtol: .* with rtol > 0"),
        ({"method": "magic"}, ValueError, "method: expected dopri5"),
        (
            {"method": "rk4"},
            ValueError,
            "step: expected a positive step, which rk4 needs",
        ),
        (
            {"y0": torch.zeros(2, dtype=torch.int64)},
            TypeError,
            "y0: expected a tensor of float",
        ),
        ({"y0": torch.tensor([math.inf])}, ValueError, "y0: .* 1 of 1 entries are not"),
        ({"field": lambda t, y: y[:1]}, ValueError, r"field: expected shape \(2,\)"),
        ({"field": lambda t, y: y / (y - y)}, ValueError, "field: not finite at time"),
        ({"max_steps": 3}, IntegrationError, "max_steps 3 used up at time"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"field": rotation, "y0": START, "times": [0.0, 9.0]} | change
    with pytest.raises(error, match=message):
        integrate(**arguments)


def test_a_finite_time_blow_up_is_an_error_not_a_number():
    with pytest.raises((RuntimeError, ValueError), match=r"stiff|not finite|max_steps"):
        integrate(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 2.0])


def test_one_time_returns_the_start():
    run = integrate(rotation, START, [0.0])
    assert torch.equal(run.states, START[None])
    assert run.evaluations == 0


def test_an_observer_sees_state_velocity_and_the_error_at_every_time():
    rate = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    times, seen = [0.0, 0.25, 0.5], []

    def observe(t, y, dy, error):
        assert torch.equal(dy, -rate * y)
        seen.append((t, y, error))

    y0 = torch.ones(2, 1, dtype=torch.float64)
    run = integrate(
        lambda t, y: -rate * y, y0, times, 1e-6, 1e-9, batched=True, observer=observe
    )
    assert [t for t, _, _ in seen] == times
    assert torch.equal(run.final, seen[-1][1])
    assert len(run.states) == 1
    exact = torch.exp(-rate * 0.5)
    assert float((run.final - exact).abs().max()) < 1e-6
    assert float(seen[0][2].abs().max()) == 0.0
    assert 0 < float(seen[-1][2].abs().max()) < 1e-4


def test_the_slowest_member_of_a_batch_does_not_hide_behind_the_others():
    rate = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    y0 = torch.tensor([[1e6], [1.0]], dtype=torch.float64)
    times = [0.0, 0.05]
    both = integrate(lambda t, y: -rate * y, y0, times, 1e-9, 1e-15, batched=True)
    exact = torch.exp(-rate * 0.05) * y0
    assert float(((both.final - exact) / exact).abs().max()) < 1e-8


def test_eulers_summed_errors_are_of_the_size_of_its_error():
    seen = []
    integrate(
        lambda t, y: -y,
        torch.ones(1, dtype=torch.float64),
        [0.0, 1.0],
        method="euler",
        step=0.01,
        observer=lambda t, y, dy, e: seen.append((float(y), float(e))),
    )
    y, error = seen[-1]
    assert 0.3 < -(y - math.exp(-1)) / error < 1.2


def test_a_diverging_iteration_is_an_error():
    with pytest.raises(IntegrationError, match="euler diverged before time 40"):
        integrate(
            lambda t, y: -(y**3),
            9 * torch.ones(1, dtype=torch.float64),
            [0.0, 40.0],
            method="euler",
            step=1.0,
        )


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "midpoint", "euler"])
def test_a_field_may_reuse_its_buffer(method, seen):
    buffer, kept = torch.zeros(2, dtype=torch.float64), []

    def reused(t, y):
        return torch.mul(y, -1.0 - t, out=buffer)

    plan = {"step": 0.05, "observer": lambda *now: kept.append(now) if seen else None}
    if not seen:
        del plan["observer"]
    y0, times = torch.tensor([1.0, 2.0], dtype=torch.float64), [0.0, 0.3, 1.0]
    found = integrate(reused, y0, times, method=method, **plan)
    first = list(kept)
    kept.clear()
    fresh = integrate(lambda t, y: y * (-1.0 - t), y0, times, method=method, **plan)
    assert torch.equal(found.states, fresh.states)
    assert torch.equal(found.error, fresh.error)
    for a, b in zip(first, kept, strict=True):
        assert all(map(torch.equal, a[1:], b[1:]))
    exact = y0 * np.exp(-1.5)
    assert float((found.final - exact).abs().max()) < {"euler": 0.1}.get(method, 1e-2)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "euler"])
@pytest.mark.parametrize(
    "field",
    [lambda t, y: y.neg_(), lambda t, y: -y.mul_(1.0), lambda t, y: y.copy_(-y)],
)
def test_a_field_that_writes_to_the_state_is_refused(field, method):
    y0 = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="field: it writes to the state"):
        integrate(field, y0, [0.0, 1.0], method=method, step=0.1)
