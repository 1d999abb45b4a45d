r"""The families of reparameterizations that an audit runs through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core.validation import expect

from .affine_layers import blocks
from .reparameterization import Reparameterization

DENSE = 2048  # above this many parameters global maps are no matrices


def _tensor(a: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(a).to(like)


def log_scaling(like: Tensor, seed: int, spread: float = 0.7) -> Reparameterization:
    r"""Diagonal factors :math:`e^{u_i}`, `u` uniform in [-spread, spread]."""
    u = np.random.default_rng(seed).uniform(-spread, spread, like.numel())
    return Reparameterization.scaling(_tensor(np.exp(u), like))


def _orthogonal(n: int, rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def _conditioned(n: int, cond: float, rng: np.random.Generator) -> np.ndarray:
    """A matrix with singular values spread evenly in log from 1/sqrt(c) to sqrt(c)."""
    s = np.exp(np.linspace(-0.5, 0.5, n) * np.log(cond)) if n > 1 else np.ones(1)
    return _orthogonal(n, rng) @ np.diag(s) @ _orthogonal(n, rng)


def _rotations(like: Tensor, rng: np.random.Generator) -> Reparameterization:
    """An orthogonal map of a long vector: random signs, then Hartley's transform."""
    signs = _tensor(rng.choice([-1.0, 1.0], like.numel()), like)

    def hartley(x: Tensor) -> Tensor:  # its own inverse
        z = torch.fft.fft(x, norm="ortho")
        return z.real - z.imag

    maps = (lambda x: hartley(signs * x)), (lambda y: signs * hartley(y))
    return Reparameterization(*maps, "orthogonal", "affine")


def orthogonal(like: Tensor, seed: int) -> Reparameterization:
    """A random rotation of the whole parameter vector."""
    rng = np.random.default_rng(seed)
    if like.numel() > DENSE:
        return _rotations(like, rng)
    A = _tensor(_orthogonal(like.numel(), rng), like)
    return Reparameterization.affine(A, name="orthogonal")


Pairs = list[tuple[Tensor, Tensor]]


def layerwise(index: Sequence[Tensor], pairs: Pairs, name: str) -> Reparameterization:
    r"""The map :math:`W_l \mapsto U_l W_l V_l` of every layer block.

    Args:
        index: index matrices of the layers into the flat vector
            (see `geolib.naturality.blocks`); they must cover every parameter.
        pairs: one (U, V) per block.
    """
    inverses = [(torch.linalg.inv(u), torch.linalg.inv(v)) for u, v in pairs]
    flat = torch.cat([i.reshape(-1) for i in index])
    place = torch.argsort(flat)

    def apply(x: Tensor, maps: Pairs) -> Tensor:
        parts = zip(index, maps, strict=True)
        return torch.cat([(u @ x[i] @ v).reshape(-1) for i, (u, v) in parts])[place]

    return Reparameterization(
        lambda x: apply(x, pairs), lambda y: apply(y, inverses), name, "affine", pairs
    )


def _layer_family(
    module: nn.Module, like: Tensor, name: str, draw: Callable[[int], np.ndarray]
) -> Reparameterization:
    index = blocks(module)
    pairs = [tuple(_tensor(draw(k), like) for k in i.shape) for i in index]
    return layerwise(index, pairs, name)  # type: ignore[arg-type]


def random_affine(
    like: Annotated[Tensor, "real p"],
    seed: int,
    cond: Annotated[float, "1 <= cond <= 1e12"] = 3.0,
    module: nn.Module | None = None,
) -> Reparameterization:
    r"""Draw an affine map of the parameter vector, or of every layer's matrix.

    .. math:: \theta \mapsto A\theta + b, \qquad\text{or}\qquad
        W_l \mapsto U_l W_l V_l .

    Args:
        like: (p,), for size, dtype and device.
        seed: of the draw.
        cond: condition number of A, or of each U and V.
        module: fixes the layers; without it the map mixes all parameters.

    Source: :eq:`drv-naturality-families` (derivations).

    Examples:
        >>> phi = random_affine(torch.zeros(3, dtype=torch.float64), 0, cond=5.0)
        >>> round(float(torch.linalg.cond(phi.jacobian(torch.zeros(3).double()))), 6)
        5.0
    """
    rng = np.random.default_rng(seed)
    if module is not None:
        draw = partial(_conditioned, cond=cond, rng=rng)
        return _layer_family(module, like, "layer affine", draw)
    p = like.numel()
    b = _tensor(0.3 * rng.standard_normal(p), like)
    if p <= DENSE:
        A = _tensor(_conditioned(p, cond, rng), like)
        return Reparameterization.affine(A, b, "affine")
    s = _tensor(np.exp(np.linspace(-0.5, 0.5, p) * np.log(cond)), like)
    first, second = _rotations(like, rng), _rotations(like, rng)

    def forward(x: Tensor) -> Tensor:
        return second.forward(s * first.forward(x)) + b

    def inverse(y: Tensor) -> Tensor:
        return first.inverse(second.inverse(y - b) / s)

    return Reparameterization(forward, inverse, "affine", "affine")


def permutation(module: nn.Module, like: Tensor, seed: int) -> Reparameterization:
    """Hidden neurons permuted: rows of a layer, and columns of the next, together."""
    rng = np.random.default_rng(seed)
    index = blocks(module)
    pairs, previous = [], None
    for k, i in enumerate(index):
        rows, cols = i.shape
        order = np.arange(rows)
        if k + 1 < len(index) and index[k + 1].shape[1] in (rows, rows + 1):
            order = np.roll(order, 1) if rows < 4 else rng.permutation(rows)
        V = np.eye(cols)
        if previous is not None and len(previous) in (cols, cols - 1):
            V[: len(previous), : len(previous)] = np.eye(len(previous))[previous].T
        pairs.append((_tensor(np.eye(rows)[order], like), _tensor(V, like)))
        previous = order
    return layerwise(index, pairs, "permutation")


def relu_rescaling(
    module: nn.Module, like: Tensor, seed: int, spread: float = 0.7
) -> Reparameterization:
    """Incoming weights of a hidden unit times a positive factor, outgoing divided.

    For ReLU networks it leaves the function alone; for any other it is a change of
    coordinates like the rest.
    """
    rng = np.random.default_rng(seed)
    index = blocks(module)
    scale = torch.ones_like(like)
    for a, b in itertools.pairwise(index):
        if b.shape[1] in (a.shape[0], a.shape[0] + 1):
            c = _tensor(np.exp(rng.uniform(-spread, spread, a.shape[0])), like)
            scale[a] = scale[a] * c[:, None]
            scale[b[:, : a.shape[0]]] = scale[b[:, : a.shape[0]]] / c
    return Reparameterization.scaling(scale, "ReLU rescaling")


def radial(module: nn.Module, like: Tensor, power: float = 0.5) -> Reparameterization:
    r"""Row by row, :math:`w \mapsto w\,|w|^{q}`: a weight-normalisation-like map.

    The inverse has no derivative at zero, so rows that are zero at `like` are left alone.
    """
    expect(power > -1, "power", "more than -1", power)
    at = [i.to(like.device) for i in blocks(module)]
    index = [i[like[i].norm(dim=1) > 0] for i in at]

    def apply(x: Tensor, q: float) -> Tensor:
        for i in index:
            w = x[i]
            longer = w * w.square().sum(1, keepdim=True) ** (q / 2)
            x = x.index_put((i,), longer)
        return x

    back = -power / (1 + power)
    return Reparameterization(
        lambda x: apply(x, power), lambda y: apply(y, back), "radial"
    )


def standard_suite(
    module: nn.Module, like: Annotated[Tensor, "real p"], seed: int = 0
) -> dict[str, Reparameterization]:
    """Draw the eleven families of the audit for `module`, with one seed.

    Args:
        module: fixes the layer structure.
        like: a flat parameter vector (p,); its dtype and device are used.
        seed: family k is drawn with seed `100 * seed + k`.

    Source: :eq:`drv-naturality-families` (derivations).

    Examples:
        >>> from geolib.naturality import affine_mlp
        >>> suite = standard_suite(affine_mlp([2, 2, 1]), torch.zeros(9, dtype=torch.float64))
        >>> list(suite)[:3]
        ['permutation', 'uniform', 'diagonal']
    """
    s, p = 100 * seed, sum(t.numel() for t in module.parameters() if t.requires_grad)
    expect(len(like) == p, "like", f"{p} parameters, as the module has", len(like))
    turned = partial(_orthogonal, rng=np.random.default_rng(s + 4))
    return {
        "permutation": permutation(module, like, s),
        "uniform": _uniform(module, like),
        "diagonal": log_scaling(like, s + 2),
        "rescaling": relu_rescaling(module, like, s + 3),
        "layer-orthogonal": _layer_family(module, like, "layer orthogonal", turned),
        "orthogonal": orthogonal(like, s + 5),
        "layer-affine": random_affine(like, s + 6, module=module),
        "affine": random_affine(like, s + 7),
        "radial": radial(module, like),
        "sinh": Reparameterization(torch.sinh, torch.asinh, "sinh"),
        "coupling": Reparameterization.coupling(like, s + 10),
    }


def _uniform(module: nn.Module, like: Tensor) -> Reparameterization:
    """Every coordinate doubled, as a map U W V of each layer too."""
    eyes = [[torch.eye(k).to(like) for k in i.shape] for i in blocks(module)]
    double = [(2 * U, V) for U, V in eyes]
    factor = torch.full_like(like, 2.0)
    return replace(Reparameterization.scaling(factor, "uniform scaling"), layers=double)
