"""The networks that people have, tiny: what the table of modules tries geolib on."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from central_differences import jacobian
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from geolib.core import init_, normal, rng

CLASSES, SAMPLES = 3, 6
OTHER = 0  # added to all seeds, of weights and data: other cases of the same kinds


@dataclass(frozen=True)
class Case:
    """A module with inputs and one target for each of its decisions.

    Attributes:
        module: in evaluation mode.
        x: the data as geolib is given it.
        y: classes, (n,), or (n, positions ...) where a sample has several decisions.
        dim: the axis of the classes in the module's output.
        whole: the same data as the module takes it, all samples at once.
    """

    module: nn.Module
    x: Any
    y: Tensor
    dim: int
    whole: Any


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a skip; a projection where widths change."""

    def __init__(self, inner, outer):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, padding=1), norm(outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, padding=1), norm(outer)
        self.relu = nn.ReLU()
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(h + self.skip(x))


def norm(width):
    """A BatchNorm whose statistics have been moved off their start."""
    layer = nn.BatchNorm2d(width)
    layer.running_mean.copy_(0.1 * normal(width, 5))
    layer.running_var.copy_(1 + 0.2 * normal(width, 6) ** 2)
    return layer


class Pooled(nn.Module):
    """A body on images, the mean over the places, and a linear map."""

    def __init__(self, body, width):
        super().__init__()
        self.body, self.read = body, nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.read(self.body(x).mean((2, 3)))


class Transformer(nn.Module):
    """One encoder block over a few tokens, read at the mean."""

    def __init__(self, norm_first):
        super().__init__()
        self.lift = nn.Linear(2, 4)
        self.block = nn.TransformerEncoderLayer(
            4, 2, 4, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.read = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.read(self.block(self.lift(x)).mean(1))


class Recurrent(nn.Module):
    """An LSTM, read at the last step."""

    def __init__(self):
        super().__init__()
        self.lstm, self.read = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.read(self.lstm(x)[0][:, -1])


class Language(nn.Module):
    """Tokens to logits (n, t, v); the reading matrix may be the embedding itself."""

    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.read = nn.Linear(3, 5, bias=False)
        if tied:
            self.read.weight = self.embed.weight

    def forward(self, tokens):
        h = torch.tanh(self.mix(self.embed(tokens)))
        return self.read(h + h.cumsum(-2) / 3)


class Segmenter(nn.Module):
    """A class for each pixel: logits (n, c, h, w)."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, CLASSES, 1)

    def forward(self, x):
        return self.up(torch.tanh(self.down(x)))


@dataclass
class Output:
    """What many libraries of transformers return."""

    logits: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """A network whose logits come in a container."""

    def __init__(self, container):
        super().__init__()
        self.body, self.read = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.container = container

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.container(logits=self.read(h), hidden=h)


class TwoInputs(nn.Module):
    """Two inputs, by name or in order."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.read = (
            nn.Linear(2, 4),
            nn.Linear(1, 4),
            nn.Linear(4, CLASSES),
        )

    def forward(self, a, b):
        return self.read(torch.tanh(self.a(a) + self.b(b)))


def old_weight_norm(layer):
    """The form with hooks, which warns that it is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def perceptron(middle, wrap=lambda layer: layer):
    """Linear, something, Linear, as a `Sequential`."""
    return nn.Sequential(wrap(nn.Linear(3, 4)), *middle, wrap(nn.Linear(4, CLASSES)))


def vgg_block():
    """Convolutions with BatchNorm and pooling, as VGG has them, at width two."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), norm(2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 3, padding=1), norm(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3, CLASSES),
    )  # fmt: skip


def lenet_like():
    """LeNet's order of layers at a hundredth of its width."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, CLASSES),
    )  # fmt: skip


FLAT, PICTURE, SERIES = (SAMPLES, 3), (SAMPLES, 1, 4, 4), (SAMPLES, 3, 2)


def tokens():
    return torch.as_tensor(rng(3 + OTHER).integers(0, 5, (SAMPLES, 3)))


BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "mlp": (lambda: perceptron([nn.Tanh()]), FLAT),
    "relu mlp": (lambda: perceptron([nn.ReLU()]), FLAT),
    "lenet": (lenet_like, (SAMPLES, 1, 8, 8)),
    "vgg-bn": (vgg_block, PICTURE),
    "resnet block": (lambda: Pooled(Residual(1, 2), 2), PICTURE),
    "resnet chain": (
        lambda: Pooled(nn.Sequential(Residual(1, 2), Residual(2, 2)), 2), PICTURE
    ),
    "pre-norm transformer": (lambda: Transformer(True), SERIES),
    "post-norm transformer": (lambda: Transformer(False), SERIES),
    "lstm": (Recurrent, SERIES),
    "token model": (lambda: Language(tied=False), None),
    "tied embeddings": (lambda: Language(tied=True), None),
    "segmentation": (Segmenter, (SAMPLES, 1, 3, 3)),
    "group norm": (
        lambda: Pooled(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), 4
        ), PICTURE,
    ),
    "layer norm": (lambda: perceptron([nn.LayerNorm(4), nn.Tanh()]), FLAT),
    "weight norm": (
        lambda: perceptron([nn.ReLU()], parametrizations.weight_norm), FLAT
    ),
    "old weight norm": (lambda: perceptron([nn.ReLU()], old_weight_norm), FLAT),
    "dropout": (lambda: perceptron([nn.ReLU(), nn.Dropout(0.5)]), FLAT),
    "dict output": (lambda: Wrapped(OrderedDict), FLAT),
    "dataclass output": (lambda: Wrapped(Output), FLAT),
    "float32": (lambda: perceptron([nn.ReLU()]), FLAT),
    "bfloat16": (lambda: perceptron([nn.ReLU()]), FLAT),
    "compiled": (lambda: perceptron([nn.ReLU()]), FLAT),
}  # fmt: skip
DATA: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda x, y: x,
    "dict": lambda x, y: {"a": x[:, :2], "b": x[:, 2:]},
    "tuple": lambda x, y: (x[:, :2], x[:, 2:]),
    "loader of x": lambda x, y: DataLoader(TensorDataset(x), batch_size=4),
    "loader of (x, y)": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
    "generator": lambda x, y: (part for part in x.split(4)),
}
for name in DATA:
    two = name in ("dict", "tuple")
    BUILD[name] = (TwoInputs if two else lambda: perceptron([nn.ReLU()]), FLAT)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make(name: str, seed: int = 0) -> Case:
    """The case of that name, with weights drawn by `seed`, in evaluation mode."""
    build, shape = BUILD[name]
    with torch.random.fork_rng([]):  # layers draw weights when they are made
        module = build().double()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    init_(module, seed + OTHER, bias_scale=0.3)
    for m in norms:
        nn.init.constant_(m.weight, 0.8)
    module.eval()
    dtype = DTYPES.get(name, torch.float64)
    module = module.to(dtype)
    x = tokens() if shape is None else normal(shape, 1 + OTHER).to(dtype)
    decisions, dim = (SAMPLES,), -1
    if shape is None:
        decisions = (SAMPLES, 3)
    if name == "segmentation":
        decisions, dim = (SAMPLES, 3, 3), 1
    y = torch.as_tensor(rng(4 + OTHER).integers(0, CLASSES, decisions))
    if name == "compiled":
        module = torch.compile(module, backend="eager")
    given = DATA[name](x, y) if name in DATA else x
    return Case(module, given, y, dim, given if isinstance(given, dict | tuple) else x)


def logits(output):
    """The tensor among what a module returns."""
    if isinstance(output, dict):
        return output["logits"]
    return output.logits if isinstance(output, Output) else output


@torch.no_grad()
def outputs(module: nn.Module, x) -> Tensor:
    """The module's logits on whole data."""
    if isinstance(x, dict):
        return logits(module(**x))
    return logits(module(*x) if isinstance(x, tuple) else module(x))


@cache
def difference_jacobian(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs (n, o) and the Jacobian (n, o, p) of a float64 copy of a case's module.

    Central differences, one parameter at a time, of the module itself.
    """
    case = make(name, seed)
    module, x = getattr(case.module, "_orig_mod", case.module).double(), case.whole
    if isinstance(x, Tensor) and x.is_floating_point():
        x = x.double()
    return differences(module, x)


@torch.no_grad()
def differences(module: nn.Module, x, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """As `difference_jacobian`, of any module in float64."""
    z = outputs(module, x)
    return z, jacobian(module, lambda: outputs(module, x).flatten(1).clone(), eps)
