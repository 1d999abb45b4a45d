"""The prism: the leading monomials of the loss, its faces and their regimes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from geolib.regimes.expansion import Planar, planar_loss
from geolib.regimes.polytope import Facet, Polytope, hull

# Names of the five faces, in the order in which the chapter treats them.
REGIMES = ("large-data", "small-data", "mean-field", "narrow", "free")
# The limit that leads to each, as a direction of (log kappa, log rho, log c).
RAYS = {
    "large-data": (0, 0, -1),
    "small-data": (0, 0, 1),
    "mean-field": (-1, 0, 0),
    "narrow": (0, -1, 0),
    "free": (1, 1, 0),
}
Key = tuple[int, int, int]


def prism(kind: str, order: int) -> Polytope:
    r"""The hull in (l, k, m) of the leading monomials of the s-th derivative.

    .. math:: \rho^k \kappa^{l-k} c^m

    Args:
        kind: `train` or `population`.
        order: the derivative s.

    Source: spec section 3.2; the prism is the paper's, its computation ours.

    Examples:
        >>> prism("train", 2).f_vector
        (6, 9, 5)
    """
    return hull(planar_loss(kind, order)[order])


def regime_of_facet(facet: Facet) -> str:
    r"""The regime that a facet of the prism stands for, read off its outward normal.

    A limit makes the monomials largest along its ray lead. In terms of (l, k, m) the
    ray :math:`(\log\kappa, \log\rho, \log c) = (x, y, z)` is the linear form
    :math:`(x,\, y - x,\, z)`.

    Raises:
        ValueError: a normal that belongs to no regime.
    """
    for name, (x, y, z) in RAYS.items():
        if facet.normal == (x, y - x, z):
            return name
    raise ValueError(f"facet: normal {facet.normal} belongs to no regime")


def face_test(name: str, kind: str, order: int) -> Callable[[Key], bool]:
    """Whether a monomial (l, k, m) lies on a regime's face.

    Raises:
        ValueError: an unknown regime.

    Examples:
        >>> face_test("mean-field", "train", 3)((2, 2, 0))
        True
    """
    top = order if kind == "train" else max(order - 1, 0)
    tests: dict[str, Callable[[Key], bool]] = {
        "large-data": lambda p: p[2] == 0,
        "small-data": lambda p: p[2] == top,
        "mean-field": lambda p: p[0] == p[1],
        "narrow": lambda p: p[1] == 1,
        "free": lambda p: p[0] == order + 2,
    }
    if name not in tests:
        raise ValueError(f"name: expected one of {REGIMES}, got {name!r}")
    return tests[name]


def face(name: str, kind: str, order: int) -> Planar:
    """The leading monomials of the s-th derivative that lie on a regime's face."""
    test = face_test(name, kind, order)
    table = planar_loss(kind, order)[order]
    return {key: value for key, value in table.items() if test(key)}


def value(table: Planar, rho: float, kappa: float, c: float) -> float:
    """The polynomial of rho, kappa and c that a table of monomials stands for.

    Examples:
        >>> value({(2, 1, 0): Fraction(8)}, 0.5, 2.0, 1.0)
        8.0
    """
    return float(
        sum(
            float(f) * rho**k * kappa ** (l - k) * c**m
            for (l, k, m), f in table.items()
        )
    )


__all__ = [
    "RAYS",
    "REGIMES",
    "Fraction",
    "face",
    "face_test",
    "prism",
    "regime_of_facet",
    "value",
]
