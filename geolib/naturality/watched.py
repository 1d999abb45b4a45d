r"""A module that is watched while a closure runs, so that core can build its metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geolib.core import Metric, OutputMetric, PullbackMetric, Realization
from geolib.core.validation import Inputs


class Watched:
    """A module, and what it was last called with inside a `with` block.

    Args:
        module: in evaluation mode.

    Raises:
        ValueError: what `geolib.core.Realization` refuses (no parameters, layers that
            mix samples or draw at random).

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> watched = Watched(net)
        >>> with watched:
        ...     z = net(torch.ones(3, 2))
        >>> watched.inputs.shape
        torch.Size([3, 2])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.R = module, Realization(module)
        self.inputs: Inputs | None = None
        self.hook: Any = None

    def __enter__(self) -> None:
        self.inputs = None
        self.hook = self.module.register_forward_hook(self._note, with_kwargs=True)

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _note(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if args and kwargs:
            raise ValueError(
                "closure: call the module with positional or with keyword arguments, "
                "not with both"
            )
        self.inputs = kwargs or (args[0] if len(args) == 1 else args)

    def metric(self, output_metric: OutputMetric, outputs: Tensor) -> Metric:
        """Core's metric at the module's parameters, on the inputs of its last call.

        Raises:
            ValueError: the closure did not call the module, or its outputs are not
                those of that call.

        Cost: one more forward pass.
        """
        if self.inputs is None:
            raise ValueError("closure: it did not call the module")
        named = dict(self.module.named_parameters())
        theta = self.R.flatten(named[n].detach() for n in self.R.names)
        G = PullbackMetric(self.R, self.inputs, output_metric).at(theta)
        self.inputs = None  # the metric holds them now
        again = G.outputs()
        slack = 1e3 * torch.finfo(again.dtype).eps * float(1 + again.abs().max())
        if again.shape != outputs.shape or not bool(
            (again - outputs).abs().max() <= slack
        ):
            raise ValueError(
                "closure: expected the outputs of one call of the module, of shape "
                f"{tuple(again.shape)}, got others of shape {tuple(outputs.shape)}"
            )
        return G
