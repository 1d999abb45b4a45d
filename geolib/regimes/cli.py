"""The command `geolib predict`."""

from __future__ import annotations

import contextlib
import csv
import math
import zlib
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import typer

from geolib.core.validation import expect
from geolib.files import ArgumentError
from geolib.regimes.data_matrix import prepare
from geolib.regimes.predict import predict

UNREADABLE = ValueError, TypeError, OSError, EOFError, BadZipFile, zlib.error
MARKS = "\t", ";", ","  # between cells, whichever is in half of the lines
PICTURES = ".png", ".pdf", ".svg"


def read_matrix(path: Path) -> np.ndarray:
    """Samples as rows (n, d) from a table: the numeric CSV, or an archive's one matrix.

    The CSV may have tabs, semicolons (then 0,5 is a half), commas or spaces between its
    cells, comments after #, and a heading: a first line without a number. Of an archive
    the array `x` is taken, or the only matrix of numbers.

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
    found: dict[str, np.ndarray] | None = None
    with contextlib.suppress(*UNREADABLE), path.open("rb") as file:
        with np.load(file) as arrays:
            found = dict(arrays)
    if found is None:
        raise ArgumentError(f"data: {path}: expected an archive of plain arrays")
    tables = {k: a for k, a in found.items() if a.ndim == 2 and a.dtype.kind in "biuf"}
    names = [k for k in ("x",) if k in tables] or list(tables)
    shapes = ", ".join(f"{k} {a.dtype}{a.shape}" for k, a in sorted(found.items()))
    wanted = "one matrix of numbers, or one called x"
    expect(len(names) == 1, f"data: {path}", wanted, shapes)
    return tables[names[0]].astype(float)


def _from_text(path: Path) -> np.ndarray:
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines()
        lines = ["" if s.startswith("#") else s.strip(" ") for s in text]
        full = [s for s in lines if s]
        often = {m: 2 * sum(m in s for s in full) >= max(1, len(full)) for m in MARKS}
        mark = next((m for m in MARKS if often[m]), " ")
        rows = csv.reader(lines, delimiter=mark, skipinitialspace=True)
        cells = [(rows.line_num, row) for row in rows if any(row)]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ArgumentError(f"data: {path}: expected UTF-8 text; {problem}") from None
    found = [[_number(cell, mark) for cell in row] for _, row in cells]
    if found and all(x is None for x in found[0]):
        names = cells.pop(0)[1]
        wanted = "a name over every column (row numbers are not to be learned)"
        expect(all(names), f"data: {path}, heading", wanted, names)
        del found[0]
    for (line, row), numbers in zip(cells, found, strict=True):
        place, first = f"data: {path}, line {line}", cells[0]
        wanted = f"{len(first[1])} cells as in line {first[0]}"
        expect(len(row) == len(first[1]), place, wanted, len(row))
        for column, (cell, x) in enumerate(zip(row, numbers, strict=True), 1):
            finite = x is not None and math.isfinite(x)
            expect(finite, f"{place}, column {column}", "a finite number", cell)
    return np.array(found, dtype=float)


def _number(cell: str, mark: str) -> float | None:
    try:
        return float(cell.replace(",", ".") if mark == ";" else cell)
    except ValueError:
        return None


def command(
    data: Annotated[Path, typer.Option(help="Samples, one a row: .csv or .npz")],
    hidden: Annotated[int, typer.Option(help="Width of the latent space.", min=1)],
    kappa: Annotated[float, typer.Option(help="Initial variance times columns.")] = 0.1,
    check: Annotated[int, typer.Option(help="Train so many networks too.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
) -> None:
    """Predict the training of a linear autoencoder on a table, in the table's units.

    Example: geolib predict --data table.csv --hidden 16
    """
    try:
        pictures = plot is None or (plot.suffix in PICTURES and plot.parent.is_dir())
        wanted = f"a name ending in one of {PICTURES}, in a folder that exists"
        expect(pictures, "plot", wanted, str(plot))
        expect(0 < kappa < 1e50, "kappa", "a positive number below 1e50", kappa)
        table = read_matrix(data)
        try:
            matrix = prepare(table.T, drop_constant=True)
        except ValueError as problem:
            raise ArgumentError(f"data: {data}: {problem}") from None
        answer = predict(matrix, h=hidden, sigma2=kappa / matrix.d)
        found = answer.check(check) if check else None
    except ValueError as problem:
        typer.echo(f"geolib: {problem}", err=True)
        raise typer.Exit(2) from None
    own = answer.in_data_units()
    typer.echo(
        f"{matrix.n} samples of {matrix.d} columns ({matrix.dropped} constant ones "
        f"dropped), effective rank {matrix.effective_rank:.1f}\n"
        f"place: {answer.regime.name}; curves of: {answer.theory}\n"
        f"{'time':>10}  {'training loss':>24}"
    )
    for i in range(0, len(own.times), 5):
        loss, bar = own.train[i], own.train_bar[i]
        typer.echo(f"{own.times[i]:10.4g}  {loss:12.5g} +- {bar:8.2g}")
    if found is not None:
        typer.echo(
            f"{check} networks: their mean is off by {found.error.train:.2g} of the "
            f"first loss; {100 * found.inside:.0f} % are inside the bars"
        )
    if plot is not None:
        own.plot().figure.savefig(plot)
