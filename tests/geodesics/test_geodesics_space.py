"""The metric of function space against dense references and closed forms."""

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from geodesics_cases import RIVALS, YARDSTICKS, digits, smooth, trained, vector
from torch import nn

from geolib.geodesics import FunctionSpace, WeightPath, embed
from geolib.geodesics.embedding import SPACES
from geolib.geodesics.function_space import second_derivative

PATH_LENGTHS = chapter_module("geodesics", "path_lengths")
angle_length, lengths = PATH_LENGTHS.angle_length, PATH_LENGTHS.lengths


def dense_metric(R, w, x, space):
    """J^T J / n by reverse-mode Jacobians of the textbook formulas."""

    def phi(u):
        z = R(u, x)
        p = torch.softmax(z, 1)
        return {
            "raw": z,
            "logit": z - z.mean(1, keepdim=True),
            "prob": p,
            "sphere": 2 * p.sqrt(),
        }[space].flatten()

    J = torch.autograd.functional.jacobian(phi, w)
    return J.T @ J / len(x)


@pytest.mark.parametrize("space", SPACES)
def test_metric_against_dense(space):
    R, w, x = smooth()
    S = FunctionSpace(R, x, space, damping=0.0)
    G = dense_metric(R, w, x, space)
    v = vector(len(w), 3)
    assert torch.allclose(S.metric(w) @ v, G @ v, rtol=1e-10, atol=1e-12)
    assert S.speed2(w[None], v[None])[0].item() == pytest.approx(
        (v @ G @ v).item(), rel=1e-10
    )


def test_sphere_is_the_fisher_information():
    # closed form: J_z^T (diag p - p p^T) J_z, with no square roots in it
    R, w, x = smooth()
    J = torch.func.jacrev(lambda u: R(u, x))(w)
    p = torch.softmax(R(w, x), 1)
    M = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nip,nij,njq->pq", J, M, J) / len(x)
    assert torch.allclose(FunctionSpace(R, x).metric(w).dense(), fisher, atol=1e-13)


def test_damping_is_the_pullback_of_the_weights():
    R, w, x = smooth()
    v = vector(len(w), 1)
    with_, without = FunctionSpace(R, x, damping=0.3), FunctionSpace(R, x, damping=0.0)
    gap = with_.speed2(w[None], v[None]) - without.speed2(w[None], v[None])
    assert gap.item() == pytest.approx(0.3 * (v @ v).item(), rel=1e-12)


def test_divergences_are_the_metric_to_second_order():
    R, w, x = smooth()
    v = vector(len(w), 5)
    v = 1e-3 * v / v.norm()
    F = FunctionSpace(R, x, damping=0.0).speed2(w[None], v[None]).item()
    z, z0 = R(w + v, x), R(w, x)
    kl = nn.functional.kl_div(
        torch.log_softmax(z, 1), torch.softmax(z0, 1), reduction="batchmean"
    )
    assert 8 * RIVALS.bhattacharyya(z, z0).mean().item() / F == pytest.approx(
        1, abs=2e-3
    )
    assert 2 * kl.item() / F == pytest.approx(1, abs=2e-3)


def test_null_directions():
    # ReLU rescaling of a unit and a common shift of the logits move no probability
    R, w = trained(0)
    x = digits().x[:50]
    S = FunctionSpace(R, x, damping=0.0)
    parts = {n: torch.zeros_like(t) for n, t in R.unflatten(w).items()}
    now = R.unflatten(w)
    parts["1.weight"][3], parts["1.bias"][3] = now["1.weight"][3], now["1.bias"][3]
    parts["3.weight"][:, 3] = -now["3.weight"][:, 3]
    shift = {n: torch.zeros_like(t) for n, t in now.items()}
    shift["3.bias"] += 1.0
    for direction in (R.flatten(parts), R.flatten(shift)):
        random = vector(len(w), 0)
        scale = S.speed2(w[None], random[None] / random.norm())
        v = direction / direction.norm()
        assert S.speed2(w[None], v[None]) < 1e-24 * max(1.0, scale.item())


def test_rank_bound():
    R, w, x = smooth(sizes=(3, 8, 4))
    few = x[:2]
    values = torch.linalg.eigvalsh(FunctionSpace(R, few).metric(w).dense())
    assert int((values > 1e-10 * values[-1]).sum()) == 2 * (4 - 1)


def test_second_derivative_against_hessian():
    R, w, x = smooth()
    S, v = FunctionSpace(R, x), vector(len(w), 2)
    H = torch.func.jacfwd(torch.func.jacrev(S.at_point))(w)
    expected = torch.einsum("mij,i,j->m", H, v, v)
    assert torch.allclose(second_derivative(S.at_point, w, v), expected, atol=1e-10)


def test_acceleration_against_christoffel_symbols():
    R, w, x = smooth()
    damping, v = 1e-2, vector(len(w), 4)
    S = FunctionSpace(R, x, damping=damping)

    def metric(u):
        J = torch.func.jacrev(S.at_point)(u)
        return J.T @ J + damping * torch.eye(len(u)).to(u)

    change = torch.func.jvp(metric, (w,), (v,))[1] @ v
    slope = torch.func.grad(lambda u: v @ metric(u) @ v)(w)
    christoffel = -torch.linalg.solve(metric(w), change - slope / 2)
    assert torch.allclose(S.acceleration(w, v), christoffel, rtol=1e-8, atol=1e-9)


def test_acceleration_by_conjugate_gradients_equals_dense():
    R, w, x = smooth(sizes=(3, 30, 4))  # more than 200 weights
    assert len(w) > 200
    S, v = FunctionSpace(R, x), vector(len(w), 4)
    J = torch.func.jacfwd(S.at_point)(w)
    bend = second_derivative(S.at_point, w, v)
    G = J.T @ J + 1e-2 * torch.eye(len(w)).to(w)
    dense = -torch.linalg.solve(G, J.T @ bend)
    S.damping = 1e-2
    found = S.acceleration(w, v)
    assert (found - dense).norm() < 1e-7 * dense.norm()


def test_noise():
    x = vector((20, 2), 0)
    noise = YARDSTICKS.noise_like(3 + 2 * x, 20000, 1)
    assert torch.allclose(noise.mean(0), (3 + 2 * x).mean(0), atol=0.1)
    assert torch.allclose(noise.std(0), (2 * x).std(0, correction=0), rtol=0.05)


def test_angle_bound_lies_between_chord_and_length():
    R, w = trained(0)
    _, v = trained(1)
    S = FunctionSpace(R, digits().x[:100])
    found = lengths(S, WeightPath(w, v))
    assert found.chord <= found.arc <= found.output
    assert found.detour >= 1
    ends = S(torch.stack([w, v]))
    assert found.chord == pytest.approx((ends[1] - ends[0]).norm().item(), rel=1e-12)
    p, q = S.embedded(torch.stack([w, v]))
    by_arccos = (2 * torch.arccos(((p * q).sum(1) / 4).clamp(max=1))).square()
    expected = by_arccos.mean().sqrt().item()
    assert angle_length(p, q).item() == pytest.approx(expected, rel=1e-6)


def test_underflowed_probabilities_stay_finite():
    z = torch.tensor([[2000.0, 0.0, -2000.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(embed(z).sum(), z)
    assert bool(torch.isfinite(grad).all())


def test_faults():
    R, _w, x = smooth()
    with pytest.raises(ValueError, match="space: expected one of"):
        FunctionSpace(R, x, "banana")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        FunctionSpace(R, torch.full_like(x, float("nan")))
    with pytest.raises(ValueError, match="at least one input"):
        FunctionSpace(R, x[:0])
    with pytest.raises(ValueError, match="damping"):
        FunctionSpace(R, x, damping=-1.0)
    with pytest.raises(ValueError, match="count"):
        YARDSTICKS.noise_like(x, 0)
    normed = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    with pytest.raises(ValueError, match="eval"):
        FunctionSpace(normed, torch.from_numpy(np.ones((3, 2))))


def test_the_old_name_of_damping_is_refused_by_name():
    R, _, x = smooth()
    with pytest.raises(TypeError, match="'ridge'"):
        FunctionSpace(R, x, ridge=0.1)
