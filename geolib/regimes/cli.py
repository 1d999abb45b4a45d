"""The command `geolib predict`."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import typer

from geolib.core.validation import expect
from geolib.regimes.data_matrix import prepare
from geolib.regimes.predict import predict


def read_matrix(path: Path) -> np.ndarray:
    """Samples as rows (n, d) from a table: the numeric CSV, or an archive's one matrix.

    The CSV may have commas, semicolons or tabs, comments after #, and a heading: a first
    line with a cell that is no number. Of an archive the array `x` is taken, or the
    only matrix of numbers.

    Raises:
        ValueError: another kind of file, or one without a numeric table of two rows.
    """
    kind = path.suffix.lower()
    expect(kind in (".csv", ".npz"), "data", "a .csv or .npz file", str(path))
    expect(path.is_file(), "data", "a file that is there", str(path))
    table = _from_archive(path) if kind == ".npz" else _from_text(path)
    expect(len(table) > 1, f"data: {path}", "two samples or more", len(table))
    return table


def _from_archive(path: Path) -> np.ndarray:
    try:
        with np.load(path) as arrays:
            found = dict(arrays)
    except (ValueError, TypeError, BadZipFile, EOFError) as problem:
        raise ValueError(f"data: {path} holds no plain arrays: {problem}") from None
    tables = {k: a for k, a in found.items() if a.ndim == 2 and a.dtype.kind in "biuf"}
    names = [k for k in ("x",) if k in tables] or list(tables)
    shapes = ", ".join(f"{k} {a.dtype}{a.shape}" for k, a in sorted(found.items()))
    wanted = "one matrix of numbers, or one called x"
    expect(len(names) == 1, f"data: {path}", wanted, shapes)
    return tables[names[0]].astype(float)


def _from_text(path: Path) -> np.ndarray:
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise ValueError(f"data: {path} is not in UTF-8: {problem}") from None
    lines = [(i, s) for i, s in enumerate(text, 1) if s.strip() and s[0] != "#"]
    mark = max(",;\t", key=lines[0][1].count) if lines else ","
    cells = [
        (i, row) for i, line in lines for row in csv.reader([line], delimiter=mark)
    ]
    if cells and not all(map(_is_number, cells[0][1])):
        del cells[0]  # a heading
    for line, row in cells:
        place, first = f"data: {path}, line {line}", cells[0]
        wanted = f"{len(first[1])} cells as in line {first[0]}"
        expect(len(row) == len(first[1]), place, wanted, len(row))
        for column, cell in enumerate(row, 1):
            finite = _is_number(cell) and math.isfinite(float(cell))
            expect(finite, f"{place}, column {column}", "a finite number", cell)
    return np.array([row for _, row in cells], dtype=float)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def command(
    data: Annotated[
        Path, typer.Option(help="Table of samples, one a row: .csv or .npz")
    ],
    hidden: Annotated[int, typer.Option(help="Width of the latent space.", min=1)],
    kappa: Annotated[float, typer.Option(help="Initial variance times columns.")] = 0.1,
    check: Annotated[int, typer.Option(help="Train so many networks too.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
) -> None:
    """Predict the training of a linear autoencoder on a table, in the table's units.

    Example: geolib predict --data table.csv --hidden 16
    """
    expect(plot is None or plot.parent.is_dir(), "plot", "a folder that exists", plot)
    matrix = prepare(read_matrix(data).T, drop_constant=True)
    expect(0 < kappa < 1e50, "kappa", "a positive number", kappa)
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
