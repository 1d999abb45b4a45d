r"""Metrics on the space of outputs, which R pulls back to the parameters.

Each gives every sample a positive semi-definite matrix M_i that may depend on the
model's own output z_i, together with a root: M_i = S_i S_i^T with S_i of shape (o, r).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from geolib.core.inputs import require_finite
from geolib.core.jet import Jet
from geolib.core.realization import Realization


class LocalMetric(ABC):
    """The matrices M_i of one batch; leading batch axes of arguments are allowed.

    Attributes:
        rank: r, the number of columns of each root.
    """

    rank: int

    @abstractmethod
    def root(self, s: Tensor) -> Tensor:
        """S_i s_i for s of shape (..., n, r), shape (..., n, o)."""

    @abstractmethod
    def root_t(self, u: Tensor) -> Tensor:
        """S_i^T u_i for u of shape (..., n, o), shape (..., n, r)."""

    @abstractmethod
    def root_solve(self, u: Tensor) -> Tensor:
        """The least s with S_i s_i = u_i, in least squares; shape (n, r)."""

    def apply(self, u: Tensor) -> Tensor:
        """M_i u_i, shape (..., n, o)."""
        return self.root(self.root_t(u))

    def dense(self, outputs: int) -> Tensor:
        """All M_i, shape (n, o, o), by applying them to the unit vectors."""
        unit = torch.eye(outputs, dtype=self.like.dtype, device=self.like.device)
        columns = self.apply(unit[:, None, :].expand(-1, self.like.shape[0], -1))
        return columns.permute(1, 2, 0)

    def __init__(self, like: Tensor) -> None:
        self.like = like


class Diagonal(LocalMetric):
    """M_i = diag(d_i) with d of shape (n, o) or a shape that broadcasts to it."""

    def __init__(self, like: Tensor, weights: Tensor) -> None:
        super().__init__(like)
        self.rank = like.shape[-1]
        self.weights = weights
        self.roots = weights.sqrt()

    def root(self, s: Tensor) -> Tensor:
        return self.roots * s

    def root_t(self, u: Tensor) -> Tensor:
        return self.roots * u

    def apply(self, u: Tensor) -> Tensor:
        return self.weights * u

    def root_solve(self, u: Tensor) -> Tensor:
        return torch.where(self.roots > 0, u / self.roots, torch.zeros_like(u))


class Simplex(LocalMetric):
    """M_i = diag(pi_i) - pi_i pi_i^T, whose root has one column fewer than rows.

    With q = sqrt(pi), M = diag(q) (I - q q^T) diag(q), and the projector I - q q^T
    is H_1 H_1^T for the last o-1 columns H_1 of the reflection that swaps e_1 and -q.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.rank = logits.shape[-1] - 1
        self.probabilities = logits.softmax(-1)
        self.q = (0.5 * logits.log_softmax(-1)).exp()
        w = self.q.clone()
        w[..., 0] += 1.0
        self.w = w / w.norm(dim=-1, keepdim=True)

    def _reflect(self, t: Tensor) -> Tensor:
        return t - 2 * self.w * (self.w * t).sum(-1, keepdim=True)

    def root(self, s: Tensor) -> Tensor:
        return self.q * self._reflect(torch.nn.functional.pad(s, (1, 0)))

    def root_t(self, u: Tensor) -> Tensor:
        return self._reflect(self.q * u)[..., 1:]

    def apply(self, u: Tensor) -> Tensor:
        pu = self.probabilities * u
        return pu - self.probabilities * pu.sum(-1, keepdim=True)

    def root_solve(self, u: Tensor) -> Tensor:
        safe = torch.where(self.q > 0, u / self.q, torch.zeros_like(u))
        return self._reflect(safe)[..., 1:]


class ReferencedSimplex(LocalMetric):
    """The same for c - 1 logits beside one fixed at 0: the root without its last row.

    A Cholesky factor of these blocks would not exist where a probability rounds to 1.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.rank = logits.shape[-1]
        self.full = Simplex(torch.nn.functional.pad(logits, (0, 1)))

    def root(self, s: Tensor) -> Tensor:
        return self.full.root(s)[..., :-1]

    def root_t(self, u: Tensor) -> Tensor:
        return self.full.root_t(torch.nn.functional.pad(u, (0, 1)))

    def root_solve(self, u: Tensor) -> Tensor:
        # The full root reaches exactly the vectors whose entries add up to 0.
        return self.full.root_solve(torch.cat([u, -u.sum(-1, keepdim=True)], dim=-1))


class Factor(LocalMetric):
    """M_i = S_i S_i^T for given roots S of shape (n, o, r)."""

    def __init__(self, like: Tensor, roots: Tensor) -> None:
        super().__init__(like)
        self.roots = roots
        self.rank = roots.shape[-1]

    def root(self, s: Tensor) -> Tensor:
        return torch.einsum("nor,...nr->...no", self.roots, s)

    def root_t(self, u: Tensor) -> Tensor:
        return torch.einsum("nor,...no->...nr", self.roots, u)

    def root_solve(self, u: Tensor) -> Tensor:
        return torch.linalg.pinv(self.roots).matmul(u[..., None])[..., 0]


class OutputMetric(ABC):
    """A rule that gives a batch of outputs its :class:`LocalMetric`."""

    @abstractmethod
    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        """The metric at outputs z, shape (n, o), of the data set's `samples`."""

    def prepare(self, R: Realization) -> Realization:
        """The map that is measured: R itself, unless the metric needs derivatives."""
        return R

    def __repr__(self) -> str:
        return type(self).__name__


class Euclidean(OutputMetric):
    r"""The flat metric :math:`M = I`: its pull-back is :math:`J^T J / n`."""

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        return Diagonal(z, torch.ones_like(z))


class Gaussian(OutputMetric):
    r"""Fisher metric of :math:`y \sim N(z, \mathrm{diag}(\sigma^2))` in its mean.

    .. math:: M = \mathrm{diag}(\sigma^{-2}).

    Args:
        sigma: standard deviation, one number or one for each output.
    """

    def __init__(self, sigma: float | Tensor = 1.0) -> None:
        self.sigma = torch.as_tensor(sigma)
        if not bool((self.sigma > 0).all()):
            raise ValueError(f"sigma: expected positive numbers, got {sigma}")

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        return Diagonal(z, self.sigma.to(z).pow(-2).expand_as(z))


class Bernoulli(OutputMetric):
    r"""Fisher metric of independent coin flips with logits z.

    .. math:: M = \mathrm{diag}(\pi (1 - \pi)), \qquad \pi = 1 / (1 + e^{-z}).
    """

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        return Diagonal(z, torch.sigmoid(z) * torch.sigmoid(-z))


class Categorical(OutputMetric):
    r"""Exact Fisher metric of a softmax classifier with logits z.

    .. math:: M = \mathrm{diag}(\pi) - \pi \pi^T, \qquad \pi = \mathrm{softmax}(z).

    It is singular along the constant vector: adding a number to all the logits of a
    sample changes nothing. With `reference=True` the model has c - 1 outputs and the
    logit of one more class is fixed at 0, which removes that direction.
    """

    def __init__(self, reference: bool = False) -> None:
        self.reference = reference

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        if not self.reference:
            if z.shape[-1] < 2:
                raise ValueError(
                    "output_metric: Categorical needs at least 2 outputs, got 1; use "
                    "Bernoulli, or Categorical(reference=True)"
                )
            return Simplex(z)
        return ReferencedSimplex(z)


class EmpiricalFisher(OutputMetric):
    r"""Outer products of the loss's gradients at the data's own labels.

    .. math:: M_i = r_i r_i^T, \qquad
              r_i = \partial \ell(z_i, y_i) / \partial z_i.

    Args:
        loss: takes outputs (n, o) and targets, returns the **sum** of the losses.
        targets: for all samples, in the order of the inputs.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor):
        self.loss = loss
        self.targets = targets

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        return Factor(z, self.residuals(z, samples)[..., None])

    def residuals(self, z: Tensor, samples: slice) -> Tensor:
        """r_i for each sample, shape (n, o)."""
        y = _targets(self.targets, z, samples)
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            (r,) = torch.autograd.grad(self.loss(z, y), z)
        require_finite("output_metric: the loss's gradient", r)
        return r


class LossHessian(OutputMetric):
    r"""The generalised Gauss-Newton metric of any loss convex in the outputs.

    .. math:: M_i = \partial^2 \ell(z_i, y_i) / \partial z_i^2.

    Args:
        loss: takes outputs (n, o) and targets, returns the **sum** of the losses.
        targets: for all samples, in the order of the inputs.

    Raises:
        ValueError: a Hessian with a negative eigenvalue; it names the sample.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor):
        self.loss = loss
        self.targets = targets

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        y = _targets(self.targets, z, samples)
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            (r,) = torch.autograd.grad(self.loss(z, y), z, create_graph=True)
            columns = [
                torch.autograd.grad(r[:, a].sum(), z, retain_graph=True)[0]
                if r.requires_grad
                else torch.zeros_like(z)
                for a in range(z.shape[1])
            ]
        return Factor(z.detach(), psd_root(torch.stack(columns, dim=1).detach()))


class Blocks(OutputMetric):
    """Given matrices M_i, shape (n, o, o) or one (o, o) for all; checked to be PSD."""

    def __init__(self, blocks: Tensor) -> None:
        self.blocks = blocks
        self.roots = psd_root(blocks)

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        roots = self.roots.to(z)
        if roots.ndim == 2:
            roots = roots.expand(z.shape[0], -1, -1)
        else:
            roots = roots[samples]
        if roots.shape[:2] != z.shape:
            raise ValueError(
                f"output_metric: blocks for {tuple(roots.shape[:2])} samples and "
                f"outputs, but the model gives {tuple(z.shape)}"
            )
        return Factor(z, roots)


class Sobolev(OutputMetric):
    r"""The H^1 metric: outputs and their derivatives in the input count.

    .. math:: \langle f, g \rangle = \frac1n \sum_i f(x_i) \cdot g(x_i)
              + w \sum_{j} \partial_j f(x_i) \cdot \partial_j g(x_i).

    Args:
        weight: w, at least 0.

    Cost: a linearization costs about o more forward and backward passes.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ValueError(f"weight: expected a number >= 0, got {weight}")
        self.weight = weight

    def prepare(self, R: Realization) -> Realization:
        return Jet(R, self.weight**0.5)

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        return Diagonal(z, torch.ones_like(z))


def psd_root(blocks: Tensor) -> Tensor:
    """Roots S with S S^T = M for symmetric PSD matrices, shape (..., o, o)."""
    if blocks.ndim < 2 or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"blocks: expected (..., o, o), got {tuple(blocks.shape)}")
    require_finite("blocks", blocks)
    scale = blocks.abs().amax(dim=(-1, -2)).clamp_min(torch.finfo(blocks.dtype).tiny)
    tol = blocks.shape[-1] * 32 * torch.finfo(blocks.dtype).eps * scale
    if bool(((blocks - blocks.mT).abs().amax(dim=(-1, -2)) > tol).any()):
        raise ValueError("blocks: expected symmetric matrices")
    values, vectors = torch.linalg.eigh(blocks)
    bad = torch.nonzero(values[..., 0] < -tol)
    if len(bad):
        raise ValueError(
            f"blocks: not positive semi-definite: eigenvalue "
            f"{float(values[..., 0].min()):.3g} (first at sample {bad[0].tolist()})"
        )
    return vectors * values.clamp_min(0).sqrt()[..., None, :]


def _targets(targets: Tensor, z: Tensor, samples: slice) -> Tensor:
    y = targets[samples].to(z.device)
    if len(y) != len(z):
        raise ValueError(
            f"targets: {len(targets)} of them do not cover samples "
            f"{samples.start}:{samples.stop}"
        )
    return y.to(z.dtype) if y.is_floating_point() else y
