"""Every optimizer of the room: state, copies, schedules, and what it refuses."""

import copy

import pytest
import torch
from naturality_cases import (
    FROM_MODULE,
    OURS,
    fit,
    network,
    setting,
)
from naturality_chapter import CONTROLS, MINIBATCHES, POPULAR, RULES
from torch import nn

from geolib.naturality import (
    KFAC,
    FirstOrderRule,
    NaturalGradient,
    NaturalMomentum,
)
from geolib.naturality.affine_layers import AffineLayer
from geolib.naturality.local_geometry import flatten


@pytest.mark.slow_for("proximal")
@pytest.mark.parametrize("name", OURS)
def test_every_optimizer_learns_and_resumes_from_its_state(name):
    _, leaves, closure = setting()
    opt = OURS[name](leaves)
    first = float(opt.step(closure))
    for _ in range(4):
        opt.step(closure)
    state = copy.deepcopy(opt.state_dict())
    middle = [t.detach().clone() for t in leaves]
    for _ in range(5):
        last = float(opt.step(closure))
    assert last < 0.8 * first
    end = flatten([t.detach() for t in leaves])
    fresh = OURS[name](leaves)
    fresh.load_state_dict(state)
    with torch.no_grad():
        for t, m in zip(leaves, middle, strict=True):
            t.copy_(m)
    for _ in range(5):
        fresh.step(closure)
    assert torch.equal(flatten([t.detach() for t in leaves]), end)


@pytest.mark.slow_for("proximal", "retraction")
@pytest.mark.parametrize("name", FROM_MODULE)
def test_optimizers_made_from_a_module_resume_and_copy(name):
    module = network()
    opt = FROM_MODULE[name](module)
    fit(module, opt, 2)
    twin, twin_opt = copy.deepcopy((module, opt))
    other = copy.deepcopy(module)
    fresh = FROM_MODULE[name](other)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    end = fit(module, opt, 2)
    assert torch.equal(fit(twin, twin_opt, 2), end)
    assert torch.equal(fit(other, fresh, 2), end)
    assert not torch.equal(end, fit(network(), FROM_MODULE[name](network()), 0))


ALIKE = [k for k in OURS if k != "tuned"]  # which damps by the layers that it knows
SAME = [(k, 0.01, 9) for k in ALIKE if "newton" not in k and k != "bfgs"]
SAME += [(k, 0.0, 40) for k in ALIKE if k not in ("newton", "proximal", "retraction")]


@pytest.mark.slow_for("retraction-0.01-*", "proximal-0.01-*")
@pytest.mark.parametrize(("name", "damping", "n"), SAME)
def test_a_module_and_its_parameters_give_the_same_steps(name, damping, n):
    # core's solve (in parameters or functions) against the dense eigendecomposition
    ends = []
    for from_module in (True, False):
        module = network()
        opt = OURS[name](module if from_module else module.parameters())
        opt.options["damping"] = damping
        ends.append(fit(module, opt, 3, n))
        used = opt.solution is not None
        dense = ("covariant-newton", "minibatch", "heavy-ball", "bfgs")
        assert used == (from_module and name not in dense)
    assert torch.allclose(*ends, rtol=1e-6, atol=1e-7)


def test_learning_rate_schedules_and_groups():
    module = network()
    opt = NaturalGradient(module, 0.4, damping=0.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    ends = [fit(module, opt, 0)]
    for _ in range(2):
        ends.append(fit(module, opt, 1))
        schedule.step()
    assert float((ends[2] - ends[1]).norm()) < 0.6 * float((ends[1] - ends[0]).norm())
    with pytest.raises(ValueError, match="one group"):
        opt.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    sign = POPULAR.SignSGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}])
    (a + b).sum().backward()
    sign.step()
    assert (a.item(), b.item()) == (0.0, 0.5)


def test_clear_errors():
    _, leaves, closure = setting()
    integer = torch.zeros(2, dtype=torch.int64)
    cases = [
        (lambda: NaturalGradient([]), "at least one parameter"),
        (lambda: NaturalGradient([integer]), "floating-point"),
        (lambda: NaturalGradient([3.0]), "expected tensors"),
        (lambda: NaturalGradient([torch.ones(2).to_sparse()]), "dense"),
        (lambda: NaturalGradient([torch.ones(2), torch.ones(2).double()]), "dtype"),
        (
            lambda: NaturalGradient([torch.ones(2), torch.ones(2, device="meta")]),
            "is on meta but the first is on cpu",
        ),
        (lambda: NaturalGradient([{"params": leaves}, {"params": leaves}]), "group"),
        (lambda: NaturalGradient(leaves, 0.0), "lr"),
        (lambda: NaturalGradient(leaves, damping=-1.0), "damping"),
        (lambda: NaturalGradient(leaves, output_metric="nope"), "metric"),
        (lambda: NaturalGradient(leaves, integrator="nope"), "integrator"),
        (lambda: FirstOrderRule(leaves, rule="nope"), "rule"),
        (lambda: CONTROLS.BFGS(leaves, start="nope"), "start"),
        (lambda: RULES.NaturalAdam(leaves, betas=(1.0, 0.9)), "betas"),
        (lambda: NaturalMomentum(leaves, friction=-1.0), "friction"),
        (lambda: NaturalMomentum(leaves, initial=torch.ones(3)), "initial"),
        (lambda: RULES.ProximalNatural(leaves, iterations=0), "iterations"),
        (lambda: KFAC(leaves).step(closure), "needs the module"),
        (lambda: KFAC(nn.Sequential(nn.ReLU())), "requires gradients"),
        (lambda: MINIBATCHES.MinibatchNatural(leaves, batch=0), "batch"),
        (lambda: CONTROLS.KFACDampedNatural(nn.Linear(1, 1), damping=0.0), "damping"),
        (lambda: NaturalGradient(leaves).step(), "closure"),
        (lambda: NaturalGradient(leaves).step(lambda: closure()[1]), "pair"),
        (lambda: POPULAR.SignSGD([], 0.1), "params"),
    ]
    for call, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_a_diverging_step_is_refused_and_leaves_the_parameters():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    opt = FirstOrderRule([x], 0.1, rule="diagonal")

    def closure():
        z = (x * torch.tensor([1.0, 0.0])).sum().view(1, 1) + 1.0
        return z, 0.5 * (z**2).sum()

    with pytest.raises(ValueError, match="not finite"):
        opt.step(closure)
    assert torch.equal(x.detach(), torch.zeros(2).double())


def test_optimizers_pickle_and_homogeneous_layers_see_charts():
    _, leaves, closure = setting()
    opt = NaturalMomentum(leaves, 0.1)
    opt.step(closure)
    twin = copy.deepcopy(opt)
    assert torch.equal(twin.memory["velocity"], opt.memory["velocity"])
    layer = AffineLayer(torch.ones(2, 3), torch.eye(2), torch.eye(3))
    assert torch.equal(layer(torch.ones(1, 2)), torch.full((1, 2), 3.0))
