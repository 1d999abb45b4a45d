"""Taylor coefficients of the theories in exact arithmetic, to set beside the prism.

Each theory is a closed system of polynomial equations of motion; differentiating a
loss s times along it gives a polynomial in its variables, whose value at time 0 is a
polynomial in rho, kappa and c. None of this uses words, traces or integration by parts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction

from geolib.regimes.expansion import Planar
from geolib.regimes.law import narayana

# A polynomial in named variables: {sorted tuple of (name, power): coefficient}.
Monomial = tuple[tuple[str, int], ...]
Poly = dict[Monomial, Fraction]
Rule = Callable[[str], Poly]
Table = defaultdict[tuple[int, int, int], Fraction]


def poly(*terms: tuple[int | Fraction, str]) -> Poly:
    """A polynomial from (coefficient, 'x x y') pairs.

    Examples:
        >>> poly((2, "a a"), (-1, ""))[(("a", 2),)]
        Fraction(2, 1)
    """
    out: defaultdict[Monomial, Fraction] = defaultdict(Fraction)
    for factor, names in terms:
        out[tuple(sorted(Counter(names.split()).items()))] += Fraction(factor)
    return dict(out)


def times(a: Poly, b: Poly) -> Poly:
    """The product of two polynomials."""
    out: defaultdict[Monomial, Fraction] = defaultdict(Fraction)
    for x, p in a.items():
        for y, q in b.items():
            powers = Counter(dict(x))
            powers.update(dict(y))
            out[tuple(sorted(powers.items()))] += p * q
    return {m: f for m, f in out.items() if f}


def differentiate(loss: Poly, rule: Rule) -> Poly:
    """The time derivative, with `rule(name)` the velocity of a variable."""
    out: defaultdict[Monomial, Fraction] = defaultdict(Fraction)
    for monomial, factor in loss.items():
        for name, power in monomial:
            rest = Counter(dict(monomial))
            rest[name] -= 1
            left = {tuple(sorted((+rest).items())): factor * power}
            for product, f in times(left, rule(name)).items():
                out[product] += f
    return {m: f for m, f in out.items() if f}


def _marchenko_pastur(order: int, letters: bool) -> dict[tuple[int, int], int]:
    """Moment `order` of (rho, kappa) as {(l, k): n}, or of (1, c) as {(0, m): n}."""
    if order == 0:
        return {(0, 0): 1}
    table = enumerate(narayana(order), 1)
    if letters:
        return {(order, k): n for k, n in table}
    return {(0, order - k): n for k, n in table}


def _add(out: Table, l: int, k: int, m: int, value: Fraction) -> None:
    out[(l, k, m)] += value


def _large_data(kind: str, order: int) -> list[Planar]:
    """a' = 4 a (1 - a), L = (1 - a)^2 / 2, averaged over Marchenko-Pastur's law."""
    loss = poly((Fraction(1, 2), ""), (-1, "a"), (Fraction(1, 2), "a a"))
    velocity = poly((4, "a"), (-4, "a a"))
    out = []
    for _ in range(order + 1):
        total: Table = defaultdict(Fraction)
        for monomial, factor in loss.items():
            for (l, k), n in _marchenko_pastur(
                dict(monomial).get("a", 0), True
            ).items():
                _add(total, l, k, 0, factor * n)
        out.append(dict(total))
        loss = differentiate(loss, lambda _: velocity)
    return out


def _mean_field(kind: str, order: int) -> list[Planar]:
    """a' = 4 x a (1 - a) from a = rho, averaged over x of the law (1, c)."""
    x = " x" if kind == "train" else ""
    loss = poly((Fraction(1, 2), x), (-1, "a" + x), (Fraction(1, 2), "a a" + x))
    velocity = poly((4, "x a"), (-4, "x a a"))
    out = []
    for _ in range(order + 1):
        total: Table = defaultdict(Fraction)
        for monomial, factor in loss.items():
            power = dict(monomial)
            l = power.get("a", 0)
            for (_l, m), n in _marchenko_pastur(power.get("x", 0), False).items():
                _add(total, l, l, m, factor * n)
        out.append(dict(total))
        loss = differentiate(loss, lambda name: velocity if name == "a" else {})
    return out


def _narrow(kind: str, order: int) -> list[Planar]:
    """s' = 2 - F u, u' = -u^2 F1 with u = 1 / v and F_j the j-th derivative of F.

    The loss is less that of the zero map, and per latent; per input it gains the
    factor rho / kappa. F_j starts at kappa 2^j times the j-th moment of the law (1, c).
    """
    if kind == "train":  # -q (1 - r / 2) with r = F0 u, q = F1 u / 2
        loss = poly((Fraction(-1, 2), "F1 u"), (Fraction(1, 4), "F0 F1 u u"))
    else:
        loss = poly((-1, "F0 u"), (Fraction(1, 2), "F0 F0 u u"))

    def rule(name: str) -> Poly:
        if name == "u":
            return poly((-1, "u u F1"))
        up = f"F{int(name[1:]) + 1}"
        return poly((2, up), (-1, f"{up} F0 u"))

    out = []
    for _ in range(order + 1):
        total: Table = defaultdict(Fraction)
        for monomial, factor in loss.items():
            terms: dict[tuple[int, int], Fraction] = {(0, 0): factor}
            for name, power in monomial:
                for _ in range(power if name != "u" else 0):
                    terms = _times_start(terms, int(name[1:]))
            for (kappas, m), f in terms.items():
                _add(total, kappas, 1, m, f)
        out.append({key: f for key, f in total.items() if f})
        loss = differentiate(loss, rule)
    return out


def _times_start(
    terms: dict[tuple[int, int], Fraction], j: int
) -> dict[tuple[int, int], Fraction]:
    """Multiply by F_j(0) = kappa 2^j sum_m n_m c^m; keys are (kappas, m)."""
    out: defaultdict[tuple[int, int], Fraction] = defaultdict(Fraction)
    for (kappas, m), f in terms.items():
        for (_, extra), n in _marchenko_pastur(j, False).items():
            out[(kappas + 1, m + extra)] += f * n * 2**j
    return dict(out)


def _small_data(kind: str, order: int) -> list[Planar]:
    """The moment hierarchy, untruncated: M_k at time 0 are those of (rho, kappa)."""

    def rule(name: str) -> Poly:
        k = int(name[1:])
        terms: list[tuple[int | Fraction, str]] = []
        for j in range(k):
            terms += [
                (-2, f"M{j + 1} M{k - j}"),
                (-1, f"M{j} M{k + 1 - j}"),
                (-1, f"M{j + 2} M{k - 1 - j}"),
                (2, f"M{j} M{k - j}"),
                (2, f"M{j + 1} M{k - 1 - j}"),
            ]
        return poly(*((f, names.replace("M0", "").strip()) for f, names in terms))

    half = Fraction(1, 2)
    train = poly((half, ""), (-1, "M1"), (half, "M2"))
    velocity = poly((-4, "M3"), (8, "M2"), (-4, "M1"))
    # The population loss starts at (1 - 2 phi(A) + phi(A A)) / 2 and then moves by
    # n / d = 1 / c of `velocity` for each unit of tau = c t.
    loss, out = train, []
    for s in range(order + 1):
        top = s if kind == "train" else max(s - 1, 0)
        total: Table = defaultdict(Fraction)
        for monomial, factor in loss.items():
            terms: dict[tuple[int, int], Fraction] = {(0, 0): factor}
            for name, power in monomial:
                for _ in range(power):
                    terms = _times_moment(terms, int(name[1:]))
            for (l, k), f in terms.items():
                _add(total, l, k, top, f)
        out.append({key: f for key, f in total.items() if f})
        loss = velocity if kind != "train" and s == 0 else differentiate(loss, rule)
    return out


def _times_moment(
    terms: dict[tuple[int, int], Fraction], order: int
) -> dict[tuple[int, int], Fraction]:
    out: defaultdict[tuple[int, int], Fraction] = defaultdict(Fraction)
    for (l, k), f in terms.items():
        for (dl, dk), n in _marchenko_pastur(order, True).items():
            out[(l + dl, k + dk)] += f * n
    return dict(out)


SOLVED = {
    "large-data": _large_data,
    "small-data": _small_data,
    "mean-field": _mean_field,
    "narrow": _narrow,
}


def theory_taylor(name: str, kind: str, order: int) -> list[Planar]:
    r"""Time derivatives at 0 of a solved face's loss over d, as exact polynomials.

    Args:
        name: one of the four solved regimes.
        kind: `train` or `population`.
        order: highest derivative.

    Returns:
        One dictionary {(l, k, m): coefficient of
        :math:`\rho^k \kappa^{l-k} c^m`} a derivative, like `planar_loss`.

    Raises:
        ValueError: a regime with no closed system, or an unknown kind.

    Cost: under a second to order 5; small data takes the longest.

    Source: spec sections 2 and 3.3.

    Examples:
        >>> theory_taylor("mean-field", "population", 1)[1]
        {(1, 1, 0): Fraction(-4, 1), (2, 2, 0): Fraction(8, 1), ...}
    """
    if name not in SOLVED:
        raise ValueError(f"name: expected one of {tuple(SOLVED)}, got {name!r}")
    if kind not in ("train", "population"):
        raise ValueError(f"kind: expected 'train' or 'population', got {kind!r}")
    return SOLVED[name](kind, order)
