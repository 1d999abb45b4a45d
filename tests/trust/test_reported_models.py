"""What users of other libraries reported, tried here: strata, mixtures, coefficients.

The rows that have no test beside the code that they are about. Each stands with two more
of its kind, and every value is compared with one from another way.
"""

import numpy as np
import pytest
import torch
from reported_cases import X, chain
from sklearn.mixture import GaussianMixture as Peer
from torch import nn
from trust_modules import differences

from geolib.core import normal
from geolib.networks import align, mlp
from geolib.stratifolds import (
    GaussianMixture,
    em_fit,
    find_strata,
    learning_coefficient,
    natural_fit,
)

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
    "net",
    [
        lambda: chain(nn.BatchNorm1d(4), nn.Tanh()),
        lambda: chain(nn.LayerNorm(4), nn.Tanh()),
        lambda: chain(nn.PReLU()),
    ],
)
def test_networks_that_were_refused_have_strata(net):
    net = net().double().eval()
    assert find_strata(net, X, near=1e-6) == []
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
    found = find_strata(net, X, near=1e-6)
    assert [(s.kind, s.units) for s in found if s.verified] == [("overlap", (0, 1))]


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
    with pytest.raises(ValueError, match="span all 3 dimensions, got 'a singular"):
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


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["full", "diag", "spherical", "tied", "fixed"])
def test_a_component_that_no_point_belongs_to(kind, d):
    """Its responsibilities are zero in this precision: it is thin, or keeps its place."""
    x, means = normal((40, d), 971), torch.zeros(2, d).double()
    means[0] = 60.0
    found = em_fit(x, mixture(means.tolist()), covariance_type=kind, max_iter=50)
    if kind not in ("tied", "fixed"):
        assert found.collapsed == (0,)
        assert not found.converged
        return
    assert found.converged
    assert torch.equal(found.mixture.means[0], means[0])
    torch.testing.assert_close(found.mixture.means[1], x.mean(0))
    assert found.mixture.weights[0] < 1e-300


@pytest.mark.parametrize("far", [1e10, 1e12])
def test_a_fit_that_is_lost_far_away_has_not_converged(far):
    """A step gains a half of a unit there, of 1e24 that the likelihood is below."""
    x, start = normal((40, 3), 971), mixture((far + normal((2, 3), 972)).tolist())
    found = natural_fit(x, start)
    assert found.log_likelihood[-1] < -1e15
    assert not found.converged


@pytest.mark.parametrize(
    "use",
    [
        lambda tol: em_fit(normal((40, 2), 0), 2, tol=tol),
        lambda tol: natural_fit(normal((40, 2), 0), mixture([[0.0, 0.0]]), tol=tol),
        lambda tol: align(mlp([3, 4, 2]), mlp([3, 4, 2], seed=1), tol=tol),
    ],
)
def test_a_tolerance_that_all_would_meet(use):
    with pytest.raises(
        ValueError, match="^tol: expected a finite number >= 0, got inf"
    ):
        use(np.inf)


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


def test_matrices_that_are_not_symmetric_are_no_covariances():
    """Of such a matrix torch's factorisation reads one half."""
    one = torch.ones(1, dtype=torch.float64)
    S = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]], dtype=torch.float64)
    with pytest.raises(ValueError, match="covariances: expected positive definite"):
        GaussianMixture(one, torch.zeros(1, 2).double(), S)
    slightly = 0.5 * (S + S.mT)
    slightly[0, 0, 1] += 1e-12  # rounding is no asymmetry
    GaussianMixture(one, torch.zeros(1, 2).double(), slightly)


@pytest.mark.parametrize("points", [[1], [1, 200]])
def test_a_grid_of_one_node_resolves_nothing(points):
    """With it the coefficient was 0, with error 0."""
    box = torch.ones(len(points), dtype=torch.float64)
    with pytest.raises(ValueError, match="^points: expected .* with 2 <= points"):
        learning_coefficient(
            lambda t: t.square().sum(1), 300, -box, box, base=0.0, points=points
        )


@pytest.mark.parametrize("where", [0.0, 0.9])
def test_a_loss_that_is_no_number_is_refused_by_name(where):
    box = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="^loss: expected a number at each node"):
        learning_coefficient(
            lambda t: (t[:, 0] - where).sqrt(), 300, -box, box, base=0.0, points=[80]
        )


def test_a_loss_of_another_shape_is_refused_by_name():
    box = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="loss: expected one number for each point"):
        learning_coefficient(torch.square, 100, -box, box, base=0.0, points=[50])


def test_a_grid_whose_nodes_miss_a_well_is_refused():
    """Its own nodes look close enough, as all of them lie in the other well."""

    def loss(t):
        narrow = 1e6 * (t[:, 0] - 18 / 33).square() - 0.2
        return torch.minimum((t[:, 0] + 0.5).square(), narrow)

    box, n = torch.ones(1, dtype=torch.float64), 400
    with pytest.raises(ValueError, match="points: expected a grid that resolves"):
        learning_coefficient(loss, n, -box, box, base=-0.2, points=[50])
    fine, finer = (
        learning_coefficient(loss, n, -box, box, base=-0.2, points=[k]).value
        for k in (50_001, 80_001)
    )
    assert abs(fine - finer) < 1e-3
    assert 0.4 < fine < 0.6  # that of the narrow well, a parabola's
