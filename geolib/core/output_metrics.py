r"""Metrics on the space of outputs (softmax's Fisher metric among them), pulled back by R.

Each gives every sample a positive semi-definite matrix M_i that may depend on the
model's own output z_i, with a root, M_i = S_i S_i^T, S_i of shape (o, r). Beside it
stand, where they are known in closed form, an isometric embedding of the outputs into
a Euclidean space, and the metric's Levi-Civita connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

# One sample a row, with any further axes.
Outputs = Annotated[Tensor, "n ..."]


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


class DiagonalMetric(LocalMetric):
    """M_i = diag(d_i) with d of shape (n, o) or a shape that broadcasts to it."""

    def __init__(self, like: Tensor, weights: Tensor) -> None:
        super().__init__(like)
        self.rank = like.shape[-1]
        if not bool((weights >= 0).all()):
            what = f"expected weights >= 0, got {float(weights.min()):.3g}"
            raise ValueError(f"output_metric: not positive semi-definite: {what}")
        self.weights, self.roots = weights, weights.sqrt()

    def root(self, s: Tensor) -> Tensor:
        return self.roots * s

    def root_t(self, u: Tensor) -> Tensor:
        return self.roots * u

    def apply(self, u: Tensor) -> Tensor:
        return self.weights * u

    def root_solve(self, u: Tensor) -> Tensor:
        return torch.where(self.roots > 0, u / self.roots, torch.zeros_like(u))


class SoftmaxFisher(LocalMetric):
    r"""The matrices of a softmax, whose root has one column fewer than rows.

    .. math:: M = \mathrm{diag}(\pi) - \pi \pi^T
              = \mathrm{diag}(q)\, (I - q q^T)\, \mathrm{diag}(q), \qquad q = \sqrt\pi .

    The projector I - q q^T is H_1 H_1^T for the last o - 1 columns H_1 of the
    reflection that swaps e_1 and -q.

    Source: :eq:`drv-core-softmax-root` (derivations).
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
        return self.q * self._reflect(pad(s, (1, 0)))

    def root_t(self, u: Tensor) -> Tensor:
        return self._reflect(self.q * u)[..., 1:]

    def apply(self, u: Tensor) -> Tensor:
        pu = self.probabilities * u
        return pu - self.probabilities * pu.sum(-1, keepdim=True)

    def root_solve(self, u: Tensor) -> Tensor:
        safe = torch.where(self.q > 0, u / self.q, torch.zeros_like(u))
        return self._reflect(safe)[..., 1:]


class ReferenceSoftmaxFisher(LocalMetric):
    """The same for c - 1 logits beside one fixed at 0: the root without its last row.

    A Cholesky factor of these blocks would not exist where a probability rounds to 1.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.rank = logits.shape[-1]
        self.full = SoftmaxFisher(pad(logits, (0, 1)))

    def root(self, s: Tensor) -> Tensor:
        return self.full.root(s)[..., :-1]

    def root_t(self, u: Tensor) -> Tensor:
        return self.full.root_t(pad(u, (0, 1)))

    def root_solve(self, u: Tensor) -> Tensor:
        # The full root reaches exactly the vectors whose entries add up to 0.
        return self.full.root_solve(torch.cat([u, -u.sum(-1, keepdim=True)], dim=-1))


class RootMetric(LocalMetric):
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


class _Positions(LocalMetric):
    """One metric at each position of a sample, as for the tokens of a sentence.

    Args:
        like: the outputs with all their axes, shape (n, ...).
        axis: which of these axes holds the classes; at least 1.
        kind: the metric of one position, a function of (positions, classes).
    """

    def __init__(self, like: Tensor, axis: int, kind: type[LocalMetric]) -> None:
        super().__init__(like.reshape(len(like), -1))
        self.axis, self.shape = axis, like.shape[1:]
        moved = like.movedim(axis, -1)
        self.moved = moved.shape[1:]
        self.inner = kind(moved.reshape(-1, moved.shape[-1]))  # type: ignore[call-arg]
        self.rank = self.moved[:-1].numel() * self.inner.rank

    def _split(self, u: Tensor) -> Tensor:
        """(..., n, o) to (..., n * positions, classes)."""
        t = u.reshape(*u.shape[:-1], *self.shape)
        t = t.movedim(u.ndim - 2 + self.axis, -1)
        return t.reshape(*u.shape[:-2], -1, self.moved[-1])

    def _joined(self, t: Tensor) -> Tensor:
        """The inverse of `_split`."""
        lead = t.shape[:-2]
        t = t.reshape(*lead, -1, *self.moved).movedim(-1, len(lead) + self.axis)
        return t.reshape(*lead, -1, self.shape.numel())

    def root(self, s: Tensor) -> Tensor:
        inner = s.reshape(*s.shape[:-2], -1, self.inner.rank)
        return self._joined(self.inner.root(inner))

    def root_t(self, u: Tensor) -> Tensor:
        s = self.inner.root_t(self._split(u))
        return s.reshape(*u.shape[:-1], self.rank)

    def root_solve(self, u: Tensor) -> Tensor:
        s = self.inner.root_solve(self._split(u))
        return s.reshape(*u.shape[:-1], self.rank)

    def apply(self, u: Tensor) -> Tensor:
        return self._joined(self.inner.apply(self._split(u)))


class OutputMetric(ABC):
    r"""A Riemannian metric on outputs, one matrix M(z) for each sample's output z.

    .. math:: \langle a, b \rangle_z = a^T M(z)\, b, \qquad
        M = D\Phi^T D\Phi, \qquad
        [ab, k] = \tfrac12\, a^i b^j (\partial_i M_{jk} + \partial_j M_{ik}
        - \partial_k M_{ij}) .

    A subclass says what M is; one that knows them also has an isometric embedding
    :math:`\Phi` and the Christoffel symbols.

    Attributes:
        constant: whether M is the same at every z; then its symbols vanish.

    Source: :eq:`drv-core-pullback` and :eq:`drv-core-christoffel` (derivations).
    """

    constant = False

    @abstractmethod
    def at(self, z: Outputs, samples: slice) -> LocalMetric:
        """The metric at the outputs of the data set's `samples`.

        Args:
            z: outputs with the axes that the module gave them, (n, o) or (n, ..., o).
            samples: their place in the data set.
        """

    def embedding(self, z: Tensor) -> Tensor:
        r""":math:`\Phi(z)`, whose Euclidean distance is this metric to first order.

        Raises:
            NotImplementedError: no embedding is known in closed form.
        """
        raise NotImplementedError(f"output_metric: {self} has no known embedding")

    def christoffel(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The symbols of the first kind [ab, .] at z, contracted with a and b.

        Args:
            z, a, b: outputs and two tangents of one shape, (n, o).

        Raises:
            NotImplementedError: M varies and its symbols are not known.
        """
        if self.constant:
            return torch.zeros_like(z)
        raise NotImplementedError(f"output_metric: {self} has no known connection")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Euclidean(OutputMetric):
    r"""The flat metric: squared distances between outputs.

    .. math:: M = I, \qquad \Phi(z) = z, \qquad [ab, k] = 0 .

    Its pull-back is :math:`J^T J / n`; it is the Fisher metric of a Gaussian with
    unit variance around z.

    Source: :eq:`drv-core-pullback` (derivations).

    Examples:
        >>> Euclidean().at(torch.zeros(1, 2), slice(0, 1)).dense(2)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """

    constant = True

    def at(self, z: Outputs, samples: slice) -> LocalMetric:
        z = z.flatten(1)
        return DiagonalMetric(z, torch.ones_like(z))

    def embedding(self, z: Tensor) -> Tensor:
        return z


class Bernoulli(OutputMetric):
    r"""The Fisher metric of independent coin flips with logits z.

    .. math:: M = \mathrm{diag}(\pi (1 - \pi)), \qquad
        \Phi(z) = 2 \arctan \tanh \tfrac z4, \qquad
        [ab, k] = \tfrac12 \pi_k (1 - \pi_k)(1 - 2\pi_k)\, a_k b_k,

    with :math:`\pi = 1 / (1 + e^{-z})`.

    Source: :eq:`drv-core-bernoulli` (derivations).

    Examples:
        >>> z = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
        >>> D = torch.func.jacrev(Bernoulli().embedding)(z)[0, :, 0]
        >>> M = Bernoulli().at(z, slice(0, 1)).dense(2)[0]
        >>> bool((D.mT @ D - M).abs().max() < 1e-15)
        True
    """

    def at(self, z: Outputs, samples: slice) -> LocalMetric:
        z = z.flatten(1)
        return DiagonalMetric(z, torch.sigmoid(z) * torch.sigmoid(-z))

    def embedding(self, z: Tensor) -> Tensor:
        return 2 * torch.atan(torch.tanh(z / 4))

    def christoffel(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        pi = torch.sigmoid(z)
        return 0.5 * pi * (1 - pi) * (1 - 2 * pi) * a * b


class Categorical(OutputMetric):
    r"""The Fisher metric of a softmax classifier with logits z.

    .. math:: M = \mathrm{diag}(\pi) - \pi \pi^T, \qquad
        \Phi(z) = 2 \sqrt{\pi}, \qquad
        [ab, k] = \tfrac12 \pi_k \bigl(\bar a_k \bar b_k
        - \textstyle\sum_j \pi_j \bar a_j \bar b_j\bigr),

    with :math:`\pi = \mathrm{softmax}(z)` and :math:`\bar a = a - \sum_j \pi_j a_j`.
    The embedding lies on a sphere of radius 2. M is singular along the constant
    vector: adding a number to all the logits of a sample changes nothing.

    Args:
        reference: the model has c - 1 outputs, and the logit of one more class is fixed
            at 0, which removes the singular direction.
        dim: the axis of the classes among the axes of the module's output, counted as
            in `torch.softmax(output, dim)`: -1 for tokens of shape (n, positions,
            classes), 1 for images of shape (n, classes, height, width). Only an output
            of shape (n, classes) may leave it out.

    Raises:
        ValueError: (by `at`) one class; an output with more than two axes and no
            `dim`; a `dim` that is the samples' axis or beyond the output.

    Source: Amari and Nagaoka 2000, section 2.5; :eq:`drv-core-simplex` and
    :eq:`drv-core-simplex-christoffel` (derivations).

    Examples:
        >>> z = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        >>> D = torch.func.jacrev(Categorical().embedding)(z)[0, :, 0]
        >>> M = Categorical().at(z, slice(0, 1)).dense(3)[0]
        >>> bool((D.mT @ D - M).abs().max() < 1e-15)
        True
        >>> Categorical(dim=-1).at(torch.zeros(2, 5, 3), slice(0, 2)).rank
        10
    """

    def __init__(self, reference: bool = False, dim: int | None = None) -> None:
        self.reference, self.dim = reference, dim

    def __repr__(self) -> str:
        given = "reference=True" if self.reference else ""
        dim = "" if self.dim is None else f"dim={self.dim}"
        return f"Categorical({', '.join(filter(None, (given, dim)))})"

    def at(self, z: Outputs, samples: slice) -> LocalMetric:
        axis = self._axis(z)
        if not self.reference and z.shape[axis] < 2:
            hint = "use Bernoulli, or Categorical(reference=True)"
            what = "Categorical needs at least 2 outputs, got 1"
            raise ValueError(f"output_metric, z: {what}; {hint}")
        kind = ReferenceSoftmaxFisher if self.reference else SoftmaxFisher
        return kind(z) if z.ndim == 2 else _Positions(z, axis, kind)

    def embedding(self, z: Tensor) -> Tensor:
        # through the logarithm: no root of a probability that underflowed
        z, dim = self._complete(z)
        return 2 * torch.exp(torch.log_softmax(z, dim) / 2)

    def christoffel(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        # half the third cumulant of the one-hot label, contracted with a and b
        z, dim = self._complete(z)
        pi, a, b = torch.softmax(z, dim), self._complete(a)[0], self._complete(b)[0]
        a = a - (pi * a).sum(dim, keepdim=True)
        b = b - (pi * b).sum(dim, keepdim=True)
        ab = a * b
        symbols = 0.5 * pi * (ab - (pi * ab).sum(dim, keepdim=True))
        return symbols.narrow(dim, 0, z.shape[dim] - self.reference)

    def _complete(self, t: Tensor) -> tuple[Tensor, int]:
        """Logits or tangents with a 0 for the reference class, and their axis."""
        dim = -1 if self.dim is None else self.dim
        if self.reference:
            t = torch.cat([t, torch.zeros_like(t.narrow(dim, 0, 1))], dim)
        return t, dim

    def _axis(self, z: Tensor) -> int:
        """The axis of the classes, at least 1."""
        shape = f"outputs of shape {tuple(z.shape)}"
        if self.dim is None and z.ndim > 2:
            what = f"{shape} do not tell which axis holds the classes"
            hint = "expected Categorical(dim=...), -1 for the last"
            raise ValueError(f"output_metric, z: {what}; {hint}")
        axis = 1 if self.dim is None else self.dim % z.ndim
        if axis == 0 or not -z.ndim <= (self.dim or 1) < z.ndim:
            wanted = f"an axis of the classes in {shape}, 1 to {z.ndim - 1} or negative"
            raise ValueError(f"output_metric: dim: expected {wanted}; got {self.dim}")
        return axis
