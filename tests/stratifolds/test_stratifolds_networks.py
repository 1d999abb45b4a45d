"""Strata of real networks and collar surgery: ranks, guards, structures refused."""

import copy

import pytest
import torch
from torch import nn

from geolib.core import Realization, init_, normal
from geolib.stratifolds import (
    CollarSurgery,
    find_strata,
    hidden_layers,
    overlap_distances,
    overlap_forms,
)
from geolib.stratifolds.find_strata import merged_unit
from geolib.stratifolds.surgery import extreme_pairs

F64 = torch.float64


def tanh_net(n=2, width=4, out=1, seed=0, activation=None):
    net = nn.Sequential(
        nn.Linear(n, width), activation or nn.Tanh(), nn.Linear(width, out)
    )
    return init_(net.double(), seed, bias_scale=0.7)


def full_deficit(net, x):
    """Rank deficit of the whole Gauss-Newton matrix, from core's dense Jacobian."""
    R = Realization(net)
    J = R.linearize(R.theta0, x).jacobian().reshape(-1, R.p)
    s = torch.linalg.svdvals(J)
    return int((s < 1e-11 * s[0]).sum())


def overlap(net, i, j, sign=1.0):
    with torch.no_grad():
        net[0].weight[j] = sign * net[0].weight[i]
        net[0].bias[j] = sign * net[0].bias[i]


def dead(net, i):
    with torch.no_grad():
        net[2].weight[:, i] = 0


def constant(net, i):
    with torch.no_grad():
        net[0].weight[i] = 0


X = normal((4000, 2), seed=9)
TABLE = [
    ((), 0),
    ((lambda m: overlap(m, 0, 1),), 4),
    ((lambda m: overlap(m, 0, 1, -1.0),), 4),
    ((lambda m: dead(m, 2),), 3),
    ((lambda m: constant(m, 2),), 2),
    ((lambda m: overlap(m, 0, 1), lambda m: dead(m, 2)), 7),
    ((lambda m: overlap(m, 0, 1), lambda m: constant(m, 2)), 6),
]


@pytest.mark.parametrize(("moves", "deficit"), TABLE)
def test_table_of_rank_deficits(moves, deficit):
    net = tanh_net()
    for move in moves:
        move(net)
    assert full_deficit(net, X[:400]) == deficit
    found = find_strata(net, X, near=1e-6)
    assert all(s.verified for s in found)
    assert len(found) == len(moves)
    if len(moves) == 1:
        assert found[0].deficit == found[0].predicted == deficit
        assert found[0].gap > 1e10


@pytest.mark.parametrize("out", [1, 3])
@pytest.mark.parametrize("kind", ["overlap", "dead output", "constant unit"])
def test_deficits_with_several_outputs_match_the_full_jacobian(out, kind):
    net = tanh_net(n=3, out=out, seed=2)
    x = normal((300, 3), seed=1)
    act = {
        "overlap": lambda m: overlap(m, 0, 3),
        "dead output": lambda m: dead(m, 1),
        "constant unit": lambda m: constant(m, 1),
    }[kind]
    act(net)
    (s,) = find_strata(net, x, near=1e-9)
    assert s.kind == kind
    assert s.deficit == s.predicted == full_deficit(net, x)


@pytest.mark.parametrize("probes", [2, 8])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [1, 3])
@pytest.mark.parametrize("act", [nn.Sigmoid, nn.ReLU, nn.GELU, nn.SiLU])
def test_overlaps_of_activations_match_the_full_jacobian(act, out, bias, sign, probes):
    net = nn.Sequential(nn.Linear(5, 4), act(), nn.Linear(4, out, bias=bias))
    init_(net.double(), 1, bias_scale=0.5)
    overlap(net, 1, 2, sign)
    x = normal((300, 5), seed=0)
    found = find_strata(net, x, near=1e-9, probes=probes)
    everywhere = sum(s.dimension for s in found.everywhere)
    assert everywhere == (4 if act is nn.ReLU else 0)  # each unit can be scaled
    if not found:  # opposite units, no symmetry
        assert sign < 0
        assert full_deficit(net, x) == everywhere
        return
    (s,) = found
    assert s.verified
    assert s.deficit == s.predicted
    if probes == 8:
        assert full_deficit(net, x) == s.deficit + everywhere


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_units_that_are_only_near_have_the_deficit_of_the_stratum(act):
    net = tanh_net(n=12, width=5, seed=4, activation=act())
    overlap(net, 1, 3)
    exact = find_strata(net, normal((300, 12), seed=1), near=0.1)
    with torch.no_grad():
        net[0].weight[3] += 1e-3 * normal((12,), seed=2)
    near = find_strata(net, normal((300, 12), seed=1), near=0.1)
    assert [s.deficit for s in near] == [s.deficit for s in exact]
    assert all(s.deficit == s.predicted for s in near)
    assert all(s.distance > 1e-8 for s in near)


def test_a_network_with_nan_is_refused():
    net = tanh_net()
    net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="0.weight"):
        find_strata(net, X)


def test_generic_network_is_near_no_stratum_and_near_ones_are_ranked():
    net = tanh_net(seed=3)
    assert find_strata(net, X, near=0.05) == []
    overlap(net, 0, 1)
    with torch.no_grad():
        net[0].weight[1] += 0.01
    (s,) = find_strata(net, X, near=0.05)
    assert s.units == (0, 1)
    assert 0.003 < s.distance < 0.05
    assert s.verified
    assert "overlap of 0, 1" in str(s)


def test_find_strata_changes_nothing():
    net = tanh_net()
    overlap(net, 0, 1)
    before = copy.deepcopy(net.state_dict())
    find_strata(net, X)
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[k])


def test_relu_scaling_and_dormant_units():
    net = tanh_net(n=3, seed=4, activation=nn.ReLU())
    x = normal((200, 3), seed=2)
    with torch.no_grad():
        net[0].weight[1] = 3 * net[0].weight[0]
        net[0].bias[1] = 3 * net[0].bias[0]
        net[0].bias[2] = -100.0
    kinds = {s.kind: s for s in find_strata(net, x, near=1e-6)}
    assert set(kinds) == {"overlap", "dormant unit"}
    assert kinds["overlap"].units == (0, 1)
    assert all(s.verified for s in kinds.values())


def test_hidden_layers_of_a_deep_network_with_wrappers():
    net = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(4, 5), nn.Tanh()),
        nn.Identity(),
        nn.Linear(5, 6),
        nn.GELU(),
        nn.Linear(6, 2),
    ).double()
    init_(net, 1)
    layers = hidden_layers(net)
    assert [(x.width, x.odd, x.homogeneous) for x in layers] == [
        (5, True, False),
        (6, False, False),
    ]
    x = normal((50, 2, 2), seed=0)
    out = layers[1].tail
    assert out is None
    h = layers[1].inputs(x)
    y = layers[1].after(layers[1].sigma(h @ layers[1].incoming().T))
    torch.testing.assert_close(y, net(x))
    with torch.no_grad():
        net[3].weight[2] = net[3].weight[1]
        net[3].bias[2] = net[3].bias[1]
    (s,) = find_strata(net, x, near=1e-6)
    assert (s.layer, s.kind, s.units) == (1, "overlap", (1, 2))
    assert s.verified


def test_forms_predict_the_change_of_the_loss():
    net = tanh_net(n=3, width=3, out=2, seed=5)
    x, y = normal((80, 3), seed=3), normal((80, 2), seed=4)
    overlap(net, 0, 1)
    layer = hidden_layers(net)[0]
    b, V = layer.incoming()[0], layer.outgoing()[0] + layer.outgoing()[1]

    def loss():
        with torch.no_grad():
            return nn.functional.mse_loss(net(x), y).item()

    layer.write(0, b, V / 2)
    layer.write(1, b, V / 2)
    f = net(x).detach().requires_grad_(True)
    (g,) = torch.autograd.grad(nn.functional.mse_loss(f, y), f)
    A, B = overlap_forms(layer, x, g, b, V)
    base, t = loss(), 1e-3
    d, c = t * normal(4, seed=6), t * normal(2, seed=7)
    for z in (0.5, 1.5):
        layer.write(0, b - z * d, (1 - z) * V + c)
        layer.write(1, b + (1 - z) * d, z * V - c)
        predicted = -c @ B @ d + 0.5 * z * (1 - z) * d @ A @ d
        assert abs(loss() - base - predicted) < 0.02 * abs(predicted)


def test_merged_unit_keeps_the_function_of_one_output_to_second_order():
    net = tanh_net(seed=6)
    layer = hidden_layers(net)[0]
    x = normal((50, 2), seed=5)
    changes = []
    for t in (1e-2, 1e-3):
        twin = copy.deepcopy(net)
        pair = hidden_layers(twin)[0]
        w, v = layer.incoming(), layer.outgoing()
        pair.write(1, w[0] + t * normal(3, seed=1), 1.7 * v[0])
        before = twin(x)
        W, U = pair.incoming(), pair.outgoing()
        V, b = merged_unit(W[0], U[0], W[1], U[1])
        pair.write(0, b, V / 2)
        pair.write(1, b, V / 2)
        changes.append((twin(x) - before).abs().max().item())
    assert 50 < changes[0] / changes[1] < 200


def test_extreme_eigenpairs_by_lanczos_equal_the_dense_ones():
    M = normal((200, 200), seed=11)
    A = M + M.T
    lam, E = extreme_pairs(A)
    exact = torch.linalg.eigvalsh(A)[[0, -1]]
    torch.testing.assert_close(lam, exact, rtol=1e-10, atol=0)
    assert (A @ E - E * lam).abs().max() < 1e-6


def plateau_net():
    net = tanh_net(n=2, width=2, seed=7)
    overlap(net, 0, 1)
    with torch.no_grad():
        net[2].weight[:, 1] = net[2].weight[:, 0]
        net[0].weight[1] += 1e-5
    return net


def teacher_data():
    x = normal((200, 2), seed=8)
    return x, torch.tanh(2 * x[:, :1]) + torch.tanh(2 * x[:, 1:])


def train(net, x, y, steps, surgery=None, lr=0.1):
    for _ in range(steps):
        net.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= lr * p.grad
        if surgery is not None:
            surgery.step()
    with torch.no_grad():
        return nn.functional.mse_loss(net(x), y).item()


def test_surgery_leaves_the_plateau_and_does_nothing_elsewhere():
    x, y = teacher_data()
    plain, cut = plateau_net(), plateau_net()
    surgery = CollarSurgery(cut, nn.functional.mse_loss, x, y, every=20, patience=0.05)
    stuck, free = train(plain, x, y, 300), train(cut, x, y, 300, surgery)
    assert any(op.accepted for op in surgery.log)
    assert free < 0.5 * stuck
    for op in surgery.log:
        assert op.after <= op.before
        assert op.accepted == (op.after < op.before)
    apart, same = tanh_net(seed=8), tanh_net(seed=8)
    idle = CollarSurgery(
        apart, nn.functional.mse_loss, x, y, every=5, patience=float("inf"), eps=1e-3
    )
    assert train(apart, x, y, 50, idle) == train(same, x, y, 50)
    assert idle.log == []


def test_refused_surgery_restores_the_weights():
    x, _ = teacher_data()
    net = plateau_net()
    fitted = net(x).detach()  # zero loss: nothing can improve
    before = copy.deepcopy(net.state_dict())
    surgery = CollarSurgery(net, nn.functional.mse_loss, x, fitted)
    ops = surgery.operate()
    assert len(ops) == 1
    assert not ops[0].accepted
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[k])


def test_distances_know_the_sign_of_odd_units():
    net = tanh_net(seed=9)
    overlap(net, 0, 2, -1.0)
    distance, sign = overlap_distances(hidden_layers(net)[0])
    assert distance[0, 2] == 0
    assert sign[0, 2] == -1
    assert torch.isinf(distance.diagonal()).all()


def normed(width=5, norm=nn.BatchNorm1d, act=nn.GELU):
    """Two hidden layers behind norms, their statistics moved off the start."""
    net = nn.Sequential(
        nn.Linear(4, width),
        norm(width),
        act(),
        nn.Linear(width, 3),
        act(),
        nn.Linear(3, 2),
    )
    init_(net.double(), 3, bias_scale=0.5).eval()
    with torch.no_grad():
        for k, t in enumerate(net[1].state_dict().values()):
            if t.is_floating_point():
                t.copy_(1 + 0.2 * normal(t.shape, k).abs())
    return net


def channel(net, unit, layer=0):
    """What belongs to a unit behind a norm: rows, then columns."""
    rows = [*net[layer].parameters(), *net[layer + 1].state_dict().values()]
    return [t.detach()[unit] for t in rows if t.ndim], net[3].weight.detach()[:, unit]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("alike", [False, True])
def test_equal_units_behind_a_norm_share_their_directions(norm, alike):
    """The deficit is that of the whole Jacobian, against the same network without."""
    net, x = normed(norm=norm), normal((200, 4), seed=1)
    before = full_deficit(net, x)
    (rows, columns), (other, read) = channel(net, 1), channel(net, 3)
    for a, b in zip(rows, other, strict=True):
        b.copy_(a)
    if alike:
        read.copy_(columns if norm is nn.LayerNorm else 2 * columns)
    (s,) = find_strata(net, x, near=1e-9)
    assert (s.kind, s.layer, s.units) == ("overlap", 0, (1, 3))
    assert s.verified
    assert full_deficit(net, x) - before == s.deficit
    assert s.predicted <= s.deficit
    other[0].add_(1e-3)  # only near: the deficit is that of the stratum
    (near,) = find_strata(net, x, near=0.05)
    assert 0 < near.distance < 0.05
    assert near.verified
    assert near.deficit == s.deficit


def test_a_unit_that_is_off_behind_a_norm_loses_its_columns():
    net = normed(norm=nn.LayerNorm, act=nn.ReLU)
    net[1].bias.detach()[2] = -100
    found = find_strata(net, normal((200, 4), seed=1), near=1e-9)
    (s,) = [s for s in found if s.layer == 0]  # the second layer has one by chance
    assert (s.kind, s.units, s.deficit) == ("dormant unit", (2,), 3)
    assert s.verified


def test_equal_units_that_are_off_are_a_pair_where_a_norm_sees_them():
    """Nothing reads them, but what they say moves the mean of the others."""
    net, x = normed(norm=nn.LayerNorm, act=nn.ReLU), normal((200, 4), seed=1)
    net[1].bias.detach()[[1, 3]] = -100
    before = full_deficit(net, x)  # each is off by itself
    (rows, _), (other, _) = channel(net, 1), channel(net, 3)
    for a, b in zip(rows, other, strict=True):
        b.copy_(a)
    found = [s for s in find_strata(net, x, near=1e-9) if s.layer == 0]
    (pair,) = [s for s in found if s.kind == "overlap"]
    assert pair.units == (1, 3)
    assert pair.verified
    assert full_deficit(net, x) - before == pair.deficit > 0


@pytest.mark.parametrize("kind", ["overlap", "dead output", "constant unit"])
def test_a_stratum_of_units_that_are_off_is_named_beside_them(kind):
    """All that they have is lost, so no deficit of a unit could tell it from another."""
    net, x = normed(norm=nn.BatchNorm1d, act=nn.ReLU), normal((200, 4), seed=1)
    net[1].bias.detach()[[1, 3]] = -100
    rows, columns = channel(net, 1)
    units = (1, 3) if kind == "overlap" else (1,)
    if kind == "overlap":
        for a, b in zip(rows, channel(net, 3)[0], strict=True):
            b.copy_(a)
    for t in {"overlap": [], "dead output": [columns], "constant unit": rows[:1]}[kind]:
        t.zero_()
    found = [s for s in find_strata(net, x, near=1e-9, probes=40) if s.layer == 0]
    off = {s.units: s for s in found if s.kind == "dormant unit"}
    assert set(off) == {(1,), (3,)}
    (s,) = [s for s in found if s.kind != "dormant unit"]
    assert (s.kind, s.units, s.verified) == (kind, units, True)
    R = Realization(net)
    J = R.linearize(R.theta0, x).jacobian().reshape(-1, R.p)
    dead = R.unflatten((J == 0).all(0).double())  # by the dense Jacobian
    own = sum(float(dead[f"{k}.{t}"][list(units)].sum())
              for k in "01" for t in ("weight", "bias"))  # fmt: skip
    assert s.deficit == own + float(dead["3.weight"][:, list(units)].sum())
    assert s.deficit == sum(off[u,].deficit for u in units) == 10 * len(units)


def test_what_looks_like_a_stratum_behind_a_norm_over_units_is_not_verified():
    net, x = normed(norm=nn.LayerNorm), normal((200, 4), seed=1)
    net[3].weight.detach()[:, 2] = 0
    (s,) = find_strata(net, x, near=1e-9)
    assert s.kind == "dead output"
    assert not s.verified
    net = normed()
    net[3].weight.detach()[:, 2] = 0
    (s,) = find_strata(net, x, near=1e-9)
    assert s.verified


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_channel_is_a_bias_unless_a_border_cuts_it(padding):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Conv2d(4, 3, 2, padding=padding), nn.Tanh(),
        nn.Flatten(), nn.Linear((2 + 2 * padding) ** 2 * 3, 2),
    )  # fmt: skip
    init_(net.double(), 2, bias_scale=0.5)
    net[0].weight.detach()[1] = 0
    (s,) = find_strata(net, normal((60, 2, 4, 4), seed=1), near=1e-9, probes=20)
    assert s.kind == "constant unit"
    assert s.verified == (padding == 0)
    if padding == 0:
        assert s.deficit == s.predicted == 12 + 1  # columns, and the own bias


def test_two_equal_heads_of_attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(6, 3, batch_first=True)
            self.read = nn.Linear(6, 2)

        def forward(self, x):
            return self.read(self.attend(x, x, x, need_weights=False)[0].mean(1))

    net, x = init_(Net().double().eval(), 1, bias_scale=0.5), normal((80, 4, 6), 2)
    before = full_deficit(net, x)
    for t in (net.attend.in_proj_weight, net.attend.in_proj_bias):
        heads = t.detach().view(3, 3, 2, *t.shape[1:])
        heads[:, 2] = heads[:, 0]
    (s,) = find_strata(net, x, near=1e-9, probes=12)
    assert (s.kind, s.units) == ("overlap", (0, 2))
    # of two outputs and two numbers a head; the columns beyond make no difference
    assert s.verified
    assert s.deficit == s.predicted == 2 * 2
    assert full_deficit(net, x) > before


def test_of_a_module_without_a_graph_the_deficit_is_said_and_not_explained():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tanh_net(n=2, width=3)

        def forward(self, x):
            return self.net(x) if bool(x.sum() > -1e9) else x

    own, x = Own(), normal((60, 2), seed=1)
    assert find_strata(own, x) == []
    overlap(own.net, 0, 1)
    (s,) = find_strata(own, x)
    assert (s.kind, s.deficit) == ("unexplained", full_deficit(own.net, x))
    assert str(s) == f"whole module: rank deficit {s.deficit}, unexplained"
    (few,) = find_strata(own, x, samples=4)  # so many at a time, not in all
    assert few.deficit == s.deficit
    with pytest.raises(ValueError, match="data: expected at least 13 outputs"):
        find_strata(own, x[:5])


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 1)),
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(), nn.Linear(2, 1)),
    ],
)
def test_modes_of_training_are_refused(net):
    with pytest.raises(ValueError, match="training mode"):
        find_strata(net, torch.zeros(4, 2))


def test_hidden_layers_reads_perceptrons_only():
    with pytest.raises(TypeError, match=r"expected an nn.Sequential"):
        hidden_layers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one activation without parameters"):
        hidden_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    with pytest.raises(ValueError, match="elementwise activation"):
        hidden_layers(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Linear(2, 1)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 2, dtype=F64), "at least 2 inputs"),
        (torch.zeros(1, 2, dtype=F64), "at least 2 inputs"),
        (torch.full((3, 2), float("nan"), dtype=F64), "finite"),
        (torch.zeros(3, 2), "dtype"),
    ],
)
def test_bad_data_are_refused(data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        find_strata(tanh_net(), data)


def test_bad_surgery_settings():
    net, (x, y) = tanh_net(), teacher_data()
    with pytest.raises(ValueError, match="n = 200 as in x"):
        CollarSurgery(net, nn.functional.mse_loss, x, y[:5])
    with pytest.raises(ValueError, match="eps"):
        CollarSurgery(net, nn.functional.mse_loss, x, y, eps=0.0)
    with pytest.raises(ValueError, match="finite scalar"):
        CollarSurgery(net, nn.MSELoss(reduction="none"), x, y)
    with pytest.raises(ValueError, match="near"):
        find_strata(net, x, near=0.0)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight"])
def test_surgery_leaves_frozen_parameters_alone(frozen):
    net = tanh_net()
    overlap(net, 0, 1)
    x, y = X[:200], normal((200, 1), 3)
    free = copy.deepcopy(net)
    net.get_parameter(frozen).requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    tried = CollarSurgery(net, nn.functional.mse_loss, x, y).operate()
    assert tried == []
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert CollarSurgery(free, nn.functional.mse_loss, x, y).operate()[0].accepted


@pytest.mark.parametrize("module", [nn.Sequential(), nn.Sequential(nn.ReLU())])
def test_a_module_without_parameters_is_refused_by_name(module):
    with pytest.raises(ValueError, match="module: expected one with parameters"):
        find_strata(module, torch.zeros(4, 3))
