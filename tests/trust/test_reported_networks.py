"""What users of other libraries reported, tried here: labels, inputs and networks.

The rows that have no test beside the code that they are about. Each stands with two more
of its kind, and every value is compared with one from another way.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from central_differences import relative
from chapter_experiments import chapter_module
from reported_cases import X, Y, chain, one_step
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset
from trust_modules import differences

from geolib.core import (
    Linearization,
    Metric,
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
from geolib.inverse_stability import canonicalize, random_gauge
from geolib.naturality import (
    NaturalGradient,
    audit,
    cross_entropy,
)
from geolib.networks import Task, align, channel_groups, permute_channels, train
from geolib.stratifolds import (
    CollarSurgery,
    find_strata,
    learning_coefficient,
)

RIVALS = chapter_module("geodesics", "rivals")
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32]


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


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize(
    ("net", "call"),
    [
        (lambda: Bag("mean"), "embedding_bag"),
        (lambda: Bag("max"), "embedding_bag"),
        (lambda: Centres(2.0), "cdist"),
        (lambda: Centres(3.0), "cdist"),
    ],
)
def test_what_torch_can_differentiate_backward_only_is_right(net, call):
    net = init_(net().double(), 0)
    x = torch.arange(12).view(6, 2) % 7 if call == "embedding_bag" else X[:6]
    R = Realization(net)
    L, G = R.linearize(R.theta0, x), PullbackMetric(R, x).at(R.theta0)
    _, J = differences(net, x)
    D = torch.einsum("nop,noq->pq", J, J) / 6
    u, v = normal((6, 2), 4), normal((2, R.p), 5)
    assert relative(L.vjp(u), torch.einsum("nop,no->p", J, u)) < 1e-8
    assert relative(L.jvp(v), torch.einsum("nop,kp->kno", J, v)) < 1e-8
    assert relative(G.dense(), D) < 1e-8
    slow = torch.linalg.solve(D + 0.1 * torch.eye(R.p), v[0])
    for method in ("cholesky", "woodbury", "cg", "nystrom", "kfac", "auto"):
        assert relative(G.solve(v[0], 0.1, method, tol=1e-12).x, slow) < 1e-7, method


# ---- gradients off, half precision, no damping ---------------------------------------


def surgery(net):
    CollarSurgery(net, F.cross_entropy, X, Y, eps=10.0).operate()
    return Realization(net).theta0


def natural_step(net):
    one_step(NaturalGradient(net, 0.1, damping=0.1), net)
    return Realization(net).theta0


R = Realization(chain(nn.Tanh()))
SPACE = FunctionSpace(R, X, damping=0.1)
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
def test_half_precision_is_solved_for_in_float32(dtype):
    net, x = chain(nn.Tanh()).to(dtype), X.to(dtype)
    R = Realization(net)
    streamed = PullbackMetric(R, x, batch_size=5).at(R.theta0)
    G = PullbackMetric(R, x).at(R.theta0)
    _, J = differences(copy.deepcopy(net).double(), x.double())
    D = torch.einsum("nop,noq->pq", J, J) / len(J)
    u = normal((12, 3), 2).to(dtype)
    sides = R.theta0, normal(R.p, 1).to(dtype), u
    for method in ("auto", "cg", "cholesky", "woodbury", "nystrom", "kfac"):
        for g in sides:
            for damping in (0.5, 1e-3):
                found = G.solve(g, damping, method, tol=1e-3)
                y = found.x.double()
                b = g.double()
                b = b if b.ndim == 1 else torch.einsum("nop,no->p", J, b)
                gap = float((D @ y + damping * y - b).norm() / b.norm())
                assert found.converged
                assert abs(gap - found.residual) < 2e-4, (method, damping)
    y = streamed.solve(u, 0.5, "cg", tol=1e-5).x
    torch.testing.assert_close(y, G.solve(u, 0.5, "woodbury").x, rtol=1e-3, atol=1e-5)
    values = torch.linalg.eigvalsh(D).flip(0)
    assert float((G.spectrum(3).values - values[:3]).abs().max()) < 1e-5 * values[0]
    assert G.rank(1e-3) == int((values > 1e-6 * values[0]).sum())
    L = R.linearize(R.theta0, x)
    bare = Metric.from_linearization(Linearization(L.graph, L.leaves))
    with pytest.raises(TypeError, match=r"L: half precision .*R.linearize"):
        bare.solve(R.theta0, 0.5)
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
    for method in ("cholesky", "woodbury", "auto", "cg"):
        assert relative(G.solve(g, 0.0, method).x, slow) < 1e-12
    for method in ("nystrom", "kfac"):
        with pytest.raises(ValueError, match="damping: .*positive"):
            G.solve(g, 0.0, method)
    with pytest.raises(ValueError, match="damping: expected more, for method 'wood"):
        G.solve(g, 1e-300, "woodbury")


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


class Again(nn.Module):
    """A layer that is called on the inputs, and on hidden channels again."""

    def __init__(self, order):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.order = order

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(torch.relu(x))
        return self.read(x)


@pytest.mark.parametrize("order", ["aa", "aba", "aab", "baa", "abab"])
@pytest.mark.parametrize("use", [canonicalize, random_gauge, align, permute_channels])
def test_a_layer_of_the_inputs_that_hidden_channels_go_through_again(order, use):
    """Its channels are those of the inputs: they were scaled, and the function changed."""
    net = init_(Again(order), 971, bias_scale=0.3).double().eval()
    other, x = copy.deepcopy(net), normal((20, 4), 972).abs()
    if use is permute_channels:
        groups = channel_groups(other)
        permute_channels(other, [np.roll(np.arange(g.width), 1) for g in groups])
    elif use is align:
        other = align(init_(Again(order), 973).double().eval(), net).module
    else:
        other = use(other)
    assert relative(getattr(other, "module", other)(x), net(x)) < 1e-12


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
