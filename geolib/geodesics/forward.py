r"""Forward derivatives, with torch's rules for them loaded when first needed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


@cache
def _load_rules() -> None:
    """torch scripts these rules on first use: a quarter second, and a deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def derivative(phi: Callable[[Tensor], Tensor], w: Tensor, v: Tensor) -> Tensor:
    r"""The derivative :math:`D\phi_w[v]`, at the cost of two maps.

    Examples:
        >>> derivative(lambda w: w**3, torch.ones(1), 2 * torch.ones(1))
        tensor([6.])
    """
    _load_rules()
    return torch.func.jvp(phi, (w,), (v,))[1]
