"""The semi-norm by mixed-integer programs: a reference that enumerates no cells."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def milp_bracket(k, margin=1e-6):
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
    h, d = k.normals.shape
    big = np.abs(k.normals).sum(axis=1) + margin
    # n.x - big s >= margin - big  and  n.x - big s <= -margin
    rows = np.hstack([k.normals, -np.diag(big)])
    limits = LinearConstraint(rows, margin - big, np.full(h, -margin))
    box = Bounds(np.concatenate([-np.ones(d), np.zeros(h)]), np.ones(d + h))
    kind = np.concatenate([np.zeros(d), np.ones(h)])
    options = {"mip_rel_gap": 0.0, "node_limit": 20_000}
    lower, upper = 0.0, 0.0
    gain = k.jumps.reshape(h, -1).T
    base = k.off.reshape(h, -1).sum(axis=0)
    for sign in (1.0, -1.0):
        for value, shift in zip(sign * gain, sign * base, strict=True):
            cost = np.concatenate([np.zeros(d), -value])
            found = milp(
                cost, integrality=kind, bounds=box, constraints=limits, options=options
            )
            bound = found.mip_dual_bound
            if bound is None or not np.isfinite(bound):
                bound = -np.maximum(value, 0.0).sum()
            upper = max(upper, shift - bound)
            if found.x is not None:
                signs = np.where(k.normals @ found.x[:d] > 0, 1, -1)[None, :]
                lower = max(lower, k.largest(signs))
    return lower, max(lower, float(upper))
