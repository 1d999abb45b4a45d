"""The deep networks of the fourth notebook: a chain with BatchNorm, and skip connections."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from geolib.networks import minimize


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
    """Full-batch Adam on the cross entropy at one rate, and eval mode."""
    loss = lambda _step: F.cross_entropy(net(x), y)  # noqa: E731
    minimize(net.parameters(), loss, steps, 0.02, schedule=lambda lr, *_: lr)
    return net.eval()
