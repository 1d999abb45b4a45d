"""The command `geolib predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from geolib.regimes.data_matrix import prepare
from geolib.regimes.predict import predict


def read_matrix(path: Path) -> np.ndarray:
    """Samples as rows (n, d) from a table: the numeric CSV, or an archive's one matrix.

    A first line of the CSV that is not numeric is a heading. Of an archive the array
    `x` is taken, or the only matrix.

    Raises:
        ValueError: another kind of file, or one without a numeric table.
    """
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            tables = {k: archive[k] for k in archive.files if archive[k].ndim == 2}
        names = [k for k in ("x",) if k in tables] or list(tables)
        if len(names) != 1:
            raise ValueError(
                f"data: expected one matrix in {path}, or one called x; "
                f"got {sorted(tables) or 'none'}"
            )
        return tables[names[0]]
    if path.suffix != ".csv":
        raise ValueError(f"data: expected a .csv or .npz file, got {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = bool(lines) and not lines[0].replace(",", "").strip(" 0123456789.eE+-")
    try:
        return np.loadtxt(lines[not numbers :], delimiter=",", ndmin=2)
    except ValueError as problem:
        raise ValueError(f"data: {path} is no table of numbers: {problem}") from None


def command(
    data: Annotated[
        Path, typer.Option(help="Table of samples, one a row: .csv or .npz")
    ],
    hidden: Annotated[int, typer.Option(help="Width of the latent space.")],
    kappa: Annotated[float, typer.Option(help="Initial variance times columns.")] = 0.1,
    check: Annotated[int, typer.Option(help="Train this many networks beside it.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
) -> None:
    """Predict the training of a linear autoencoder on a table, in the table's units.

    Example: geolib predict --data table.csv --hidden 16
    """
    if not data.is_file():
        raise ValueError(f"data: no file {data}")
    matrix = prepare(read_matrix(data).T, drop_constant=True)
    answer = predict(matrix, h=hidden, sigma2=kappa / matrix.d)
    own = answer.in_data_units()
    typer.echo(
        f"{matrix.n} samples of {matrix.d} columns ({matrix.dropped} constant ones "
        f"dropped), effective rank {matrix.effective_rank:.1f}\n"
        f"place: {answer.regime.name}; curves of: {answer.theory}\n"
        f"{'time':>10}  {'training loss':>24}"
    )
    for i in range(0, len(own.times), 5):
        typer.echo(
            f"{own.times[i]:10.4g}  {own.train[i]:12.5g} +- {own.train_bar[i]:8.2g}"
        )
    if check:
        found = answer.check(check)
        typer.echo(
            f"{check} networks: their mean is off by {found.error.train:.2g} of the "
            f"first loss; {100 * found.inside:.0f} % are inside the bars"
        )
    if plot is not None:
        own.plot().figure.savefig(plot)
