r"""Outputs together with their derivatives in the input, as a map of the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from geolib.core.inputs import Inputs
from geolib.core.realization import Realization


class Jet(Realization):
    r"""The 1-jet of a realization.

    .. math:: \theta \mapsto \bigl( f(x_i; \theta),\; s\, \partial_j f(x_i; \theta)
              \bigr), \qquad i \le n,\; j \le d.

    Args:
        R: a realization whose input is one floating tensor of shape (n, ...).
        scale: s, the weight of the derivatives.

    Cost: one forward pass and one backward pass for each output.

    Examples:
        >>> R = Realization(torch.nn.Linear(3, 2))
        >>> Jet(R)(torch.ones(8), torch.ones(4, 3))[0]
        tensor([4., 4., 1., 1., 1., 1., 1., 1.])
    """

    recordable = False  # its layers run inside a derivative

    def __init__(self, R: Realization, scale: float = 1.0) -> None:
        super().__init__(R.module)
        self.scale = scale
        self._constants, self._cast = R._constants, R._cast

    def evaluate(self, parameters: Mapping[str, Tensor], x: Inputs) -> Tensor:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise TypeError(
                "x: derivatives in the input need one floating tensor, got "
                f"{type(x).__name__}"
            )
        base = super().evaluate
        z, pull = torch.func.vjp(lambda t: base(parameters, t), x)[:2]
        n, o = z.shape
        unit = torch.eye(o, dtype=z.dtype, device=z.device)
        seeds = unit[:, None, :].expand(o, n, o)
        (slopes,) = torch.func.vmap(pull)(seeds)
        slopes = slopes.reshape(o, n, -1).transpose(0, 1).reshape(n, -1)
        return torch.cat([z, self.scale * slopes], dim=1)
