"""What the sweeps over classifiers share: the data and networks that a spec names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from geolib.core import Realization
    from geolib.networks import Table


class Trained(Protocol):
    """The fields that name a data set, a perceptron and the place where it trains."""

    @property
    def dataset(self) -> str: ...
    @property
    def hidden(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def data_of(spec: Trained) -> Table:
    """The data set in the spec's precision, on its device (`auto`: a GPU if any)."""
    import torch

    from geolib.networks import table

    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return table(spec.dataset, device=device, dtype=getattr(torch, spec.dtype))


def network(spec: Trained, data: Table, seed: int) -> Realization:
    """A fresh perceptron for these inputs and classes, where the data is."""
    from geolib.core import Realization
    from geolib.networks import mlp

    sizes = [data.x[0].numel(), *spec.hidden, int(data.y.max()) + 1]
    return Realization(mlp(sizes, seed=seed, dtype=data.x.dtype).to(data.x.device))
