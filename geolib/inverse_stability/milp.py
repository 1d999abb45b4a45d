"""The semi-norm as mixed-integer linear programs, one for each entry and sign."""

from __future__ import annotations

import numpy as np

from geolib.inverse_stability.kinks import Kinks

MARGIN = 1e-6
NODES = 20_000


def milp_bracket(k: Kinks, margin: float = MARGIN) -> tuple[float, float]:
    r"""Lower and upper bounds of the semi-norm from HiGHS.

    For each entry (o, j) and each sign, with binaries s_h = [x on the positive side],

    .. math:: \max_{x \in [-1,1]^d,\, s}\ \pm\sum_h \bigl(s_h P_h + (1 - s_h) Q_h
        \bigr)_{oj} \quad\text{s.t.}\quad s_h = 1 \Leftrightarrow
        \langle n_h, x\rangle \ge \text{margin}

    The lower bound is the largest gradient at the points found, computed afresh from
    their signs; the upper bound is the solver's own dual bound. A cell that holds no
    point at distance `margin` from all hyperplanes is not seen: its gradient counts
    in neither bound.

    Args:
        k: the break hyperplanes of the network.
        margin: smallest |<n_h, x>| of an admissible point of the unit cube.

    Cost: 2 d D programs with h binaries each; exponential in h at worst, cut off (and
    then only a bracket) at 20 000 branch-and-bound nodes.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    h, d = k.normals.shape
    big = np.abs(k.normals).sum(axis=1) + margin
    # n.x - big s >= margin - big  and  n.x - big s <= -margin
    rows = np.hstack([k.normals, -np.diag(big)])
    limits = LinearConstraint(rows, margin - big, np.full(h, -margin))
    box = Bounds(np.concatenate([-np.ones(d), np.zeros(h)]), np.ones(d + h))
    kind = np.concatenate([np.zeros(d), np.ones(h)])
    lower, upper = 0.0, 0.0
    gain = k.jumps.reshape(h, -1).T
    base = k.off.reshape(h, -1).sum(axis=0)
    for value, shift in zip(gain, base, strict=True):
        for sign in (1.0, -1.0):
            cost = np.concatenate([np.zeros(d), -sign * value])
            found = milp(
                cost,
                integrality=kind,
                bounds=box,
                constraints=limits,
                options={"mip_rel_gap": 0.0, "node_limit": NODES},
            )
            bound = found.mip_dual_bound
            if bound is None or not np.isfinite(bound):
                bound = -np.maximum(sign * value, 0.0).sum()
            upper = max(upper, sign * shift - bound)
            if found.x is not None:
                x = found.x[:d]
                signs = np.where(k.normals @ x > 0, 1, -1)[None, :]
                lower = max(lower, float(np.abs(k.gradients(signs)).max()))
    return lower, max(lower, float(upper))
