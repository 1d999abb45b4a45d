"""What users of other libraries reported, tried here: right, or refused by name.

The rows that have no test beside the code that they are about. Each stands with two more
of its kind, and every value is compared with one from another way: central differences, a
dense solve, scikit-learn, a network written in another order.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chapter_experiments import chapter_module
from sklearn.mixture import GaussianMixture as Peer
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset
from trust_modules import differences

from geolib.core import (
    AssumptionError,
    Linearization,
    PullbackMetric,
    Realization,
    init_,
    normal,
)
from geolib.core.solve_cost import IterationBudget, ProblemSize
from geolib.geodesics import (
    FunctionSpace,
    connect,
    exponential_map,
    geodesic,
    learn_sequence,
    sparsify,
)
from geolib.inverse_stability import canonicalize
from geolib.naturality import (
    KFAC,
    NaturalGradient,
    Problem,
    Projection,
    audit,
    cross_entropy,
    local_geometry,
    mse,
    projection_defect,
)
from geolib.networks import Task, align, channel_groups, permute_channels, train
from geolib.stratifolds import (
    CollarSurgery,
    GaussianMixture,
    em_fit,
    find_strata,
    learning_coefficient,
)

RIVALS = chapter_module("geodesics", "rivals")
X, Y = normal((12, 3), 1), torch.arange(12) % 3
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32]


def chain(*middle, widths=(3, 4, 3)):
    """Linear layers with something between them."""
    net = nn.Sequential(
        nn.Linear(*widths[:2]), *middle, nn.Linear(widths[1], widths[2])
    )
    return init_(net, 0, bias_scale=0.3).double().eval()


@torch.no_grad()
def relative(a, b):
    return float((a - b).norm() / b.norm())


# ---- labels and tasks ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_any_whole_type_are_those_of_int64(dtype):
    y = Y.to(dtype)
    learned = [
        learn_sequence(
            chain(nn.Tanh()), [Task(X, labels, X, labels, (0, 1, 2))], "fine-tuning",
            memory=0, gradient_evaluations=60, batch=3,
        ).weights
        for labels in (Y, y)
    ]  # fmt: skip
    assert torch.equal(*learned)
    R = Realization(chain(nn.Tanh()))
    trained = [train(R, X, labels, steps=5, batch=4) for labels in (Y, y)]
    assert torch.equal(*trained)
    z = R(R.theta0, X)
    assert torch.equal(cross_entropy(y)(z), F.cross_entropy(z, Y))
    found = audit(torch.optim.SGD, chain(nn.Tanh()), (X, y), families=["orthogonal"])
    assert found.letters == "E"


@pytest.mark.parametrize("labels", [Y.double(), Y[:, None], Y + 0j, Y[1:] - 1, Y - 1])
def test_what_are_no_labels_is_refused_by_name(labels):
    for use in (
        lambda: Task(X, labels, X, Y, (0, 1, 2)),
        lambda: train(Realization(chain(nn.Tanh())), X, labels, steps=2),
        lambda: cross_entropy(labels)(torch.zeros(12, 3)),
    ):
        with pytest.raises(ValueError, match="^y: "):
            use()


def test_a_task_without_rows_is_refused_by_name():
    none = X[:0], Y[:0]
    with pytest.raises(ValueError, match="x_test: expected a tensor of at least one"):
        Task(X, Y, *none, (0, 1, 2))
    with pytest.raises(
        ValueError, match="x: expected a tensor of at least one input, got"
    ):
        Task(*none, X, Y, (0, 1, 2))
    with pytest.raises(ValueError, match="y_test: expected one label per input"):
        Task(X, Y, X, Y[:3], (0, 1, 2))


class Steps(nn.Module):
    """A recurrent layer over a few steps, read at the last."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.read = kind(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.read(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_elastic_weights_of_recurrent_networks(kind):
    """The springs are squares of single gradients, by plain backward passes."""
    x, net = normal((12, 4, 2), 0), init_(Steps(kind).double(), 0)
    tasks = [Task(x[r], Y[r], x[r], Y[r], (0, 1, 2)) for r in (slice(6), slice(6, 12))]
    R = Realization(net)
    learner = RIVALS.EWC(R, 0, "class", 3, 0)
    learner.start_task(R.theta0, tasks[0])
    random = copy.deepcopy(learner.rng)
    learner.finish_task(R.theta0, tasks[0])
    rows = random.permutation(6)
    p = torch.softmax(net(tasks[0].x[rows]), 1)
    drawn = (p.cumsum(1) < torch.from_numpy(random.uniform(size=(6, 1)))).sum(1)
    total = 0
    for row, label in zip(rows, drawn.tolist(), strict=True):
        net.zero_grad()
        F.cross_entropy(net(tasks[0].x[row][None]), torch.tensor([label])).backward()
        total = total + torch.cat([q.grad.flatten() for q in net.parameters()]) ** 2
    torch.testing.assert_close(learner.springs[0][0], total / 6)
    options = {"memory": 0, "gradient_evaluations": 60, "batch": 3}
    assert learn_sequence(net, tasks, RIVALS.EWC, **options).converged


# ---- inputs --------------------------------------------------------------------------


class ByName(nn.Module):
    """Two inputs, by name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(1, 3)

    def forward(self, left, right):
        return torch.tanh(self.a(left)) + self.b(right)


def test_batches_of_any_form_give_the_metric_of_the_whole():
    net = init_(ByName().double(), 0)
    z, J = differences(net, (X[:, :2], X[:, 2:]))
    D = torch.einsum("nop,noq->pq", J, J) / len(z)
    pairs = TensorDataset(X[:, :2], X[:, 2:])
    for data in (
        {"left": X[:, :2], "right": X[:, 2:]},
        [{"left": X[i:j, :2], "right": X[i:j, 2:]} for i, j in ((0, 5), (5, 12))],
        [(X[i:j, :2], X[i:j, 2:]) for i, j in ((0, 5), (5, 12))],
        DataLoader(pairs, batch_size=5),
    ):
        G = PullbackMetric(net, data).at(Realization(net).theta0)
        assert relative(G.dense(), D) < 1e-8


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([X[:6], X[6:]], "list of batches is for `PullbackMetric`"),
        ({"wrong": X}, "what the module takes: .* not dict"),
        (X[:, :2], "what the module takes: .*shapes"),
        (X.long(), "what the module takes: .*Long and Double"),
        (X.sum(), "leading sample axis"),
        ((X, Y), "leave labels out"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(x, said):
    for use in (lambda R: R(R.theta0, x), lambda R: R.linearize(R.theta0, x)):
        with pytest.raises((ValueError, TypeError), match=f"^x: (?s:.*){said}"):
            use(Realization(chain(nn.Tanh())))


class Bag(nn.Module):
    """Words in no order."""

    def __init__(self, mode):
        super().__init__()
        self.words, self.read = nn.EmbeddingBag(7, 3, mode=mode), nn.Linear(3, 2)

    def forward(self, words):
        return self.read(torch.tanh(self.words(words)))


class Centres(nn.Module):
    """Distances to centres that are learned."""

    def __init__(self, p):
        super().__init__()
        self.centres, self.read = nn.Parameter(normal((4, 3), 3)), nn.Linear(4, 2)
        self.p = p

    def forward(self, x):
        return self.read(torch.cdist(x, self.centres, p=self.p))


@pytest.mark.parametrize(
    ("net", "call"),
    [
        (lambda: Bag("mean"), "embedding_bag"),
        (lambda: Bag("max"), "embedding_bag"),
        (lambda: Centres(2.0), "cdist"),
        (lambda: Centres(3.0), "cdist"),
    ],
)
def test_what_torch_cannot_differentiate_forward_is_refused_by_name(net, call):
    """Reverse mode alone is right where the check is left out."""
    net = init_(net().double(), 0)
    x = torch.arange(12).view(6, 2) % 7 if call == "embedding_bag" else X[:6]
    with pytest.raises(
        AssumptionError, match=f"second nor its forward.*call of '{call}'"
    ):
        PullbackMetric(net, x).at(Realization(net).theta0).dense()
    R = Realization(net, check=False)
    _, J = differences(net, x)
    u = normal((6, 2), 4)
    pulled = R.linearize(R.theta0, x).vjp(u)
    assert relative(pulled, torch.einsum("nop,no->p", J, u)) < 1e-8


# ---- gradients off, half precision, no damping ---------------------------------------


def surgery(net):
    CollarSurgery(net, F.cross_entropy, X, Y, eps=10.0).operate()
    return Realization(net).theta0


def natural_step(net):
    one_step(NaturalGradient(net, 0.1, damping=0.1), net)
    return Realization(net).theta0


R = Realization(chain(nn.Tanh()))
SPACE = FunctionSpace(R, X, ridge=0.1)
BOX = torch.ones(2, dtype=torch.float64)
OTHER = init_(chain(nn.Tanh()), 1)
SEARCHES = {
    "sparsify": lambda net: sparsify(net, X, 0.3, steps=2).drift,
    "sparsify units": lambda net: sparsify(net, X, 0.3, steps=2, structured=True).drift,
    "connect by an arc": lambda net: connect(net, OTHER, X, steps=3).path.control,
    "connect by a geodesic": lambda net: connect(
        net, OTHER, X, steps=3, method="geodesic"
    ).path.control,
    "learn_sequence": lambda net: learn_sequence(
        net, [Task(X, Y, X, Y, (0, 1, 2))], gradient_evaluations=60, batch=3
    ).weights,
    "train": lambda net: train(Realization(net), X, Y, steps=5, batch=4),
    "geodesic": lambda net: geodesic(
        SPACE, R.theta0, 1.1 * R.theta0, steps=3
    ).path.control,
    "exponential_map": lambda net: exponential_map(
        SPACE, R.theta0, 0.1 * R.theta0, steps=2
    ).end,
    "NaturalGradient": natural_step,
    "audit": lambda net: audit(
        torch.optim.SGD, net, (X, Y), families=["orthogonal"]
    ).letters,
    "find_strata": lambda net: str(find_strata(net, X, near=10.0)),
    "CollarSurgery": surgery,
    "learning_coefficient": lambda net: learning_coefficient(
        lambda t: t.square().sum(1), 100, -BOX, BOX, base=0.0, sampler="mala",
        theta0=torch.zeros(3, 2).double(), steps=20,
    ).value,
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_where_the_caller_switched_gradients_off(name):
    """What came of these without a graph was the start, or a raw error."""
    expected = SEARCHES[name](chain(nn.Tanh()))
    for off in (torch.no_grad, torch.inference_mode):
        net = chain(nn.Tanh())
        with off():
            found = SEARCHES[name](net)
        if isinstance(expected, str):
            assert found == expected
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_iterates_or_is_refused_by_name(dtype):
    net, x = chain(nn.Tanh()).to(dtype), X.to(dtype)
    R = Realization(net)
    G = PullbackMetric(R, x).at(R.theta0)
    _, J = differences(copy.deepcopy(net).double(), x.double())
    D = torch.einsum("nop,noq->pq", J, J) / len(J)
    for method in ("auto", "cg"):
        y = G.solve(R.theta0, 0.5, method).x.double()
        b = R.theta0.double()
        assert float((D @ y + 0.5 * y - b).norm()) < 0.1 * float(b.norm())
    for method in ("cholesky", "woodbury", "nystrom", "kfac"):
        with pytest.raises(TypeError, match="factorises matrices"):
            G.solve(R.theta0, 0.5, method)
    task = [Task(x, Y, x, Y, (0, 1, 2))]
    learned = learn_sequence(net, task, gradient_evaluations=60, batch=3)
    assert learned.weights.dtype == dtype
    assert learned.converged is bool(learned.weights.isfinite().all())


@pytest.mark.parametrize(("tol", "residual"), [(0.0, 0.1), (1e-8, 0.0), (0.0, 0.0)])
def test_the_budget_of_iterations_knows_a_residual_of_zero(tol, residual):
    budget = IterationBudget(ProblemSize(50, 10, 3, 3), tol, step=1e12)
    assert budget(4, residual) is (residual == 0.0)
    assert not budget(4, 1.0)  # nothing gained yet, and then something lost
    assert not budget(4, 2.0)


def test_a_dead_network_without_damping_is_solved_or_refused_by_name():
    """Its metric is that of the last bias, whose pseudo-inverse is the identity."""
    net = chain(nn.Tanh())
    for p in net.parameters():
        nn.init.zeros_(p)
    R = Realization(net)
    G, g = PullbackMetric(R, X).at(R.theta0), torch.ones(R.p).double()
    slow = torch.linalg.pinv(G.dense(), hermitian=True) @ g
    assert slow.norm() == pytest.approx(3**0.5)
    for method in ("cholesky", "woodbury", "auto"):
        assert relative(G.solve(g, 0.0, method).x, slow) < 1e-12
    with pytest.raises(ValueError, match="damping: .*positive"):
        G.solve(g, 0.0, "nystrom")
    with pytest.raises(ValueError, match="damping: expected more, for method 'kfac'"):
        G.solve(g, 0.0, "kfac")
    with pytest.raises(ValueError, match="damping: expected more, for method 'wood"):
        G.solve(g, 1e-300, "woodbury")


# ---- optimizers ----------------------------------------------------------------------


def one_step(opt, net, x=X, y=Y):
    def closure():
        z = net(x)
        return z, F.cross_entropy(z, y)

    before = [p.detach().clone() for p in net.parameters()]
    opt.step(closure)
    pairs = zip(before, net.parameters(), strict=True)
    return [(b - p).detach() for b, p in pairs]


def fisher_step(net, damping):
    """(F + damping)^-1 g over what is trained, dense and by central differences."""
    z, J = differences(net, X)
    G = sum(
        j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
        for j, p in zip(J, z.softmax(1), strict=True)
    ) / len(z)
    u = (z.softmax(1) - F.one_hot(Y, 3)) / len(z)
    g = torch.einsum("nop,no->p", J, u)
    return torch.linalg.solve(G + damping * torch.eye(len(g)), g)


@pytest.mark.parametrize("frozen", [(0,), (0, 1), (3,)])
@pytest.mark.parametrize(
    "given", [lambda net: net, lambda net: net.parameters(), lambda net: [
        {"params": list(net.parameters())}
    ]]
)  # fmt: skip
def test_frozen_parameters_stay_and_the_rest_takes_the_dense_step(given, frozen):
    net = chain(nn.Tanh())
    for k, p in enumerate(net.parameters()):
        p.requires_grad_(k not in frozen)
    slow = fisher_step(net, 0.1)
    moved = one_step(NaturalGradient(given(net), 1.0, damping=0.1), net)
    assert all(not moved[k].any() for k in frozen)
    free = torch.cat([t.flatten() for k, t in enumerate(moved) if k not in frozen])
    assert relative(free, slow) < 1e-6


class Shared(nn.Module):
    """Two layers of one width that share what they are told to."""

    def __init__(self, *names):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        for name in names:
            setattr(self.b, name, getattr(self.a, name))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("names", [("bias",), ("weight",), ("weight", "bias")])
def test_steps_of_layers_that_share_are_dense_steps(names):
    slow = fisher_step(init_(Shared(*names), 0, bias_scale=0.3).double(), 0.1)
    for given in (lambda net: net, lambda net: net.parameters()):
        net = init_(Shared(*names), 0, bias_scale=0.3).double()
        moved = one_step(NaturalGradient(given(net), 1.0, damping=0.1), net)
        assert relative(torch.cat([t.flatten() for t in moved]), slow) < 1e-6


class Skipping(nn.Sequential):
    """Layers in a row by their type, with a skip in their forward pass."""

    def forward(self, x):
        return self[2](x + torch.tanh(self[0](x)))


@pytest.mark.parametrize("structured", [True, False])
def test_a_skip_that_the_type_hides_is_seen(structured):
    net = Skipping(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net = init_(net, 0, bias_scale=0.3).double().eval()
    if structured:  # the only channels are the inputs' own
        with pytest.raises(ValueError, match="module: no hidden unit can be removed"):
            sparsify(net, X, 0.3, steps=3, structured=True, space="raw")
        return
    found = sparsify(net, X, 0.3, steps=3, space="raw")
    with torch.no_grad():
        change = (found.module(X) - net(X)).square().sum(1).mean().sqrt()
    assert found.drift == pytest.approx(float(change), rel=1e-6)


def test_parameters_none_of_which_is_trained_are_refused_by_name():
    net = chain(nn.Tanh()).requires_grad_(False)
    for given in (net, net.parameters(), [{"params": list(net.parameters())}]):
        with pytest.raises(ValueError, match="params: "):
            NaturalGradient(given, 0.1)


class Idle(nn.Module):
    """A chain beside a layer that no output uses."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = chain(nn.Tanh()), nn.Linear(4, 4).double()

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("kind", [KFAC, NaturalGradient])
def test_a_layer_without_use_stays_and_changes_nothing(kind, damping):
    x, y = normal((60, 3), 1), torch.arange(60) % 3
    net, twin = Idle(), chain(nn.Tanh())
    with_idle = one_step(kind(net, 1e-3, damping=damping), net, x, y)
    alone = one_step(kind(twin, 1e-3, damping=damping), twin, x, y)
    for a, b in zip(with_idle, alone, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)
    assert max(float(t.abs().max()) for t in with_idle[4:]) < 1e-9


@pytest.mark.parametrize("inplace", [nn.ReLU(True), nn.Hardtanh(inplace=True)])
def test_kfac_and_natural_steps_behind_layers_in_place(inplace):
    apart = copy.deepcopy(inplace)
    apart.inplace = False
    for kind in (KFAC, NaturalGradient):
        steps = []
        for act in (inplace, apart):
            net = chain(copy.deepcopy(act))
            steps.append(one_step(kind(net, 0.1, damping=0.1), net))
        for a, b in zip(*steps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_long_jacobian_is_not_factorised(monkeypatch):
    """From parameters alone a step was an SVD of the whole Jacobian."""
    monkeypatch.setattr(local_geometry, "LARGE", 10)
    net = chain(nn.Tanh())
    slow = fisher_step(net, 0.1)
    monkeypatch.setattr(Linearization, "jacobian", None)
    moved = one_step(NaturalGradient(net.parameters(), 1.0, damping=0.1), net)
    assert relative(torch.cat([t.flatten() for t in moved]), slow) < 1e-6


# ---- a velocity at the start ---------------------------------------------------------


def test_a_velocity_at_the_start_is_pushed_along_the_map():
    """Flow of natural momentum down a product and down its quotient, and a wrong push."""
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    narrow = Problem.of(nn.Linear(1, 1, bias=False).double(), x, mse(3 * x))
    hs = [1 / 32, 1 / 64, 1 / 128]
    for pi, start in (
        (Projection(lambda w: (w[0] * w[1]).reshape(1), "product"), [1.0, 2.0]),
        (Projection(lambda w: (w[0] + 3 * w[1]).reshape(1), "sum"), [0.5, 1.0]),
        (Projection(lambda w: (w[0] * w[1]).reshape(1), "elsewhere"), [2.0, 0.7]),
    ):
        wide = pi.pull(narrow, [(2,)], torch.tensor(start).double())
        found = projection_defect(
            "natural-momentum", wide, narrow, pi, hs, horizon=0.25
        )
        assert found.letter in "EN", (pi.name, found)
        down = torch.func.jacrev(pi.forward)(wide.theta0)
        v = 0.5 * torch.as_tensor(np.random.default_rng(1234).standard_normal(2))
        drawn = 0.5 * np.random.default_rng(1234).standard_normal(1)
        assert float((down @ v - torch.as_tensor(drawn)).abs()) > 0.05  # not that draw


# ---- strata --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act", [nn.ReLU, nn.SiLU, nn.Hardtanh, lambda inplace: nn.LeakyReLU(0.1, inplace)]
)
def test_strata_behind_layers_in_place_are_those_of_layers_apart(act):
    found = []
    for inplace in (True, False):
        net = chain(act(inplace=inplace), widths=(3, 5, 2))
        with torch.no_grad():
            net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
        x = X.clone()
        found.append(find_strata(net, x, near=0.01))
        assert torch.equal(x, X)
        assert net[1].inplace is inplace
    assert str(found[0]) == str(found[1])
    assert any(s.kind == "overlap" and s.units == (0, 1) for s in found[0])


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_constant_data_make_constant_units_of_the_measured_deficit(value):
    """Of one unit: its outgoing weights and those of the bias, one direction fewer each."""
    net, x = chain(nn.Tanh()), torch.full((12, 3), value, dtype=torch.float64)
    found = find_strata(net, x)
    assert {s.kind for s in found} == {"constant unit"}
    assert {s.units for s in found} == {(0,), (1,), (2,), (3,)}
    _, J = differences(net, x)
    part = J.flatten(0, 1)
    columns = [12, 16, 20, 24, 28, 29, 30]  # bias of unit 0, its v, the last biases
    rank = int(torch.linalg.matrix_rank(part[:, columns], rtol=1e-7))
    assert len(columns) - rank == found[0].deficit == found[0].predicted


def test_two_samples_are_enough_and_one_is_refused_by_name():
    net = chain(nn.Tanh())
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
    (found,) = find_strata(net, X[:2], near=0.01)
    assert (found.kind, found.units) == ("overlap", (0, 1))
    with pytest.raises(ValueError, match="data: expected a tensor of at least 2"):
        find_strata(net, X[:1])


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (lambda: chain(nn.BatchNorm1d(4), nn.Tanh()), "'BatchNorm1d', 'Tanh'"),
        (lambda: chain(nn.LayerNorm(4), nn.Tanh()), "'LayerNorm', 'Tanh'"),
        (lambda: chain(nn.PReLU()), "'PReLU'"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten()), "Linear"),
        (lambda: Idle(), "Idle"),
    ],
)
def test_networks_without_such_strata_are_refused_by_name(net, said):
    with pytest.raises((ValueError, TypeError), match=f"module: expected .*{said}"):
        find_strata(net().double().eval(), X)


# ---- mixtures ------------------------------------------------------------------------


def mixture(means, scale=1.0):
    means = torch.tensor(means).double()
    K, d = means.shape
    eye = scale * torch.eye(d).double()
    return GaussianMixture(
        torch.full((K,), 1.0 / K).double(), means, eye.expand(K, d, d)
    )


def test_copies_of_one_point_collapse_and_say_so():
    x = torch.tensor([[1.0, 2.0]]).double().expand(10, 2)
    for start in (mixture([[0.0, 0.0]]), mixture([[0.0, 0.0], [1.0, 1.0]])):
        found = em_fit(x, start)
        assert not found.converged
        assert found.collapsed == tuple(range(len(start.weights)))
    with pytest.raises(ValueError, match="n_components: expected 1 to 1"):
        em_fit(x, 2)


def test_more_components_than_points():
    x = normal((3, 2), 0)
    with pytest.raises(ValueError, match="n_components: expected 1 to 3.*got 5"):
        em_fit(x, 5)
    found = em_fit(x, mixture(normal((5, 2), 1).tolist()))
    assert not found.converged
    assert found.collapsed


@pytest.mark.parametrize("columns", [(1,), (0,), (0, 2)])
def test_constant_columns_are_refused_or_regularised_as_scikit_learn_does(columns):
    x = normal((200, 3), 0)
    x[:100] += 4.0
    x[:, list(columns)] = 1.0
    with pytest.raises(ValueError, match="span all 3 dimensions; got a singular"):
        em_fit(x, 2)
    found = em_fit(x, 2, reg_covar=1e-3, tol=1e-10)
    assert found.converged
    assert not found.collapsed
    peer = Peer(
        2, reg_covar=1e-3, tol=1e-10, max_iter=500, n_init=3, random_state=0
    ).fit(x.numpy())
    assert found.log_likelihood[-1] == pytest.approx(peer.score(x.numpy()), abs=1e-6)


@pytest.mark.parametrize("far", [30.0, 1e3, 1e9])
def test_a_start_far_away_is_left_or_named(far):
    x = normal((100, 2), 0)
    start = mixture([[far, 0.0], [far, 1.0]])
    found = em_fit(x, start, max_iter=2)
    if far > 1e8:
        assert not found.converged
        assert found.collapsed
        return
    peer = Peer(
        2, weights_init=[0.5, 0.5], means_init=start.means.numpy(), reg_covar=0.0,
        precisions_init=np.stack([np.eye(2)] * 2), max_iter=2, tol=0.0,
    )  # fmt: skip
    with pytest.warns(Warning, match="converge"):
        peer.fit(x.numpy())
    torch.testing.assert_close(
        found.mixture.means, torch.as_tensor(peer.means_), rtol=1e-6, atol=1e-6
    )


# ---- learning coefficients -----------------------------------------------------------


@pytest.mark.parametrize("n", [10**6, 10**7, 10**8])
def test_the_default_grid_is_refused_where_it_is_too_coarse(n):
    box = torch.ones(2, dtype=torch.float64)
    for centre in (0.0, 0.3137):
        with pytest.raises(ValueError, match="points: expected a grid that resolves"):
            learning_coefficient(
                lambda t, c=centre: (t - c).square().sum(1), n, -box, box, base=0.0
            )


@pytest.mark.parametrize("power", [3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
def test_what_a_grid_answers_is_right_whatever_its_size(power):
    """A regular direction has 1/2; a grid says so or is refused, for forty sizes."""
    box, n = torch.ones(1, dtype=torch.float64), int(10**power)
    for points in range(30, 270, 6):
        try:
            found = learning_coefficient(
                lambda t: (t - 0.137).square().sum(1), n, -box, box, base=0.0,
                points=[points],
            ).value  # fmt: skip
        except ValueError:
            continue
        assert abs(found - 0.5) < 0.1, points


# ---- networks read by their channels -------------------------------------------------


class Sequence(nn.Module):
    """Tokens (n, t, c), each by itself, with a skip."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h + torch.tanh(self.b(h)))


class Convolved(nn.Module):
    """A convolution over time between linear maps of the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Conv1d(5, 4, 3, padding=1)
        self.c = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.a(x)).transpose(1, 2)
        return self.c(torch.relu(self.b(h)).transpose(1, 2))


def encoder():
    block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 3))


@pytest.mark.parametrize("build", [Sequence, Convolved, encoder])
def test_a_network_of_sequences_in_another_order_is_found(build):
    net = init_(build(), 0, bias_scale=0.3).double().eval()
    x, other = normal((4, 6, 3), 5), copy.deepcopy(net)
    orders = []
    for group in channel_groups(other):
        blocks = np.arange(group.width).reshape(-1, group.width // max(1, group.blocks))
        blocks = blocks if group.blocks > 1 else blocks.T
        orders.append(np.random.default_rng(1).permutation(blocks).ravel())
    permute_channels(other, orders)
    assert relative(other(x), net(x)) < 1e-12
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (net, other)]
    assert relative(*weights) > 0.1
    found = align(net, other)
    assert found.distance < 1e-9
    assert relative(found.module(x), net(x)) < 1e-12


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_parametrized_layers_are_refused_by_what_to_do(wrap):
    def net():
        made = chain(nn.ReLU())
        wrap(made[0])
        return made.eval()

    for use in (
        lambda: align(net(), net()),
        lambda: align(net(), chain(nn.ReLU())),
        lambda: canonicalize(net()),
        lambda: sparsify(net(), X, 0.3, steps=2),
    ):
        with pytest.raises(ValueError, match="parametriz"):
            use()


@pytest.mark.parametrize("use", [align, None])
def test_a_compiled_module_is_refused_by_what_to_do(use):
    net = torch.compile(chain(nn.ReLU()), backend="eager")
    with pytest.raises(ValueError, match=r"OptimizedModule.*_orig_mod"):
        align(net, net) if use else canonicalize(net)
