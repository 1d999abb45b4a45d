"""The user's module, its modes, buffers, gradients and hooks stay, and random states."""

import inspect
import random
import typing

import fuzz
import house_rules
import numpy as np
import pytest
import torch
from torch import nn

# What these are for is to write to the module that they are given.
WRITERS = {
    "core.init_(module)",
    "core.Realization.load(self)",
    "naturality.NaturalGradient.move(self)",
    "naturality.NaturalGradient.step(self)",
    "networks.permute_channels(module)",
    "networks.recalibrate(module)",
    "networks.train_module(module)",
    "stratifolds.CollarSurgery.step(self)",
}
ONCE = {"naturality.NaturalGradient.add_param_group"}  # only as one is made
FAST = {"core.Realization", "networks.align", "networks.channel_groups"}


def takers():
    """Public functions and classes with a module among the arguments they declare."""
    for subject in fuzz.subjects():
        room, name = subject.split(".")
        for _, fn in fuzz.functions(house_rules.public(room)[name]):
            hints = typing.get_type_hints(inspect.unwrap(fn))
            if any("Module" in str(h) for h in hints.values()):
                yield subject
                break


def held(module):
    """All that a call could leave changed."""
    return {
        "modes": [m.training for m in module.modules()],
        "frozen": [p.requires_grad for p in module.parameters()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()
        ],
        "classes": [type(m) for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
        "tensors": {
            n: (id(t), t.detach().clone())
            for n, t in [*module.named_parameters(), *module.named_buffers()]
        },
        "gradients": [p.grad for p in module.parameters()],
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def states():
    numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state(), random.getstate(), numpy


def modules_of(call):
    """The modules that a good call is given, or that its object holds."""
    for name, value in call.arguments.items():
        if isinstance(value, nn.Module):
            yield name, value
    inner = getattr(call.me, "module", None)
    if isinstance(inner, nn.Module):
        yield "self", inner


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(s, marks=() if s in FAST else pytest.mark.slow)
        for s in dict.fromkeys(takers())
    ],
)
def test_nothing_of_the_callers_is_changed(subject):
    for call in fuzz.good_calls(subject):
        for name, module in modules_of(call) if call.label not in ONCE else ():
            before, drawn = held(module), states()
            if name == "self":
                getattr(call.me, call.fn.__name__)(**call.arguments)
            else:
                call.run(**{name: module})
            if f"{call.label}({name})" not in WRITERS:
                after = held(module)
                for what, was in before.items():
                    assert same(was, after[what]), (call.label, name, what)
            assert same(drawn, states()), (call.label, name)


def test_a_change_is_seen():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Dropout())
    before = held(net)
    for change in (
        lambda: net[2].eval(),
        lambda: net(torch.randn(4, 1)),
        lambda: net[0].requires_grad_(False),
        lambda: net[0].weight.data.add_(1),
        lambda: net.register_forward_hook(lambda *call: None),
    ):
        assert same(before, held(net))
        change()
        assert not same(before, held(net))
        before = held(net)
