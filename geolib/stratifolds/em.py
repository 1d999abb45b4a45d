"""Expectation-maximization for unit-variance location mixtures, batched over starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geolib.stratifolds.descent import Descent
from geolib.stratifolds.location import MixtureKL, check_atoms


def em_step(objective: MixtureKL, atoms: Tensor, fixed: Sequence[int] = ()) -> Tensor:
    r"""One exact EM step towards the teacher (or the data) of `objective`.

    .. math:: r_k(x) = \frac{a_k\varphi(x - c_k)}{p(x)}, \quad
              a_k' = E_q[r_k], \quad c_k' = \frac{E_q[x\,r_k]}{E_q[r_k]}

    Args:
        objective: its law q supplies the expectations.
        atoms: (b, 2K) weights and locations.
        fixed: components whose location does not move (mixture A's first).

    Returns:
        (b, 2K) new atoms; the likelihood never decreases.

    Source: Dempster, Laird, Rubin 1977. Cost: one `evaluate`.

    Examples:
        >>> kl = MixtureKL(torch.tensor([1.0, 0.5], dtype=torch.float64))
        >>> one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> [round(float(a), 6) for a in em_step(kl, one)[0]]
        [1.0, 0.5]
    """
    K = atoms.shape[1] // 2
    a, c = atoms[:, :K], atoms[:, K:]
    _, g, _ = objective.evaluate(atoms)
    mass = -a * g[:, :K]  # a_k E_q[f_k/p]
    # E_q[r_k (x - c_k)] = -dL/dc_k
    shift = -g[:, K:] / mass.clamp_min(1e-300)
    new_c = c + torch.where(mass > 1e-300, shift, torch.zeros_like(shift))
    if len(fixed):
        keep = list(fixed)
        new_c = new_c.clone()
        new_c[:, keep] = c[:, keep]
    return torch.cat([mass, new_c], 1)


def em(
    objective: MixtureKL,
    atoms0: Tensor,
    *,
    fixed: Sequence[int] = (),
    steps: int = 5000,
    tol: float = 1e-6,
    plateau: float | None = None,
) -> Descent:
    r"""EM from a batch of starts, recorded like a descent.

    .. math:: \alpha \leftarrow \mathrm{EM}(\alpha) \quad\text{until}\quad L < \tau

    Args:
        objective: KL to a teacher, or the likelihood of data.
        atoms0: (b, 2K) starts.
        fixed: components whose location does not move.
        steps: budget.
        tol: a run hits when its loss falls below this :math:`\tau`.
        plateau: level whose first crossing is reported in `left`.

    Returns:
        a `Descent` with `eta` holding the atoms.

    Raises:
        ValueError: malformed atoms.

    Source: Dempster, Laird, Rubin 1977. Cost: one `evaluate` a step.

    Examples:
        >>> kl = MixtureKL(torch.tensor([0.7, 0.3, 0.0, 2.0], dtype=torch.float64))
        >>> start = torch.tensor([[0.5, 0.5, 0.0, -1.0]], dtype=torch.float64)
        >>> bool(em(kl, start, fixed=[0]).success)
        True
    """
    check_atoms(atoms0, "atoms0")
    b = len(atoms0)
    dev = atoms0.device
    hits = torch.full((b,), -1, dtype=torch.long, device=dev)
    left, none = hits.clone(), torch.zeros_like(hits)
    loss_out = torch.full((b,), float("nan"), dtype=atoms0.dtype, device=dev)
    atoms, out, live = atoms0.clone(), atoms0.clone(), torch.arange(b, device=dev)
    for it in range(steps + 1):
        loss = objective.value(atoms)
        loss_out[live], out[live] = loss, atoms
        if plateau is not None:
            fresh = (loss < plateau) & (left[live] < 0)
            left[live[fresh]] = it
        done = loss < tol
        hits[live[done]] = it
        live, atoms = live[~done], atoms[~done]
        if not len(live) or it == steps:
            break
        atoms = em_step(objective, atoms, fixed)
    off = torch.zeros(b, dtype=torch.bool, device=dev)
    return Descent(
        hits, left, off, off.clone(), loss_out, out, none, none.clone(), None, steps
    )
