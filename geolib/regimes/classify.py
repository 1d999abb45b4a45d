"""Which regime is a setup in? Read off the first two derivatives of its loss."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from geolib.regimes.law import Law, marchenko_pastur
from geolib.regimes.matrix import DataMatrix
from geolib.regimes.prism import REGIMES, face, value
from geolib.regimes.setup import Setup
from geolib.regimes.words import canonical, loss_words

KINDS = ("train", "population")
ORDERS = (1, 2)
FLOOR = 0.03  # share of the summed monomials below which a derivative counts as zero
NEAR = 0.2  # distance from a fixed point of the leading flow that is called critical
Table = dict[tuple[int, int], float]


@dataclass(frozen=True)
class Regime:
    """Where a setup lies on the prism.

    Attributes:
        name: the cell: `interior`, one face, or two or three joined by "x".
        active: the faces whose leading terms alone give the derivatives within `tol`.
        errors: for every face the relative error of its leading terms.
        rate: the fast rate T; curves are functions of T t.
        noise_floor: relative seed-to-seed fluctuation to expect.
        critical: a leading term nearly cancels (kappa near 1 and h / d below `tol`, or
            rho near 1 and d / h below `tol`), so that relative errors mislead.
    """

    name: str
    active: tuple[str, ...]
    errors: dict[str, float]
    rate: float
    noise_floor: float
    critical: bool

    @property
    def best(self) -> str:
        """The face with the least error."""
        return min(self.errors, key=lambda name: self.errors[name])


def classify(
    d: int | Setup,
    h: int | None = None,
    n: int | None = None,
    sigma2: float | None = None,
    *,
    tol: float = 0.1,
) -> Regime:
    r"""The regime of a setup, from exact leading derivatives and no fitted constant.

    .. math:: \epsilon_F = \max_{s = 1, 2}
        \frac{|Y_s - Y_s^F|}{\max(|Y_s|,\, 0.03 \sum |\text{monomials of } Y_s|)} ,

    over the training and the population loss, with :math:`Y_s` the planar derivative
    and :math:`Y_s^F` its part on the face F. Faces with :math:`\epsilon_F` below `tol`
    are active: none is the interior, one a face, two an edge, three a vertex.

    Args:
        d, h, n, sigma2: the four sizes, or one `Setup`.
        tol: largest error of an active face.

    Raises:
        ValueError: sizes that make no `Setup`, or a `tol` outside (0, 1).

    Cost: under a millisecond after the first call.

    Source: spec section 7 (ours, beyond the paper).

    Examples:
        >>> classify(256, 16384, 256, 0.2 / 16384).name
        'mean-field'
        >>> classify(256, 256, 256, 1 / 256).name
        'interior'
    """
    setup = d if isinstance(d, Setup) else None
    if setup is None:
        if h is None or n is None or sigma2 is None:
            raise ValueError("d, h, n, sigma2: expected all four, or one Setup")
        setup = Setup(d, h, n, sigma2)  # type: ignore[arg-type]
    law = marchenko_pastur(1.0, setup.c)
    return _regime(setup, law, tol, setup.rate)


def classify_data(
    data: DataMatrix, h: int, sigma2: float, *, tol: float = 0.1
) -> Regime:
    r"""The regime of an autoencoder of width h on a given data matrix.

    As `classify`, with the moments of the data's own spectrum in place of
    Marchenko-Pastur's: Gaussian weights are free of every S. Large and small data then
    ask how far S is from the identity, or from d / n times a projector.

    Args:
        data: from `prepare`.
        h: width.
        sigma2: initial variance.
        tol: largest error of an active face.

    Source: ours, beyond the paper.
    """
    setup = Setup(data.d, h, data.n, sigma2)
    law = data.law
    spread = max(1.0, law.moment(2) / law.moment(1))
    rate = max(1.0, setup.kappa, setup.rho) * spread
    return _regime(setup, law, tol, rate)


def _regime(setup: Setup, law: Law, tol: float, rate: float) -> Regime:
    if not 0 < tol < 1:
        raise ValueError(f"tol: expected a number in (0, 1), got {tol!r}")
    errors = face_errors(setup, law)
    active = tuple(name for name in REGIMES if errors[name] < tol)
    critical = (setup.eta < tol and abs(1 - setup.kappa) < NEAR) or (
        1 / setup.eta < tol and abs(1 - setup.rho) < NEAR
    )
    name = " x ".join(active) if active else "interior"
    return Regime(name, active, errors, rate, setup.noise_floor, critical)


def face_errors(setup: Setup, law: Law) -> dict[str, float]:
    """The error of each face's leading terms; see `classify`."""
    rho, kappa, c = setup.ratios
    moments = tuple(law.moment(j) for j in range(1, max(ORDERS) + 2))
    errors = dict.fromkeys(REGIMES, 0.0)
    for kind in KINDS:
        for s in ORDERS:
            table = spectral_table(kind, s, moments)
            terms = {
                (l, k): f * rho**k * kappa ** (l - k) for (l, k), f in table.items()
            }
            full = sum(terms.values())
            size = max(abs(full), FLOOR * sum(map(abs, terms.values())))
            leading = {
                "mean-field": sum(v for (l, k), v in terms.items() if l == k),
                "narrow": sum(v for (l, k), v in terms.items() if k == 1),
                "free": sum(v for (l, k), v in terms.items() if l == s + 2),
            }
            for name in ("large-data", "small-data"):
                leading[name] = value(_face(name, kind, s), rho, kappa, c)
            for name, part in leading.items():
                errors[name] = max(errors[name], abs(full - part) / size)
    return errors


_face = lru_cache(maxsize=None)(face)


@lru_cache(maxsize=4096)
def spectral_table(kind: str, order: int, moments: tuple[float, ...]) -> Table:
    r"""The planar s-th derivative over d for S of any spectrum.

    Args:
        kind: `train` or `population`.
        order: the derivative s.
        moments: of the law of S, from the first to at least the (s + 1)-th.

    Returns:
        {(l, k): coefficient of :math:`\rho^k \kappa^{l-k}`}.

    Examples:
        >>> spectral_table("population", 1, (1.0, 2.0))[(2, 1)]
        8.0
    """
    total: defaultdict[tuple[int, int], float] = defaultdict(float)
    for word, factor in loss_words(kind, order)[order].items():
        l = word.count("A")
        for k, f in _trace(word, moments).items():
            total[(l, k)] += factor * f / 2
    return dict(total)


@lru_cache(maxsize=65536)
def _trace(word: str, moments: tuple[float, ...]) -> dict[int, float]:
    """The planar trace over d of a word, {power of rho: coefficient}."""
    if "A" not in word:
        return {0: moments[len(word) - 1] if word else 1.0}
    i = word.index("A")
    rest = word[i + 1 :] + word[:i]
    out: defaultdict[int, float] = defaultdict(float)
    for k, f in _trace(canonical(rest), moments).items():
        out[k + 1] += f
    for j, letter in enumerate(rest):
        if letter == "A":
            right = _trace(canonical(rest[j + 1 :]), moments)
            for k, f in _trace(canonical("A" + rest[:j]), moments).items():
                for m, g in right.items():
                    out[k + m] += f * g
    return dict(out)
