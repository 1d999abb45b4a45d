"""How fast a pathological sequence converges in both spaces, and after its repair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.distance import (
    absolute_value_distance,
    parameter_distance,
)
from geolib.inverse_stability.net import ShallowReLU
from geolib.inverse_stability.normal_form import (
    absolute_value_form,
    balance,
    merge_parallel,
)
from geolib.inverse_stability.pathologies import Pathology, distance_to_line
from geolib.inverse_stability.planar import planar_norms
from geolib.inverse_stability.seminorm import seminorm


@dataclass(frozen=True, eq=False)
class Rates:
    """Four quantities along a sequence g_k, each of shape (number of k,).

    Attributes:
        label: of the pathology.
        ks: the values of k.
        uniform: sup |g_k - R(Γ)| on the square.
        w1inf: the W^{1,inf} semi-norm of g_k - R(Γ).
        distance: from Γ to the weights that realize g_k (P3a: a lower bound of it).
        repaired: the same after the repair; None where no gauge repairs (P0).
    """

    label: str
    ks: np.ndarray
    uniform: np.ndarray
    w1inf: np.ndarray
    distance: np.ndarray
    repaired: np.ndarray | None

    def slopes(self) -> dict[str, float]:
        """Least-squares slope of log value against log k, for each quantity."""
        found = {}
        for name in ("uniform", "w1inf", "distance", "repaired"):
            values = getattr(self, name)
            if values is not None:
                line = np.polyfit(np.log(self.ks), np.log(values), 1)
                found[name] = float(line[0])
        return found


def rates(case: Pathology) -> Rates:
    """Measure a pathology of the plane exactly; nothing is sampled.

    Cost: O(len(ks) m^2), and 2^m flip sets for each distance.

    Examples:
        >>> from geolib.inverse_stability.pathologies import unbalanced
        >>> r = rates(unbalanced([1.0, 10.0, 100.0]))
        >>> {name: round(slope, 6) + 0.0 for name, slope in r.slopes().items()}
        {'uniform': -1.0, 'w1inf': -1.0, 'distance': 0.0, 'repaired': -0.5}
    """
    norms = [planar_norms(g - case.base) for g in case.sequence]
    fixed = [_repair(case, g) for g in case.sequence]
    return Rates(
        case.label,
        np.array(case.ks),
        np.array([n.uniform for n in norms]),
        np.array([seminorm(g - case.base).value for g in case.sequence]),
        np.array([_fibre_distance(case, g) for g in case.sequence]),
        None if fixed[0] is None else np.array(fixed),
    )


def _fibre_distance(case: Pathology, g: ShallowReLU) -> float:
    if case.label == "P3a":  # g has one kink: some neuron must lie on its line
        return float(distance_to_line(case.base.A, g.A[0]).min())
    return parameter_distance(case.base, g, "sign")


def _repair(case: Pathology, g: ShallowReLU) -> float | None:
    if case.repair == "balance":
        return parameter_distance(balance(case.base), balance(g))
    if case.repair == "merge":
        return parameter_distance(merge_parallel(case.base), balance(g))
    if case.repair == "normal form":
        forms = absolute_value_form(case.base), absolute_value_form(g)
        return max(absolute_value_distance(*forms))
    return None
