"""Realization and Linearization against dense references and finite differences."""

import pytest
import torch
from core_cases import CASES, make
from torch import nn

from geolib.core import Linearization, Realization, init_, normal

IDS = list(CASES)
# PyTorch's own forward mode compiles a decomposition the first time it is used.
pytestmark = pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")


@pytest.mark.parametrize("name", IDS)
def test_outputs_are_those_of_the_module(name):
    module, x = make(name)
    R = Realization(module)
    with torch.no_grad():
        expected = (
            module(**x)
            if isinstance(x, dict)
            else module(*x)
            if isinstance(x, tuple)
            else module(x)
        )
    expected = expected.reshape(expected.shape[0], -1)
    torch.testing.assert_close(R(R.theta0, x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", IDS)
def test_products_are_those_of_the_finite_difference_jacobian(name):
    module, x = make(name)
    R = Realization(module)
    L = R.linearize(R.theta0, x)
    eps = 1e-6
    columns = []
    for e in torch.eye(R.p, dtype=torch.float64):
        up, down = R(R.theta0 + eps * e, x), R(R.theta0 - eps * e, x)
        columns.append((up - down) / (2 * eps))
    J = torch.stack(columns, dim=-1).detach()
    v, u = normal(R.p, 1), normal(tuple(L.outputs.shape), 2)
    torch.testing.assert_close(L.jacobian(), J, rtol=0, atol=3e-8)
    torch.testing.assert_close(L.jvp(v), J @ v, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        L.vjp(u), torch.einsum("nop,no->p", J, u), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("name", IDS)
def test_jvp_and_vjp_are_adjoint_linear_and_batched(name):
    module, x = make(name)
    R = Realization(module)
    L = R.linearize(R.theta0, x)
    v, u = normal((3, R.p), 3), normal((2, *L.outputs.shape), 4)
    Jv, Ju = L.jvp(v), L.vjp(u)
    torch.testing.assert_close(
        torch.einsum("kno,lno->kl", Jv, u), v @ Ju.T, rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(Jv[1], L.jvp(v[1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Ju[1], L.vjp(u[1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        L.jvp(2 * v[0] - v[2]), 2 * Jv[0] - Jv[2], rtol=1e-11, atol=1e-11
    )


def test_jvp_agrees_with_forward_mode():
    module, x = make("conv")
    R = Realization(module)
    v = normal(R.p, 5)
    _, expected = torch.func.jvp(lambda t: R(t, x), (R.theta0,), (v,))
    torch.testing.assert_close(R.linearize(R.theta0, x).jvp(v), expected)


class NoSecondDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a):
        return a.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, t):
        return t * ctx.saved_tensors[0].cos()


class Once(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return NoSecondDerivative.apply(self.inner(x))


def test_a_jacobian_with_fewer_columns_than_rows_needs_no_second_derivative():
    a = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    once = NoSecondDerivative.apply(a).repeat(3, 1)  # n o = 6 rows, 2 columns
    J = Linearization(once, {"a": a}).jacobian()
    assert torch.equal(J, torch.diag(a.detach().cos()).repeat(3, 1, 1))
    twice = Linearization(a.sin().repeat(3, 1), {"a": a})
    assert torch.allclose(twice.jacobian(chunk=1), J, atol=1e-15)  # by columns


def test_jvp_falls_back_to_forward_mode_without_second_derivatives():
    module = init_(Once().double(), 0)
    R, x, v = Realization(module), normal((4, 3), 1), normal((2, 8), 2)
    L = R.linearize(R.theta0, x)
    expected = torch.einsum("nop,kp->kno", L.jacobian(), v)
    torch.testing.assert_close(L.jvp(v), expected)
    torch.testing.assert_close(L.jvp(v[0]), expected[0])


def test_shared_weights_appear_once_and_sum_their_uses():
    module, _ = make("shared")
    R = Realization(module)
    assert R.p == sum(p.numel() for p in module.parameters())
    n_tensors = len(list(module.named_parameters(remove_duplicate=False)))
    assert len(R.names) < n_tensors


def test_buffers_are_copied_and_the_module_is_left_alone():
    module, x = make("batchnorm")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    R = Realization(module)
    z = R(R.theta0, x)
    R.linearize(R.theta0 + 1, x).jvp(normal(R.p, 0))
    for k, v in module.state_dict().items():
        assert torch.equal(v, before[k]), k
    module[1].running_var.mul_(4.0)
    assert torch.equal(R(R.theta0, x), z)


def test_load_writes_theta_into_the_module():
    module, x = make("mlp")
    R = Realization(module)
    theta = normal(R.p, 9)
    R.load(theta)
    assert torch.equal(Realization(module).theta0, theta)
    torch.testing.assert_close(module(x), R(theta, x))


def test_inputs_decide_the_dtype():
    module, x = make("batchnorm")
    R = Realization(module.float())
    assert R(R.theta0.double(), x).dtype == torch.float64
    with pytest.raises(TypeError, match=r"x: dtype torch.float64 .* theta"):
        R(R.theta0, x)


def test_frozen_parameters_are_constants():
    module, x = make("mlp")
    module[0].weight.requires_grad_(False)
    R = Realization(module)
    assert R.p == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert R.linearize(R.theta0, x).jacobian().shape[-1] == R.p


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(3), r"layer '1' \(BatchNorm1d\) calls batch statistics"),
        (nn.Dropout(0.5), r"layer '1' \(Dropout\) drops units .*0\.5"),
        (nn.RReLU(), r"layer '1' \(RReLU\) is random"),
        (nn.InstanceNorm1d(3, track_running_stats=True), r"InstanceNorm1d\) updates"),
    ],
)
def test_training_mode_layers_are_refused_by_name(layer, message):
    module = nn.Sequential(nn.Linear(2, 3), layer)
    with pytest.raises(ValueError, match=message):
        Realization(module)
    R = Realization(module.eval())
    module.train()
    with pytest.raises(ValueError, match=message):
        R(R.theta0, torch.zeros(4, 2))


def test_batchnorm_without_running_statistics_is_refused_even_in_eval():
    module = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)
    )
    with pytest.raises(ValueError, match="mix samples"):
        Realization(module.eval())
    assert Realization(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))).p == 6


class IntegerParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.code = nn.Parameter(torch.arange(3), requires_grad=False)
        self.inner = nn.Linear(3, 1)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.ReLU(), ValueError, "ReLU has no trainable parameters"),
        (lambda: nn.BatchNorm1d(3, affine=False).eval(), ValueError, "no trainable"),
        (lambda: IntegerParameter(), TypeError, "'code' is not real floating"),
        (lambda: nn.LazyLinear(2), ValueError, "'weight' is lazy"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            ValueError,
            "several dtypes",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
            ValueError,
            "several devices: .'cpu', 'meta'",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)),
            ValueError,
            r"layer '0' \(Embedding\) has sparse gradients",
        ),
        (
            lambda: nn.EmbeddingBag(5, 2, sparse=True),
            ValueError,
            r"layer '\(root\)' \(EmbeddingBag\) has sparse gradients",
        ),
        (lambda: "net", TypeError, "module: expected an nn.Module, got str"),
    ],
)
def test_bad_modules(build, error, message):
    with pytest.raises(error, match=message):
        Realization(build())


def test_bad_vectors():
    R = Realization(nn.Linear(3, 2).double())
    x = torch.zeros(4, 3, dtype=torch.float64)
    L = R.linearize(R.theta0, x)
    with pytest.raises(ValueError, match=r"theta: expected shape \(8,\), got \(7,\)"):
        R(torch.zeros(7, dtype=torch.float64), x)
    with pytest.raises(ValueError, match=r"u: expected shape \(4, 2\)"):
        L.vjp(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"v: dtype torch.float32"):
        L.jvp(torch.zeros(8))
    with pytest.raises(TypeError, match="meta"):
        L.jvp(torch.zeros(8, dtype=torch.float64, device="meta"))
    with pytest.raises(TypeError, match="dense tensor"):
        R(torch.zeros(8, dtype=torch.float64).to_sparse(), x)
    with pytest.raises(TypeError, match="x: expected a tensor, a dict or a tuple"):
        R(R.theta0, "x")
    with pytest.raises(TypeError, match="x: is on meta but theta is on cpu"):
        R.linearize(R.theta0, x.to("meta"))


def test_an_input_changed_after_its_use_is_noticed():
    R = Realization(init_(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), 0))
    x = normal((5, 3), 1)
    L = R.linearize(R.theta0, x)
    L.jvp(normal(R.p, 2))
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        L.vjp(normal((5, 4), 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        L.jvp(normal(R.p, 2))


def test_a_parameter_that_the_output_ignores_has_zero_derivative():
    class Ignoring(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.used(x)

    R = Realization(init_(Ignoring().double(), 0))
    L = R.linearize(R.theta0, normal((5, 3), 1))
    assert torch.equal(L.jacobian()[..., 4:], torch.zeros(5, 1, 4, dtype=torch.float64))
    assert torch.equal(
        L.jvp(torch.ones(8, dtype=torch.float64)).isnan().any(), torch.tensor(False)
    )
