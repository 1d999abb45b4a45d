"""Two seeds of a deep network, compared on MNIST, and gauges of the first one.

geolib sweep deep-comparisons --size full
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from deep import fit, resnet8, vgg_bn
from torch.nn import functional as F

from geolib.core import init_
from geolib.data import load
from geolib.inverse_stability import compare, random_gauge
from geolib.sweep import Sweep, grid

NETWORKS = {"vgg_bn": vgg_bn, "resnet8": resnet8}


@dataclass(frozen=True)
class Spec:
    """One kind of network, trained on images that are averaged to 8 by 8."""

    network: str
    data: str = "mnist"
    images: int = 1000
    steps: int = 100
    gauges: int = 20


def run(spec: Spec) -> dict[str, Any]:
    """Accuracies, gauges that are recognized, and the bounds of both distances."""
    data = load(spec.data, train=spec.images)
    x, y = torch.as_tensor(data.x).double(), torch.as_tensor(data.y).long()
    side = round(x[0].numel() ** 0.5)
    x = F.adaptive_avg_pool2d(x.reshape(-1, 1, side, side), 8)
    make, gauges = NETWORKS[spec.network], range(spec.gauges)
    pair = [fit(init_(make(), k, "he"), x, y, spec.steps) for k in (0, 1)]
    same = [compare(pair[0], random_gauge(pair[0], k)).same for k in gauges]
    found = compare(*pair, x)
    with torch.no_grad():
        right = [float((net(x).argmax(1) == y).double().mean()) for net in pair]
    return {
        "accuracy": right,
        "recognized": sum(same),
        "weights": [found.distance_at_least, found.distance],
        "outputs": [found.outputs_at_least, found.outputs_at_most],
    }


def kept_as(key: str, row: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """An entry of `comparisons.json` by the network's name."""
    figures = ("accuracy", "recognized", "weights", "outputs")
    return "comparisons", row["network"], {name: row[name] for name in figures}


COMPARISONS = Sweep(
    "deep-comparisons",
    run,
    {
        "small": lambda: [Spec("resnet8", "digits", images=50, steps=3, gauges=2)],
        "book": lambda: grid(Spec, network=list(NETWORKS), data="digits"),
        "full": lambda: grid(Spec, network=list(NETWORKS)),
    },
    text="Two seeds of a deep network compared, and random gauges recognized.",
    kept_as=kept_as,
    about={"images": 1000, "steps": 100, "gauges": 20},
)
