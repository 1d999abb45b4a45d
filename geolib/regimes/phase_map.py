"""Measured errors of every theory, cell by cell: the phase map and its tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.classify import Regime, classify
from geolib.regimes.curves import Curves
from geolib.regimes.large_data import large_data_next
from geolib.regimes.mean_field import mean_field_next
from geolib.regimes.predict import leading_curves
from geolib.regimes.prism import REGIMES
from geolib.regimes.setup import Setup, check_times
from geolib.regimes.simulate import Trajectory, simulate

NEXT = ("large-data + next", "mean-field + next")
SOLVED = REGIMES[:4]


def next_order_curves(name: str, times: ArrayLike, setup: Setup) -> Curves:
    """Large-data or mean-field losses over d with their first correction.

    Raises:
        ValueError: a face whose correction is not known.

    Examples:
        >>> two = next_order_curves("mean-field", [0.0], Setup(64, 128, 64, 1 / 128))
        >>> round(float(two.population[0]), 6)        # rho^2 / 2 times d / h
        0.25
    """
    lead = leading_curves(name, times, setup)
    rho, kappa, c = setup.ratios
    if name == "large-data":
        add = large_data_next(times, rho, kappa)
        return Curves(lead.train + c * add.train, lead.population + c * add.population)
    if name == "mean-field":
        step = mean_field_next(times, rho, c)
        return Curves(*(a + b / setup.eta for a, b in zip(lead, step, strict=True)))
    raise ValueError(f"name: next order is known for two faces, not for {name!r}")


def excess_error(run: Trajectory, curves: Curves) -> tuple[float, float]:
    r"""Largest distance of mean simulated and predicted change of a loss, relative.

    .. math:: \max_t |\Delta L_{sim} - \Delta L_{th}| / \max_t |\Delta L_{sim}| ,
        \qquad \Delta L(t) = L(t) - L(0) ,

    for the training and for the population loss. The change is compared, as the loss
    at time 0 fluctuates from seed to seed by more than the theories err.
    """
    out = []
    for simulated, theory in zip((run.train, run.population), curves, strict=True):
        mean = simulated.mean(0) / run.d
        moved = mean - mean[0]
        scale = np.abs(moved).max()
        out.append(float(np.abs(moved - (theory - theory[0])).max() / scale))
    return out[0], out[1]


def headline_error(
    run: Trajectory, curves: Curves, name: str, setup: Setup
) -> tuple[float, float]:
    r"""Largest distance of simulated and predicted loss over its natural scale.

    The scale is the initial loss, except for the training loss in the narrow regime
    (its excess over tr S / 2, per sample S) and both narrow and small-data population
    losses (their change). Averaged over seeds one by one.
    """
    d, errors = run.d, []
    for row in range(run.train.shape[0]):
        train, population = run.train[row] / d, run.population[row] / d
        if name == "narrow":
            train = train - run.trace[row] / (2 * d) + 0.5
            pairs = ((train, curves.train, 0.5), (population, curves.population, 0.5))
            scaled = [
                np.abs(sim - th).max() / np.abs(th - base).max()
                for sim, th, base in pairs
            ]
        else:
            first = np.abs(train - curves.train).max() / curves.train[0]
            if name == "small-data":
                moved = curves.population - curves.population[0]
                second = np.abs(population - population[0] - moved).max()
                scaled = [first, second / np.abs(moved).max()]
            else:
                second = np.abs(population - curves.population).max()
                scaled = [first, second / curves.population[0]]
        errors.append(scaled)
    mean = np.mean(errors, axis=0)
    return float(mean[0]), float(mean[1])


@dataclass(frozen=True)
class Cell:
    """One cell of the map: what was measured and what `classify` says."""

    setup: Setup
    errors: dict[str, float]
    regime: Regime

    def best(self, names: Iterable[str] = SOLVED) -> str:
        """The theory with the least measured error among `names`."""
        return min(names, key=lambda name: self.errors[name])


def measure_cell(
    setup: Setup,
    *,
    seeds: int = 2,
    times: ArrayLike | None = None,
    theories: Iterable[str] = SOLVED,
    depth: int = 6,
    rtol: float = 1e-5,
) -> Cell:
    """Simulate one setup and score theories by the worse of their two excess errors.

    Args:
        setup: the sizes.
        seeds: how many draws are averaged.
        times: (T,) increasing; default 25 times with T t in [0, 3].
        theories: names of `THEORIES` or of `NEXT`.
        depth: of the Fock space.
        rtol: tolerance of the simulation.

    Cost: that of `simulate`.

    Source: spec section 5.6.
    """
    t = setup.times(25) if times is None else check_times(times)
    run = simulate(setup, t, seeds=seeds, rtol=rtol, atol=rtol * 1e-2)
    errors = {}
    for name in theories:
        if name in NEXT:
            curves = next_order_curves(name.removesuffix(" + next"), t, setup)
        else:
            curves = leading_curves(name, t, setup, depth=depth)
        errors[name] = max(excess_error(run, curves))
    return Cell(setup, errors, classify(setup))


def phase_map(
    d: int,
    log_h: Iterable[int],
    log_n: Iterable[int],
    *,
    scale: float = 0.3,
    seeds: int = 2,
    theories: Iterable[str] = SOLVED,
    depth: int = 6,
) -> list[list[Cell]]:
    r"""Cells with h / d = 2^i (rows) and n / d = 2^j (columns).

    The initial variance is :math:`\sigma^2 = scale / (h + d)`, so that rho + kappa
    stays the same across the map.

    Args:
        d: input dimension.
        log_h, log_n: the exponents i and j.
        scale: rho + kappa.
        seeds, theories, depth: as in `measure_cell`.

    Cost: about 0.2 s a cell at d = 64.

    Source: spec section 5.6.
    """
    rows = []
    columns, names = list(log_n), tuple(theories)
    for i in log_h:
        h = max(1, round(d * 2.0**i))
        row = []
        for j in columns:
            setup = Setup(d, h, max(1, round(d * 2.0**j)), scale / (h + d))
            cell = measure_cell(setup, seeds=seeds, theories=names, depth=depth)
            row.append(cell)
        rows.append(row)
    return rows
