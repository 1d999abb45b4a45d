"""What a stranger met: each a kind of wrong answer, or of a message that says nothing."""

import collections

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from geolib.core import Euclidean, PullbackMetric, Realization, normal
from geolib.geodesics import FunctionSpace, connect, sparsify
from geolib.inverse_stability import canonicalize
from geolib.naturality import NaturalGradient, audit, cross_entropy, mse, standard_suite
from geolib.naturality.affine_layers import blocks
from geolib.networks import accuracy, align, minimize, mlp
from geolib.stratifolds import find_strata, learning_coefficient

X, Y = normal((20, 3), 0), normal((20, 2), 1)
BOX = torch.ones(2).double()
Pair = collections.namedtuple("Pair", "a b")


class Gives(nn.Module):
    """A linear layer whose outputs are put into something."""

    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(3, 2).double(), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


class Ahead(nn.Module):
    """Computes its weight when it is built, and not when it is called."""

    def __init__(self, kept):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.kept = {"weight": 2 * self.layer.weight, "bias": 2 * self.layer.bias}[kept]

    def forward(self, x):
        return self.layer(x) + (self.kept if self.kept.ndim == 1 else x @ self.kept.mT)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


class Indexed(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]


@pytest.mark.parametrize("theta", [torch.ones(2), torch.ones(1, 8), torch.ones(9)])
def test_a_point_of_another_length_is_refused_where_it_is_given(theta):
    with pytest.raises(ValueError, match=r"theta: expected .* shape \(p\)"):
        PullbackMetric(nn.Linear(3, 2), X.float()).at(theta)


@pytest.mark.parametrize("sampler", ["grid", "mala"])
@pytest.mark.parametrize(
    "loss", [lambda t: (t**2).sum(), lambda t: 1.0, lambda t: (t**2).sum(1, True)]
)
def test_a_loss_that_is_not_one_number_a_point(loss, sampler):
    plan = {"base": 0.0, "sampler": sampler, "theta0": 0.1 * torch.ones(3, 2).double()}
    with pytest.raises(ValueError, match="loss: expected one number for each point"):
        learning_coefficient(loss, 100, -BOX, BOX, **plan)


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda z: Pair(z, z), "a Pair"),
        (lambda z: (z, z), "a tuple"),
        (lambda z: [z], "a list"),
        (lambda z: None, "a NoneType"),
        (lambda z: {"out": z}, "a dict"),
    ],
)
def test_outputs_in_a_container_say_what_to_do(wrap, kind):
    module = Gives(wrap)
    R = Realization(module)
    with pytest.raises(TypeError, match=f"module: .*got {kind}; wrap it in a module"):
        R(R.theta0, X)


@pytest.mark.parametrize("data", [Stream(), Indexed()])
def test_a_set_of_single_samples_asks_for_a_loader(data):
    R = Realization(nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match=r"x: expected batches, as of DataLoader\(x"):
        PullbackMetric(R, data)
    whole = PullbackMetric(R, X).at(R.theta0).dense()
    batches = PullbackMetric(R, DataLoader(data, 6)).at(R.theta0).dense()
    torch.testing.assert_close(batches, whole)


@pytest.mark.parametrize("kept", ["weight", "bias"])
def test_a_tensor_computed_ahead_from_a_weight_is_refused(kept):
    """Its derivative came out as zero."""
    module = Ahead(kept)
    R = Realization(module)
    with pytest.raises(
        ValueError, match=f"computed from 'layer.{kept}'; compute it in"
    ):
        PullbackMetric(R, X).at(R.theta0).dense()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("check", [True, False])
def test_a_weight_that_a_hook_computes_is_right_and_stays(hook, check):
    """The hook writes what it computes into the module: products leave nothing there."""
    module = hook(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))[0])
    module = nn.Sequential(module, nn.Tanh(), nn.Linear(4, 2)).double().eval()
    before, held = module(X).detach(), module[0].weight
    R = Realization(module, check=check)
    J = R.linearize(R.theta0, X).jacobian()
    many = torch.vmap(R, (0, None))(torch.stack([R.theta0, 2 * R.theta0]), X)
    torch.testing.assert_close(many[0], before)
    for k, e in enumerate(1e-6 * torch.eye(R.p).double()):
        slow = (R(R.theta0 + e, X) - R(R.theta0 - e, X)) / 2e-6
        torch.testing.assert_close(J[..., k], slow, rtol=0, atol=1e-8)
    assert module[0].weight is held
    torch.testing.assert_close(module(X).detach(), before)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_what_cuts_or_permutes_refuses_a_weight_that_a_hook_computes(hook):
    def net(seed):
        made = mlp([3, 5, 2], seed=seed)
        hook(made[1])
        return made.eval()

    a, b = net(0), net(1)
    for use in (
        lambda: align(a, b),
        lambda: canonicalize(a),
        lambda: sparsify(a, X, 0.3, steps=2),
        lambda: find_strata(a, X),
    ):
        with pytest.raises(
            ValueError, match="module: layer 1 .* computes its 'weight'"
        ):
            use()
    if hook is nn.utils.spectral_norm:  # each has a vector of its own
        with pytest.raises(ValueError, match="b: the constant '1.weight_u'"):
            connect(a, b, X, steps=3)
        return
    found = connect(a, b, X, steps=3)
    for net_at, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(found.module(net_at)(X), end(X))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("flat", [nn.Flatten, nn.Identity])
def test_single_rows_are_refused_whatever_came_before(known, flat):
    """Four rows of four numbers stood for four samples each, once R had been checked."""
    x = normal((5, 4), 3)
    R = Realization(nn.Sequential(flat(), nn.Linear(4, 4)).double())
    if known:
        R.linearize(R.theta0, x)
    for use in (
        lambda: R(R.theta0, x[0]),
        lambda: R.linearize(R.theta0, x[0]),
        lambda: PullbackMetric(R, list(x)).at(R.theta0).dense(),
        lambda: PullbackMetric(R, DataLoader(x, None)).at(R.theta0).trace(),
    ):
        with pytest.raises(ValueError, match="^x: expected what the module takes"):
            use()


@pytest.mark.parametrize("size", [3, 5])
def test_inputs_of_another_width_are_named_also_when_others_have_run(size):
    R = Realization(nn.Linear(4, 2).double())
    R.linearize(R.theta0, normal((6, 4), 0))
    data = [normal((6, 4), 0), normal((6, size), 1)]
    with pytest.raises(ValueError, match="^x: expected what the module takes"):
        PullbackMetric(R, data).at(R.theta0).dense()


def test_a_fault_is_named_once():
    """And an option that is at fault is no fault of the module's."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="^module_a, module_b: expected the arch"):
        align(mlp([3, 4, 2]), plain.double())
    with pytest.raises(ValueError, match="^damping: expected None beside trust"):
        NaturalGradient(mlp([3, 2]), 0.1, damping=0.1, trust=0.1)


@pytest.mark.parametrize(
    "option", [{"trust": 0.05}, {"momentum": 0.9}, {"interval": 10}]
)
def test_an_option_that_would_do_nothing_is_refused_also_at_its_usual_value(option):
    net, plain = mlp([3, 2]), mlp([3, 2])
    with pytest.raises(ValueError, match="damping: expected None beside trust"):
        NaturalGradient(net, 0.1, damping=0.1, **option)
    ((name, usual),) = option.items()
    other = type(usual)(usual / 2)
    assert getattr(NaturalGradient(net, **{name: other}).tuning, name) == other
    for opt, of in (
        (NaturalGradient(net, **option), net),
        (NaturalGradient(plain), plain),
    ):
        for _ in range(3):
            opt.step(lambda of=of: (z := of(X), (z - Y).square().mean()))
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("labels", [[1.0, 0.0], [True, False], [1 + 0j, 0]])
def test_accuracy_counts_whole_numbers_only(labels):
    R = Realization(mlp([3, 2]))
    with pytest.raises(ValueError, match="^y: expected a tensor"):
        accuracy(R, R.theta0, X[:2], torch.tensor(labels))


def test_targets_of_an_audit_tell_its_loss():
    """Labels of any whole type have a cross entropy, shares of classes a squared loss."""
    net, families = mlp([3, 2]), ["permutation", "orthogonal"]
    classes = (X[:, 0] > 0).long()
    shares = 0.8 * nn.functional.one_hot(classes, 2).double() + 0.1
    for y, loss in ((classes.int(), cross_entropy(classes)), (shares, mse(shares))):
        told = audit("adam", net, (X, y), families=families)
        given = audit("adam", net, (X, y), loss=loss, families=families)
        for name in families:
            assert told.defects[name].values == given.defects[name].values


def test_a_loss_that_is_no_number_is_said():
    w = torch.ones(2).double().requires_grad_()
    with pytest.raises(FloatingPointError, match="the result of minimize"):
        minimize([w], lambda step: (w * float("nan")).sum(), 3, 0.1)
    w = torch.ones(2).double().requires_grad_()
    with pytest.raises(
        ValueError, match="^parameters, loss: expected what the .* function given"
    ):
        minimize([w], lambda step: w @ torch.ones(3).double(), 3, 0.1)


class Wants(nn.Module):
    """A module that asks its input for what it has not."""

    def __init__(self, read):
        super().__init__()
        self.layer, self.read = nn.Linear(3, 2).double(), read

    def forward(self, x):
        return self.layer(self.read(x))


@pytest.mark.parametrize("read", [lambda x: x.flat(), lambda x: x["a"], lambda x: x[9]])
def test_inputs_that_a_module_cannot_use_are_named(read):
    R = Realization(Wants(read))
    with pytest.raises(ValueError, match="x: expected what the module takes"):
        R(R.theta0, X[:2])
    with pytest.raises(ValueError, match="x: expected what the module takes"):
        PullbackMetric(R, {"b": X, "label": X}).at(R.theta0).dense()


@pytest.mark.parametrize(
    "use",
    [
        lambda net: NaturalGradient(net, 0.1),
        lambda net: find_strata(net, X),
        lambda net: sparsify(net, X, 0.5, steps=2),
        lambda net: PullbackMetric(net, X),
    ],
)
def test_a_module_without_weights_yet_is_named(use):
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)).double()
    with pytest.raises(
        ValueError, match=r"(R|params|module): .*is lazy; run the module"
    ):
        use(net)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_is_named():
    R = Realization(nn.Linear(3, 2).double())
    with pytest.raises(TypeError, match="x: expected a dense tensor, got a nested one"):
        R(R.theta0, torch.nested.nested_tensor([X[0], X[1]]))


def test_what_is_wrong_with_a_module_is_said_of_the_argument_that_it_came_as():
    for module, x in ((nn.Sequential(), X), (nn.Linear(5, 2).double(), X)):
        with pytest.raises(ValueError, match="^(realization: module|x):"):
            FunctionSpace(module, x)


def test_a_network_made_in_inference_mode_is_one_as_any_other():
    with torch.inference_mode():
        made = mlp([3, 4, 2], seed=0)
    for use in (lambda net: find_strata(net, X), lambda net: align(net, net).distance):
        assert str(use(made)) == str(use(mlp([3, 4, 2], seed=0)))


@pytest.mark.parametrize("name", ["sgd", "SGD", "Adam"])
def test_an_optimizers_name_is_found_whatever_its_case(name):
    families = ["permutation", "uniform"]
    assert audit(name, mlp([3, 2]), (X, Y), families=families).letters == "EU"


def test_a_name_that_is_nearly_one_is_suggested():
    with pytest.raises(ValueError, match="did you mean .*adam"):
        audit("adamm", mlp([3, 2]), (X, Y))


@pytest.mark.parametrize(
    ("whole", "metric", "zeroed", "lacks"),
    [
        (True, None, True, "needs an output_metric"),
        (False, Euclidean(), True, "needs a module"),
        (False, None, True, "needs a module"),
        (True, Euclidean(), False, r"needs zero_grad\(\) before the forward pass"),
    ],
)
def test_a_step_after_backward_says_which_thing_is_missing(
    whole, metric, zeroed, lacks
):
    net = mlp([3, 4, 2])
    opt = NaturalGradient(net if whole else net.parameters(), output_metric=metric)
    if zeroed:
        opt.zero_grad()
    (net(X) - Y).square().mean().backward()
    with pytest.raises(ValueError, match=lacks):
        opt.step()


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(3, 2, 2),
        nn.ConvTranspose1d(2, 2, 2, groups=2),
        nn.Conv1d(1, 2, 2),
        nn.Bilinear(1, 1, 2),
    ],
)
def test_charts_of_a_layer_whose_weight_and_bias_differ_in_rows(layer):
    """Every entry of the vector lies in one block, and each chart is undone."""
    net = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)).double()
    if not isinstance(layer, nn.Bilinear):
        net(torch.zeros(1, layer.in_channels, 3).double())
    else:
        net = layer.double()
    rows = torch.cat([block.flatten() for block in blocks(net)])
    assert sorted(rows.tolist()) == list(range(len(rows)))
    theta = Realization(net, check=False).theta0
    for chart in standard_suite(net, theta).values():
        torch.testing.assert_close(chart.inverse(chart.forward(theta)), theta)


class Given(Dataset):
    """Rows that a function makes of their number."""

    def __init__(self, row):
        self.row = row

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.row(i)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (lambda i: {"x": X[i]}, "rows that are tensors, or a transform .* got dict"),
        (lambda i: "a", "rows that are tensors, or a transform"),
        (lambda i: X[0].repeat(i + 1), "rows that can be put in one tensor: stack"),
        (lambda i: None, "rows that can be put in one tensor: default_collate"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, 4)])
def test_rows_that_make_no_batch_are_refused_by_name(row, said, wrap):
    data = wrap(Given(row))
    for use in (
        lambda: sparsify(mlp([3, 4, 2]), data, 0.3, steps=2),
        lambda: connect(mlp([3, 4, 2]), mlp([3, 4, 2], seed=1), data, steps=2),
    ):
        with pytest.raises(ValueError, match=f"^data: expected {said}"):
            use()


def test_rows_by_name_are_taken_with_a_transform():
    net, data = mlp([3, 4, 2]), Given(lambda i: {"x": X[i], "label": i})
    found = sparsify(net, data, 0.3, steps=2, transform=lambda row: row["x"])
    assert found.drift == sparsify(net, X, 0.3, steps=2).drift
