"""What torch has no formula for is worked around; any other error is not hidden."""

import pytest
import torch

from geolib.core import (
    Linearization,
    normal,
)


class Fails(torch.autograd.Function):
    """The sine; the second derivative raises what it is told to."""

    error = RuntimeError("no formula is implemented")

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.sin()

    @staticmethod
    def backward(ctx, g):
        return Cosine.apply(g, *ctx.saved_tensors)


class Cosine(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(ctx, g, a):
        return g * a.cos()

    @staticmethod
    def backward(ctx, _):
        raise Fails.error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("the user's own")]
)
def test_the_jacobian_hides_no_error_but_that_of_a_missing_formula(monkeypatch, error):
    w = normal(2, 1).requires_grad_()
    columns = normal((5, 2), 2)
    z = (Fails.apply(w) * columns).sum(1, keepdim=True)
    L = Linearization(z, {"w": w})
    single = L.jvp
    monkeypatch.setattr(L, "jvp", lambda v: single(torch.ones(2).double()))
    expected = columns * w.detach().cos()
    torch.testing.assert_close(L.vjp(torch.ones_like(z)), expected.sum(0))
    rows = [L.vjp(e[:, None]) for e in torch.eye(5, dtype=torch.float64)]
    monkeypatch.setattr(L, "vjp", lambda u: torch.stack([rows[k] for k in range(5)]))
    torch.testing.assert_close(L.jacobian()[:, 0], expected)
    monkeypatch.setattr(Fails, "error", error)
    with pytest.raises(type(error), match=str(error)):
        L.jacobian()
