"""The deep networks of the fourth notebook: a chain with BatchNorm, and skip connections.

`python deep.py` in this folder compares two of each on MNIST and stores what it finds.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolib.core import init_
from geolib.data import load
from geolib.inverse_stability import compare, random_gauge
from geolib.sweep import keep

STORED = Path(__file__).parent / "measured" / "comparisons.json"


class Block(nn.Module):
    """Two convolutions and a skip connection, with a third convolution where sizes differ."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip: nn.Module = nn.Identity()
        if before != width:
            shrink = nn.Conv2d(before, width, 1, stride, bias=False)
            self.skip = nn.Sequential(shrink, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(h)) + self.skip(x))


class ResNet(nn.Module):
    """A residual network for images of one channel: `blocks` blocks a width."""

    def __init__(
        self, widths: tuple[int, ...], blocks: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        sizes = [widths[0], *(w for w in widths for _ in range(blocks))]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairs))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def resnet8() -> nn.Module:
    """Three blocks of two convolutions, a stem and a head."""
    return ResNet((8, 12, 16)).double()


def vgg_bn() -> nn.Module:
    """Four convolutions with BatchNorm in two stages, and two linear layers."""
    layers: list[nn.Module] = []
    for before, width, last in (
        (1, 8, False),
        (8, 8, True),
        (8, 16, False),
        (16, 16, True),
    ):
        layers += [
            nn.Conv2d(before, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if last else []
    layers += [nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)]
    return nn.Sequential(*layers).double()


def fit(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """Full-batch Adam on the cross entropy, and eval mode."""
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(net(x), y).backward()
        adam.step()
    return net.eval()


def measure(images: int = 1000, steps: int = 100, gauges: int = 20) -> None:
    """Two seeds of each network on MNIST, averaged to 8 by 8, and gauges of the first."""
    data = load("mnist")
    x = torch.as_tensor(data.x[:images]).double().reshape(-1, 1, 28, 28)
    x, y = F.adaptive_avg_pool2d(x, 8), torch.as_tensor(data.y[:images]).long()
    rows = {}
    for make in (vgg_bn, resnet8):
        pair = [fit(init_(make(), k, "he"), x, y, steps) for k in (0, 1)]
        same = [compare(pair[0], random_gauge(pair[0], k)).same for k in range(gauges)]
        found = compare(*pair, x)
        with torch.no_grad():
            right = [float((net(x).argmax(1) == y).double().mean()) for net in pair]
        rows[make.__name__] = {
            "accuracy": right,
            "recognized": sum(same),
            "weights": [found.distance_at_least, found.distance],
            "outputs": [found.outputs_at_least, found.outputs_at_most],
        }
    about = {
        "measured": "geolib.inverse_stability.compare, two seeds on MNIST at 8 by 8",
        "images": images,
        "steps": steps,
        "gauges": gauges,
        "date": str(date.today()),
    }
    keep(STORED, rows, about)


if __name__ == "__main__":
    measure()
