"""How far two functions can be apart: products of weights along paths, summed."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geolib.core.validation import expect, same_architecture
from geolib.inverse_stability.gauge import fold_batch_norm
from geolib.networks.channel_graph import LINEAR, all_tensors


def path_metric(module_a: nn.Module, module_b: nn.Module, reach: Tensor) -> float:
    r"""A bound of the difference of two networks on a box, from their weights.

    .. math:: \sup_{|x| \le r} \|R(\theta)(x) - R(\theta')(x)\|_\infty \ \le\
        \max_o \sum_{p \to o} \bigl(|\Phi(\theta)_p| + |\Phi(\theta')_p|
        - 2\,|\Phi(\mu)_p|\bigr)\, r_{\text{start}(p)}

    with :math:`\Phi(\theta)_p` the product of the weights along the path p, and
    :math:`\mu` the weights of smaller size where both have one sign, zero elsewhere.
    Align the networks first: the bound depends on which channels are compared. With
    max-pools the sum is replaced by its maximum over the window.

    Args:
        module_a: the first network, as for `canonicalize`.
        module_b: the second, of the same architecture.
        reach: r, the largest size of each input entry, with the shape of one sample.

    Raises:
        TypeError: as `canonicalize`.
        ValueError: different architectures, or a reach that is negative or not finite.

    Cost: four forward passes of one sample.

    Source: :eq:`drv-inverse_stability-path-bound` (derivations); the path lifting:
    Gonon et al. 2024.

    Examples:
        >>> nets = [nn.Sequential(nn.Linear(1, 1, bias=False)) for _ in range(2)]
        >>> for net, w in zip(nets, (2.0, 5.0)):
        ...     _ = net[0].weight.data.fill_(w)
        >>> path_metric(*nets, reach=torch.ones(1))
        3.0
    """
    reach = torch.as_tensor(reach, dtype=torch.float64, device="cpu")
    good = bool((reach >= 0).all() and reach.isfinite().all())
    expect(good, "reach", "finite numbers >= 0", reach)
    a, b = (fold_batch_norm(m)[0].cpu().double() for m in (module_a, module_b))
    return float(torch.stack(changes(a, b, reach)[0]).sum(dim=0).max())


@torch.no_grad()
def changes(a: nn.Module, b: nn.Module, reach: Tensor) -> tuple[list[Tensor], Tensor]:
    """Bounds of |f_a - f_mu| and |f_b - f_mu| by output, and of the size of f_mu's sums."""
    weights = [all_tensors(m) for m in (a, b)]
    same_architecture(a, b, "module_a, module_b")
    size = [{n: t.abs() for n, t in w.items()} for w in weights]
    least = {
        n: torch.minimum(size[0][n], size[1][n]) * (weights[0][n] * weights[1][n] > 0)
        for n in size[0]
    }
    found = []
    for module, big in zip((a, b), size, strict=True):
        pairs = nn.Sequential(deepcopy(module))
        for name, layer in module.named_modules():
            if type(layer) in LINEAR:
                own = [
                    {k: w[f"{name}.{k}"] for k, _ in layer.named_parameters()}
                    for w in (big, least)
                ]
                pairs.set_submodule(f"0.{name}".rstrip("."), _Pair(layer, *own))
        start = torch.stack([reach, torch.zeros_like(reach)])
        found.append(pairs(start))
    return [f[1] for f in found], found[0][0]


class _Pair(nn.Module):
    """Carries a bound u of what the smaller weights make, and e of the difference.

    With sizes W >= M of the two weights and non-negative u and e,

        u -> M u + |bias of M|,   e -> W e + (W - M) u + difference of the biases.

    Pools, sums and ReLU act on both alike: none of them is longer than its inputs'
    differences, and ReLU leaves what is not negative.
    """

    def __init__(
        self, layer: nn.Module, big: dict[str, Tensor], least: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.layer, self.big, self.least = layer, big, least

    def forward(self, x: Tensor) -> Tensor:
        u, e = x[:1], x[1:]
        gap = {k: self.big[k] - self.least[k] for k in self.big}
        only = {
            k: torch.zeros_like(t) if k == "bias" else t for k, t in self.big.items()
        }
        e = functional_call(self.layer, only, e) + functional_call(self.layer, gap, u)
        return torch.cat([functional_call(self.layer, self.least, u), e])
