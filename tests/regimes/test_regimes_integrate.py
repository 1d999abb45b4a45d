"""The core's integrator as the simulator uses it, and the grid of its Euler steps."""

import numpy as np
import pytest
import torch

from geolib.core import IntegrationError, integrate
from geolib.regimes.loss_curves import follow as observed


def follow(flow, y0, times, **options):
    seen, work = observed(
        flow, y0, np.array(times), lambda y, dy, e: y.clone(), **options
    )
    return torch.stack(seen).numpy(), work


@pytest.mark.parametrize("rtol", [1e-5, 1e-8, 1e-11])
def test_error_follows_the_tolerance(rtol):
    y0 = torch.tensor([[0.1]], dtype=torch.float64)
    t = [0.3, 1.0, 2.0]
    y, _ = follow(lambda y: 4 * y * (1 - y), y0, t, rtol=rtol, atol=rtol * 1e-2)
    exact = 1 / (1 + 9 * np.exp(-4 * np.array(t)))
    assert np.abs(y[:, 0, 0] - exact).max() < 3 * rtol


def test_the_slowest_member_of_a_batch_sets_the_step():
    y0 = torch.ones(2, 1, dtype=torch.float64)
    rate = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    y, _ = follow(lambda y: -rate * y, y0, [0.5], rtol=1e-9, atol=1e-12)
    assert np.abs(y[0, :, 0] - np.exp([-0.5, -15.0])).max() < 1e-9


def test_output_at_time_zero_is_the_start():
    y0 = torch.full((1, 2), 3.0, dtype=torch.float64)
    y, work = follow(lambda y: -y, y0, [0.0])
    assert (y[0] == 3.0).all()
    assert work.steps == 0


def test_blow_up_is_an_error():
    y0 = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(IntegrationError, match=r"step fell|no end in sight"):
        follow(lambda y: y**2, y0, [2.0])
    with pytest.raises(IntegrationError, match="no end in sight: max_steps 5"):
        follow(lambda y: torch.cos(40 * y), y0, [9.0], max_steps=5)


def test_euler_is_first_order_and_checks_its_grid():
    def error(step):
        out = []
        y0 = torch.ones(1, 1, dtype=torch.float64)

        def observer(t, y, dy, e):
            out.append((y, e))

        integrate(
            lambda t, y: -y,
            y0,
            [0.0, 1.0],
            method="euler",
            observer=observer,
            step=step,
        )
        y, e = out[-1]
        return float(y) - np.exp(-1), float(e)

    first, estimate = error(0.01)
    second, _ = error(0.005)
    assert first / second == pytest.approx(2.0, rel=0.02)
    # The sum of local errors points the right way and is of the right size.
    assert 0.3 < -first / estimate < 1.2
    y0 = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(IntegrationError, match="diverged"):
        follow(lambda y: -y * y * y, 9 * y0, [40.0], method="euler", step=1.0)
