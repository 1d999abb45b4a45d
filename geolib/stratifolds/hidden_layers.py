"""The hidden layers of an `nn.Sequential` perceptron, with what surrounds each."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolib.core.validation import expect, require_matching
from geolib.networks.sequential import named_layers

PASSIVE = (nn.Identity, nn.Flatten, nn.Dropout)


@dataclass(frozen=True)
class HiddenLayer:
    r"""A layer of hidden units comes with the maps before and after it.

    .. math:: h \longmapsto y = \sum_k v_k\,\sigma(w_k\cdot h + \beta_k) + \gamma

    Attributes:
        index: 0 for the first hidden layer.
        before: the linear map with rows :math:`w_k` and biases.
        sigma: elementwise activation.
        after: the linear map with columns :math:`v_k`.
        head: module from the input to h (None if h is the input).
        tail: module from y to the output (None if y is the output).
        odd: whether :math:`\sigma(-a) = -\sigma(a)`.
        homogeneous: whether :math:`\sigma(ca) = c\,\sigma(a)` for c > 0.
    """

    index: int
    before: nn.Linear
    sigma: nn.Module
    after: nn.Linear
    head: nn.Sequential | None
    tail: nn.Sequential | None
    odd: bool
    homogeneous: bool

    @property
    def width(self) -> int:
        """Number of hidden units."""
        return self.before.out_features

    def inputs(self, x: Tensor) -> Tensor:
        """What the layer sees, with a column of ones for the bias: (n, fan_in + 1).

        Without a bias the last column is zero, so that shapes agree.
        """
        with torch.no_grad():
            h = x if self.head is None else self.head(x)
        h = h.reshape(len(h), -1)
        ones = torch.ones_like(h[:, :1])
        return torch.cat([h, ones if self.before.bias is not None else 0 * ones], 1)

    def incoming(self) -> Tensor:
        """Weights with the bias as last column, (width, fan_in + 1), a copy."""
        W = self.before.weight.detach()
        bias = self.before.bias
        b = torch.zeros_like(W[:, 0]) if bias is None else bias.detach()
        return torch.cat([W, b[:, None]], 1)

    def outgoing(self) -> Tensor:
        """Output weights, (width, fan_out), a copy."""
        return self.after.weight.detach().T.clone()

    @torch.no_grad()
    def write(self, unit: int, w: Tensor, v: Tensor) -> None:
        """Set one unit's incoming (fan_in + 1) and outgoing (fan_out) weights."""
        self.before.weight[unit] = w[:-1]
        if self.before.bias is not None:
            self.before.bias[unit] = w[-1]
        self.after.weight[:, unit] = v

    def slopes(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The activation, its first and its second derivative at a."""
        with torch.enable_grad():
            leaf = a.detach().requires_grad_(True)
            s = self.sigma(leaf)
            (d1,) = torch.autograd.grad(s.sum(), leaf, create_graph=True)
            d2 = torch.zeros_like(d1)
            if d1.requires_grad:
                (d2,) = torch.autograd.grad(
                    d1.sum(), leaf, allow_unused=True, materialize_grads=True
                )
        return s.detach(), d1.detach(), d2.detach()


def _symmetry(sigma: nn.Module, like: Tensor) -> tuple[bool, bool]:
    """Odd, homogeneous; refuse activations that mix entries."""
    # irrational-looking points, so that no kink or period is hit by chance
    t = torch.linspace(-2.71, 3.13, 37, dtype=like.dtype, device=like.device)[None]
    with torch.no_grad():
        s = sigma(t)
        if s.shape != t.shape or not torch.allclose(sigma(t[:, :5]), s[:, :5]):
            raise ValueError(f"module: expected an elementwise activation, got {sigma}")
        tol = 1e-5 * float(s.abs().max())
        odd = bool(((sigma(-t) + s).abs() <= tol).all())
        return odd, bool(((sigma(2 * t) - 2 * s).abs() <= tol).all())


def _activation(layers: list[nn.Module], index: int) -> nn.Module:
    """The one activation between two linear maps."""
    between = [m for m in layers if not isinstance(m, PASSIVE)]
    if len(between) != 1 or any(True for _ in between[0].parameters()):
        names = [type(m).__name__ for m in between]
        where = f"between Linear layers {index} and {index + 1}"
        expect(False, "module", f"one activation without parameters {where}", names)
    return between[0]


def _out_of_place(layer: nn.Module) -> nn.Module:
    """The layer, or a twin that leaves what it is given: derivatives need that."""
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        vars(layer)["inplace"] = False
    return layer


def hidden_layers(module: nn.Module) -> list[HiddenLayer]:
    """The hidden layers of a perceptron built as linear maps and activations.

    Args:
        module: `nn.Sequential` of `nn.Linear` and elementwise activations, one between
            any two linear maps; `Flatten`, `Identity` and (in eval mode) `Dropout` may
            stand anywhere.

    Returns:
        One `HiddenLayer` for each pair of consecutive linear maps.

    Raises:
        TypeError: `module` is no `nn.Sequential`.
        ValueError: a layer is of another kind or parametrized, there is no hidden
            layer, or dropout is in training mode (its network is another each call).

    Source: :eq:`drv-stratifolds-layer` (derivations).

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> [(layer.width, layer.odd) for layer in hidden_layers(net)]
        [(4, True)]
    """
    if not isinstance(module, nn.Sequential):
        raise TypeError(
            f"module: expected an nn.Sequential of Linear layers and activations, "
            f"got {type(module).__name__}"
        )
    chain = [_out_of_place(layer) for _, layer in named_layers(module)]
    linear = [(i, m) for i, m in enumerate(chain) if isinstance(m, nn.Linear)]
    wanted = "at least two Linear layers with an activation between"
    expect(len(linear) >= 2, "module", wanted, f"{len(linear)} Linear layer(s)")
    if any(isinstance(m, nn.Dropout) and m.training for m in chain):
        raise ValueError("module: dropout is in training mode; call eval() first")
    found = []
    for index, ((i, before), (j, after)) in enumerate(itertools.pairwise(linear)):
        sigma = _activation(chain[i + 1 : j], index)
        head, tail = (
            nn.Sequential(*part) if part else None
            for part in (chain[:i], chain[j + 1 :])
        )
        kinds = _symmetry(sigma, before.weight)
        found.append(HiddenLayer(index, before, sigma, after, head, tail, *kinds))
    return found


def check_inputs(x: Tensor, module: nn.Module, name: str = "data") -> None:
    """Refuse data that a rank or a loss cannot be read from.

    Examples:
        >>> check_inputs(torch.zeros(3, 2), nn.Linear(2, 1))
    """
    own = list(module.parameters())
    expect(bool(own), "module", "one with parameters", type(module).__name__)
    got = tuple(x.shape) if isinstance(x, Tensor) else type(x)
    good = isinstance(x, Tensor) and x.ndim >= 2 and len(x) >= 2
    expect(good, name, "a tensor of at least 2 inputs, shape (n, ...)", got)
    if isinstance(module, nn.Sequential):
        weighted = (
            m for m in module.modules() if getattr(m, "weight", None) is not None
        )
        size = getattr(next(weighted, None), "in_features", x.shape[-1])
        fits = size in (x.shape[-1], x[0].numel())
        expect(fits, name, f"{size} features, as the module takes", got)
    if x.is_floating_point():
        require_matching(name, x, own[0], "the module")
