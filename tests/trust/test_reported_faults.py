"""What a stranger met: each a kind of wrong answer, or of a message that says nothing."""

import collections

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from geolib.core import Euclidean, PullbackMetric, Realization, normal
from geolib.geodesics import FunctionSpace, sparsify
from geolib.naturality import NaturalGradient, audit
from geolib.networks import align, mlp
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


def test_old_weight_norm_is_right():
    with pytest.warns(FutureWarning):
        module = nn.utils.weight_norm(nn.Linear(3, 2)).double()
    R = Realization(module)
    J = R.linearize(R.theta0, X).jacobian()
    for k, e in enumerate(1e-6 * torch.eye(R.p).double()):
        slow = (R(R.theta0 + e, X) - R(R.theta0 - e, X)) / 2e-6
        torch.testing.assert_close(J[..., k], slow, rtol=0, atol=1e-8)
    torch.testing.assert_close(R(R.theta0, X), module(X).detach())


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
        with pytest.raises(ValueError, match="^realization: (module|x):"):
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
