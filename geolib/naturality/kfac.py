r"""K-FAC, and the exact natural gradient damped by K-FAC's metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geolib.naturality.affine_layers import AffineLayer
from geolib.naturality.geometric_optimizer import GeometricOptimizer, positive
from geolib.naturality.local_geometry import LocalGeometry, flatten


class LayerFactors:
    r"""The Kronecker factors of every layer, read by hooks inside a `with` block.

    .. math:: F_l \approx B_l \otimes A_l, \qquad
        A_l = \tfrac1n\sum_i a_ia_i^T, \qquad B_l = \sum_i J_{s,i}^TW_iJ_{s,i},

    where a is the layer's input (with a 1 for the bias) and :math:`J_s` the
    derivative of the outputs by the layer's output s.

    Args:
        module: its layers with parameters must be `AffineLayer` or `nn.Linear`, each
            used once a pass on inputs of shape (n, in).
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers: list[nn.Module] = []
        self.inputs: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}
        for name, m in module.named_modules():
            if isinstance(m, AffineLayer | nn.Linear):
                self.layers.append(m)
            elif any(True for _ in m.parameters(recurse=False)):
                raise TypeError(
                    f"module: K-FAC handles Linear and AffineLayer layers, got a "
                    f"{type(m).__name__} ({name})"
                )
        if not self.layers:
            raise ValueError("module: no layer with parameters")

    def __enter__(self) -> None:
        self.hooks = [m.register_forward_hook(self._record) for m in self.layers]

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "inputs": {}, "sums": {}}  # no graphs

    def _record(self, m: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        x = args[0]
        if isinstance(m, AffineLayer):
            a = m.features(x)
        elif m.bias is not None:
            a = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        else:
            a = x
        self.inputs[id(m)], self.sums[id(m)] = a.detach(), out

    def params(self) -> list[Tensor]:
        """The parameters in the order of the factors: weight, bias, weight, ..."""
        return [t for m in self.layers for t in m.parameters()]

    def factors(self, q: LocalGeometry) -> list[tuple[Tensor, Tensor]]:
        """The pairs (B, A) of the last forward pass."""
        sums = [self.sums[id(m)] for m in self.layers]
        n, c = q.z.shape
        per_output = []
        for k in range(c):  # sample i's outputs depend on sample i only
            seed = torch.zeros_like(q.z)
            seed[:, k] = 1
            per_output.append(
                torch.autograd.grad(q.graph, sums, seed, retain_graph=True)
            )
        pairs = []
        for layer, m in enumerate(self.layers):
            G = torch.stack([g[layer] for g in per_output], dim=1).detach()
            if isinstance(m, AffineLayer) and m.left is not None:
                G = G @ m.left  # the layer's own output precedes the fixed map
            B = torch.einsum("nia,nij,njb->ab", G, q.W, G)
            a = self.inputs[id(m)]
            pairs.append((B, a.T @ a / n))
        return pairs

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat vector as one matrix (out, in [+ 1]) per layer."""
        result, start = [], 0
        for m in self.layers:
            parts = []
            for t in m.parameters():
                piece = flat[start : start + t.numel()].reshape(t.shape[0], -1)
                parts.append(piece)
                start += t.numel()
            result.append(torch.cat(parts, dim=1))
        return result

    def join(self, matrices: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        out = []
        for m, X in zip(self.layers, matrices, strict=True):
            widths = [t.numel() // t.shape[0] for t in m.parameters()]
            out += list(X.split(widths, dim=1))
        return flatten(out)

    def dense(self, q: LocalGeometry) -> Tensor:
        """The block-diagonal K-FAC metric as a matrix, (p, p); the slow reference."""
        mats = []
        for (B, A), m in zip(self.factors(q), self.layers, strict=True):
            K = torch.kron(B.contiguous(), A.contiguous())
            order = self._order(m, A.shape[0])
            mats.append(K[order][:, order])
        return torch.block_diag(*mats)

    @staticmethod
    def _order(m: nn.Module, width: int) -> Tensor:
        """Where the flat parameters of a layer sit in its joined matrix."""
        rows = next(m.parameters()).shape[0]
        index = torch.arange(rows * width).view(rows, width)
        if len(list(m.parameters())) == 1:
            return index.reshape(-1)
        return torch.cat([index[:, :-1].reshape(-1), index[:, -1]])


class KFAC(GeometricOptimizer):
    r"""Kronecker-factored approximate curvature, natural under layer-affine maps.

    .. math:: X_l \leftarrow X_l - h\,(B_l + \tfrac{\sqrt\lambda}{\pi_l}I)^{-1}
        \,G_l\,(A_l + \pi_l\sqrt\lambda I)^{-1}, \qquad
        \pi_l^2 = \frac{\mathrm{tr}A_l/\dim A_l}{\mathrm{tr}B_l/\dim B_l} .

    Undamped it is exactly natural under :math:`W_l \mapsto U_lW_lV_l`; damping gives
    that up.

    Args:
        module: layers `AffineLayer` or `nn.Linear`; its own parameters are optimized,
            and the closure must call it.

    Raises:
        TypeError: another layer with parameters.
        ValueError: no layer with parameters.

    Source: Martens, Grosse 2015; Luk, Grosse 2018; :eq:`drv-naturality-kfac`
        (derivations).

    Examples:
        >>> net = nn.Linear(1, 1, bias=False).double()
        >>> opt = KFAC(net, lr=1.0)
        >>> x = torch.tensor([[2.0]], dtype=torch.float64)
        >>> def closure():
        ...     z = net(x)
        ...     return z, 0.5 * (z - 6).square().sum()
        >>> loss = opt.step(closure)
        >>> round(net.weight.item(), 9)  # one layer, one sample: it is exact
        3.0
    """

    def __init__(self, module: nn.Module, lr: float = 1e-2, **options: Any) -> None:
        self.layers = LayerFactors(module)
        super().__init__(self.layers.params(), lr, **options)

    def watching(self) -> LayerFactors:
        return self.layers

    def update(self, q: LocalGeometry) -> Tensor:
        lam = self.options["damping"]
        steps = []
        for (B, A), G in zip(
            self.layers.factors(q), self.layers.split(q.g), strict=True
        ):
            if lam > 0:
                pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
                A = A + pi * lam**0.5 * torch.eye(len(A)).to(A)
                B = B + lam**0.5 / pi * torch.eye(len(B)).to(B)
            X = torch.linalg.solve(B, G)
            steps.append(-torch.linalg.solve(A, X.T).T)
        return self.options["lr"] * self.layers.join(steps)


class KFACDampedNatural(GeometricOptimizer):
    r"""The exact natural gradient, damped by K-FAC's metric.

    .. math:: x \leftarrow x - h\,(F + \lambda F_{KFAC})^{-1} g .

    Damping without the loss of layer-affine naturality that :math:`\lambda I` costs.

    Cost: dense, p^2 memory and p^3 time; for small models.
    """

    def __init__(
        self, module: nn.Module, lr: float = 1e-2, *, damping: float = 0.1, **o: Any
    ) -> None:
        positive("damping", damping)
        self.layers = LayerFactors(module)
        super().__init__(self.layers.params(), lr, damping=damping, **o)

    def watching(self) -> LayerFactors:
        return self.layers

    def update(self, q: LocalGeometry) -> Tensor:
        M = self.options["damping"] * self.layers.dense(q)
        return -self.options["lr"] * torch.linalg.solve(q.F + M, q.g)
