"""When the assumptions about a module are looked at, and on which samples."""

import pytest
import torch
import torch.nn.functional as F
from read_layer import Layers
from test_core_assumptions import Between, X, data, unit_length
from torch import nn

from geolib.core import AssumptionError, Realization, init_


def recurrent():
    return init_(Layers(nn.LSTM(4, 3), 3).double(), 0)


def test_one_sample_says_nothing_of_mixing_and_the_next_use_asks_again():
    R = Realization(recurrent())
    assert R(R.theta0, data((1, 3, 4))).shape == (1, 6)
    with pytest.raises(AssumptionError, match="LSTM"):
        R(R.theta0, data((5, 3, 4)))


def test_the_two_samples_are_different_ones():
    x = data((6, 3, 4))
    x[:4] = x[0]
    R = Realization(recurrent())
    with pytest.raises(AssumptionError, match="LSTM"):
        R(R.theta0, x)


def test_it_looks_beside_a_point_where_nothing_is_seen():
    R = Realization(recurrent())
    with pytest.raises(AssumptionError, match="LSTM"):
        R(0 * R.theta0, data((5, 3, 4)))


def test_a_change_of_mode_is_a_new_first_use():
    module = Between(lambda net, h: F.dropout(h, training=net.training)).double()
    R, x = Realization(init_(module, 0).eval()), data(X)
    R(R.theta0, x)
    module.train()
    with pytest.raises(AssumptionError, match="'dropout'"):
        R(R.theta0, x)
    module.eval()
    R(R.theta0, x)


def test_transforms_wait_for_the_first_plain_use():
    R, x = Realization(init_(Between(unit_length).double(), 0)), data(X)
    torch.vmap(R, (0, None))(R.theta0[None], x)
    torch.func.jvp(lambda w: R(w, x), (R.theta0,), (R.theta0,))
    with pytest.raises(AssumptionError):
        R(R.theta0, x)


def test_it_costs_a_few_passes_of_two_samples_once():
    sizes = []
    module = init_(Between(lambda net, h: h).double(), 0)
    module.a.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    R, x = Realization(module), data((50, 3))
    R(R.theta0, x)
    assert sizes.pop() == 50
    assert set(sizes) == {2, 3}
    assert len(sizes) <= 6
    R(R.theta0, x)
    R.linearize(R.theta0, x).jvp(R.theta0)
    assert sizes[-2:] == [50, 50]
    assert len(sizes) <= 8
