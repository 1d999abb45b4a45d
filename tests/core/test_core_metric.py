"""The pulled-back metric on the table module x output metric x data."""

import pytest
import torch
from core_cases import CASES, Given, make, residuals
from dense_reference import dense_jacobian, dense_metric, expected_score_blocks
from torch import nn

from geolib.core import (
    AssumptionError,
    Bernoulli,
    Categorical,
    Euclidean,
    PullbackMetric,
    Realization,
    init_,
    normal,
    rng,
)
from geolib.core.jacobian_factors import certified_calls

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")


def identity(z):
    return torch.eye(z.shape[1], dtype=z.dtype).expand(len(z), -1, -1)


def labels(z):
    return torch.as_tensor(rng(5).integers(0, z.shape[1], len(z)))


def cross_entropy(z, y):
    return nn.functional.cross_entropy(z, y, reduction="sum")


def outer_residuals(z):
    r = z.softmax(-1) - nn.functional.one_hot(labels(z), z.shape[1])
    return r[:, :, None] * r[:, None, :]


def quartic_hessian(z):
    return torch.diag_embed(2 + 1.2 * (z - 1) ** 2)


def tilt(z):
    return normal((len(z), z.shape[1], z.shape[1]), 8)


def tilted(z):
    return tilt(z) @ tilt(z).mT


# name -> (output metric for outputs z, its matrices from an independent formula)
METRICS = {
    "euclidean": (lambda z: Euclidean(), identity),
    "gaussian": (
        lambda z: Given(
            lambda z, _: torch.diag_embed(
                1 / torch.linspace(0.5, 2, z.shape[1]).to(z).expand_as(z)
            )
        ),
        lambda z: torch.diag_embed(
            torch.linspace(0.5, 2, z.shape[1]).to(z).pow(-2).expand_as(z)
        ),
    ),
    "bernoulli": (
        lambda z: Bernoulli(),
        lambda z: expected_score_blocks(z, "bernoulli"),
    ),
    "categorical": (
        lambda z: Categorical(),
        lambda z: expected_score_blocks(z, "categorical"),
    ),
    "reference": (
        lambda z: Categorical(reference=True),
        lambda z: expected_score_blocks(nn.functional.pad(z, (0, 1)), "categorical")[
            :, :-1, :-1
        ],
    ),
    "empirical": (lambda z: residuals(cross_entropy, labels(z)), outer_residuals),
    "hessian": (
        lambda z: Given(lambda z, _: quartic_hessian(z).sqrt()),
        quartic_hessian,
    ),
    "blocks": (lambda z: Given(lambda z, _: tilt(z)), tilted),
}
PAIRS = [(c, m) for c in CASES for m in METRICS if (c, m) != ("wide", "categorical")]


def build(case, metric, **options):
    module, x = make(case)
    R = Realization(module)
    z = R(R.theta0, x).detach()
    make_metric, blocks = METRICS[metric]
    G = PullbackMetric(R, x, make_metric(z), **options).at(R.theta0)
    return R, x, G, blocks(z)


def close(a, b, tol=1e-11):
    scale = float(b.abs().max()) + 1e-300
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tol)


@pytest.mark.slow_for("sequence-[gbceh]*", "grouped_conv-*", "conv-[gceh]*")
@pytest.mark.parametrize(("case", "metric"), PAIRS)
def test_every_form_agrees_with_the_dense_reference(case, metric):
    R, x, G, blocks = build(case, metric)
    expected = dense_metric(R, R.theta0, x, blocks)
    v = normal((R.p, 3), 2)
    close(G.dense(), expected)
    close(G @ v, expected @ v)
    close(G @ v[:, 0], expected @ v[:, 0])
    assert G.trace() == pytest.approx(float(expected.trace()), rel=1e-12)
    A = G.rows()
    close(A.dense().mT @ A.dense(), expected)
    close(G.kernel(), A.dense() @ A.dense().mT)
    a = normal(A.m, 3)
    close(A.matvec(v[:, 0]), A.dense() @ v[:, 0])
    close(A.rmatvec(a), A.dense().mT @ a)


def test_saturated_logits_beside_a_reference_class():
    z = torch.tensor([[0.3, -1.0], [40.0, 0.0], [-900.0, 800.0]], dtype=torch.float64)
    local = Categorical(reference=True).at(z, slice(0, 3))
    blocks = expected_score_blocks(nn.functional.pad(z, (0, 1)), "categorical")
    close(local.dense(2), blocks[:, :-1, :-1])
    s = torch.ones(3, local.rank, dtype=torch.float64)
    close(local.root_solve(local.root(s))[0], s[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", ["euclidean", "bernoulli", "empirical"])
def test_streaming_changes_nothing(case, metric):
    _, _, G, _ = build(case, metric)
    _, _, stream, _ = build(case, metric, batch_size=2)
    v = normal(G.p, 2)
    close(stream @ v, G @ v)
    close(stream.dense(), G.dense())
    close(stream.kernel(), G.kernel())
    close(stream.outputs(), G.outputs())
    u = normal(tuple(G.outputs().shape), 3)
    close(stream.pull(u), G.pull(u))


def test_strips_of_the_kernel_join_up(monkeypatch):
    from geolib.core import jacobian_factors as rows

    for case in ("mlp", "conv", "sequence"):
        whole = build(case, "bernoulli")[2].kernel()
        monkeypatch.setattr(rows, "STRIP", 3)
        monkeypatch.setattr(rows, "CHUNK", 64)
        close(build(case, "bernoulli")[2].kernel(), whole)
        monkeypatch.undo()


def test_a_list_of_batches_and_the_sum_reduction():
    R, x, G, blocks = build("mlp", "euclidean")
    batches = [x[:3], x[3:4], x[4:]]
    H = PullbackMetric(R, batches, reduction="sum").at(R.theta0)
    close(H.dense(), 7 * G.dense())
    close(H.dense(), dense_metric(R, R.theta0, x, blocks, "sum"))


LAYERS = {
    "mlp": {"0.weight", "2.weight"},
    "conv": {"0.weight", "2.weight", "5.weight"},
    "grouped_conv": {"0.weight", "3.weight", "5.weight"},
    "shared": {"a.weight", "c.weight"},
    "sneaky": set(),
    "dict": {"mix.weight"},
    "sequence": {"lift.weight", "read.weight"},
}


@pytest.mark.parametrize("case", LAYERS)
def test_only_weights_whose_every_use_was_seen_are_kept_in_factors(case):
    module, x = make(case)
    R = Realization(module)
    calls = certified_calls(R.linearize(R.theta0, x))
    assert {u.weight for u in calls} == LAYERS[case]


@pytest.mark.parametrize("n", [3, 4])
def test_a_layer_whose_leading_axis_is_not_the_samples_is_found_out(n):
    """n = 3 is what the probe itself runs: there only the derivatives can tell."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x):
            return torch.tanh(self.a(x.transpose(0, 1))).sum(0)

    R = Realization(init_(Turned().double(), 0))
    x = normal((n, n, 3), 1)
    L = R.linearize(R.theta0, x)
    assert L.linear_calls()
    assert not certified_calls(L)
    G = PullbackMetric(R, x).at(R.theta0)
    J = dense_jacobian(R, R.theta0, x)
    K = torch.einsum("iap,jbp->iajb", J, J)
    close(G.kernel(), K.reshape(3 * n, 3 * n) / n)


@pytest.mark.parametrize("twist", ["layout", "stride", "groups"])
def test_a_bias_shared_with_a_layer_that_is_left_out_is_left_out_too(twist):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv1d(3, 3, 1) for _ in range(3))
            self.b.bias = self.a.bias
            self.c.weight = self.b.weight
            self.c.bias = None
            self.c.stride = (2,) if twist == "stride" else (1,)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            if twist == "layout":
                return self.b(h.transpose(0, 2)).transpose(0, 2).sum(2)
            if twist == "groups":  # one weight, for 3 channels and for 3 times 3
                wide = torch.cat([h, h**2, h**3], dim=1)
                wide = nn.functional.conv1d(wide, self.b.weight, None, groups=3)
                return self.b(h).sum(2) + wide.sum(2)
            return self.b(h).sum(2) + self.c(h).sum(2)

    R = Realization(init_(Tied().double(), 0, bias_scale=1.0))
    x = normal((3, 3, 3), 1)
    G = PullbackMetric(R, x).at(R.theta0)
    J = dense_jacobian(R, R.theta0, x)
    close(G.dense(), torch.einsum("iap,iaq->pq", J, J) / 3)


def test_an_input_changed_in_place_after_its_use_is_an_error_not_a_number():
    class Spoiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Linear(3, 3)

        def forward(self, x):
            h = x + 0
            y = self.b(h)
            h.mul_(2.0)
            return y

    R = Realization(init_(Spoiled().double(), 0))
    with pytest.raises(AssumptionError, match="inplace"):
        PullbackMetric(R, normal((5, 3), 1)).at(R.theta0).kernel()
    R = Realization(R.module, check=False)
    with pytest.raises(RuntimeError, match="inplace"):
        PullbackMetric(R, normal((5, 3), 1)).at(R.theta0).kernel()


def test_activations_in_place_are_safe():
    def net(inplace):
        act = nn.LeakyReLU(0.1, inplace=inplace)
        return nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2)).double()

    x = normal((5, 3), 1)
    a, b = Realization(init_(net(True), 0)), Realization(init_(net(False), 0))
    close(
        PullbackMetric(a, x).at(a.theta0).kernel(),
        PullbackMetric(b, x).at(b.theta0).kernel(),
        1e-14,
    )


class Unmappable(nn.Module):
    """A parameter outside any layer, and a branch on data that `vmap` refuses."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x):
        h = torch.tanh(x * self.w)
        if h.detach().sum().item() > 1e9:
            h = -h
        return h.sum(1, keepdim=True)


def test_rows_fall_back_to_a_loop_when_vmap_cannot():
    R, x = Realization(Unmappable().double()), normal((4, 3), 1)
    G = PullbackMetric(R, x).at(R.theta0)
    J = dense_jacobian(R, R.theta0, x)
    close(G.rows().dense(), J[:, 0] / 2)


def test_positions_and_outer_products_give_the_same_gram(monkeypatch):
    from geolib.core import jacobian_factors as rows_of_core
    from geolib.core.jacobian_factors import LayerBlock

    x, delta = normal((2, 5, 3, 4), 0), normal((5, 2, 2, 3, 6), 1)
    block = LayerBlock(x, delta, slice(0, 48), slice(48, 60))
    monkeypatch.setattr(rows_of_core, "CHUNK", 96)  # several pieces of each
    grams = []
    for choice in (True, False):
        monkeypatch.setattr(rows_of_core, "by_positions", lambda *_, c=choice: c)
        K = torch.zeros(5, 2, 5, 2, dtype=torch.float64)
        block.add_gram_(K, [slice(0, 2), slice(2, 5)])
        low = K.view(10, 10).tril()
        grams.append((low + low.tril(-1).mT).view(5, 2, 5, 2))
        cross = torch.zeros(5, 2, 3, 2, dtype=torch.float64)
        block.add_cross_(cross, block.at(torch.tensor([4, 0, 2])))
        close(cross, grams[-1][:, :, [4, 0, 2]])
    close(grams[0], grams[1])
    rows = torch.zeros(5, 2, 60, dtype=torch.float64)
    block.add_rows_(rows)
    close(grams[0], torch.einsum("nrq,msq->nrms", rows, rows))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda R, x: PullbackMetric(R, x, "fisher"), TypeError, "output_metric: exp"),
        (
            lambda R, x: PullbackMetric(R, x, reduction="max"),
            ValueError,
            "reduction: expected one of 'mean', 'sum'",
        ),
        (lambda R, x: PullbackMetric(R, x, batch_size=0), ValueError, "batch_size"),
        (lambda R, x: PullbackMetric(R, iter([x])), TypeError, "can be repeated"),
        (lambda R, x: PullbackMetric(R, [x], batch_size=2), ValueError, "in batches"),
        (lambda R, x: PullbackMetric(R, x[:0]), ValueError, "x: no samples"),
        (
            lambda R, x: PullbackMetric(R, (x, x[:2])),
            ValueError,
            "common leading axis",
        ),
        (
            lambda R, x: PullbackMetric(R, x).at(R.theta0 * float("nan")),
            ValueError,
            "theta: .* not finite",
        ),
        (
            lambda R, x: PullbackMetric(R, x * float("inf")).at(R.theta0).outputs(),
            ValueError,
            "x: .* not finite",
        ),
        (
            lambda R, x: PullbackMetric(R, x.float()).at(R.theta0).outputs(),
            TypeError,
            "x: dtype torch.float32",
        ),
        (
            lambda R, x: PullbackMetric(R, x).at(R.theta0) @ torch.zeros(3),
            ValueError,
            "v: .* with p = 32 as in Metric",
        ),
        (
            lambda R, x: PullbackMetric(R, x).at(R.theta0) @ (R.theta0 / 0),
            ValueError,
            "v: .* not finite",
        ),
        (
            lambda R, x: PullbackMetric(R, x).at(R.theta0) @ R.theta0.to_sparse(),
            TypeError,
            "v: expected a dense tensor",
        ),
    ],
)
def test_bad_input(build, error, message):
    module, x = make("mlp")
    with pytest.raises(error, match=message):
        build(Realization(module), x)


def test_a_softmax_of_one_class_is_refused():
    module, x = make("wide")
    R = Realization(module)
    with pytest.raises(ValueError, match="Categorical needs at least 2 outputs"):
        PullbackMetric(R, x, Categorical()).at(R.theta0).dense()


def test_batches_that_do_not_repeat_are_noticed():
    class Shrinking:
        def __init__(self, x):
            self.x, self.calls = x, 0

        def __iter__(self):
            self.calls += 1
            yield self.x[: 8 - self.calls]

    module, x = make("mlp")
    R = Realization(module)
    with pytest.raises(ValueError, match="x: batch 0 is another one"):
        PullbackMetric(R, Shrinking(x))
    G = PullbackMetric(R, Shrinking(x), check=False).at(R.theta0)
    with pytest.raises(ValueError, match="6 samples came this time, 7 the first"):
        G.dense()
