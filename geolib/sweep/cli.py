"""The command `geolib sweep`, a function for typer."""

from pathlib import Path
from typing import Annotated

import typer

from geolib.files import expect

from .engines import Options, SweepError
from .registry import ELSEWHERE, find, names, publish
from .runner import Sweep, default_scheduler, run_sweep
from .store import Store

Name = Annotated[
    str | None,
    typer.Argument(
        help="A chapter's sweep, FILE.py:NAME or module:NAME; none lists them."
    ),
]
Folder = Annotated[
    Path | None, typer.Option(help="Results; default GEOLIB_SWEEPS or a cache folder.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="local (Dask workers here; the default where Dask is installed), inline "
        "(this process; the default elsewhere) or an address: tcp://host:8786."
    ),
]
Export = Annotated[
    Path | None, typer.Option(help="Write the table as .parquet or .csv; run nothing.")
]
Publish = Annotated[
    bool, typer.Option("--publish", help="Keep the stored runs beside the chapter.")
]


def sweep(
    name: Name = None,
    size: Annotated[str, typer.Option(help="small, book or full.")] = "small",
    store: Folder = None,
    scheduler: Scheduler = None,
    workers: Annotated[int | None, typer.Option(help="Local workers.")] = None,
    retries: Annotated[int, typer.Option(help="Further tries of a failed run.")] = 2,
    limit: Annotated[float | None, typer.Option(help="Seconds for one try.")] = None,
    gpu: Annotated[bool, typer.Option(help="Each run occupies one GPU.")] = False,
    retry_failed: Annotated[bool, typer.Option(help="Run failures again.")] = False,
    status: Annotated[bool, typer.Option(help="Only say what is stored.")] = False,
    export: Export = None,
    published: Publish = False,
) -> None:
    """Run many runs of one function, here or on a cluster; what is stored is skipped.

    Example: geolib sweep mode-connectivity --size full --scheduler tcp://head:8786
    """
    try:
        if name is None:
            return typer.echo("\n".join(map(_about, names())) or ELSEWHERE)
        chosen, kept = find(name), Store(store)
        if export is not None:
            return typer.echo(_export(chosen, kept, export))
        if status:
            return typer.echo(_status(chosen, size, kept))
        if published:
            return typer.echo("\n".join(map(str, publish(name, size, kept))))
        engine = scheduler or default_scheduler()
        if scheduler is None and engine == "inline":
            typer.echo("without Dask the runs go one by one in this process", err=True)
        options = Options(engine, workers, retries, limit, gpu)
        report = run_sweep(chosen, size, kept, options, retry_failed=retry_failed)
    except (SweepError, ValueError) as problem:
        typer.echo(f"geolib: {problem}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same again to resume", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{chosen.name} ({size}): {report.line}")
    typer.echo(f"store: {kept.folder / chosen.name}")
    for key, error in list(report.failed.items())[:10]:
        typer.echo(f"FAILED {key}: {error.splitlines()[0]}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _about(name: str) -> str:
    found = find(name)
    sizes = ", ".join(f"{s} {len(found.specs(s))}" for s in found.grids)
    return f"{name:20} {found.text} (runs: {sizes})"


def _status(chosen: Sweep, size: str, store: Store) -> str:
    held, specs = store.scan(chosen.name), chosen.specs(size)
    states = [held[key]["status"] for key in specs if key in held]
    done, failed = states.count("done"), states.count("failed")
    return f"{chosen.name} ({size}): {done} of {len(specs)} done, {failed} failed"


def _export(chosen: Sweep, store: Store, path: Path) -> str:
    fits = path.suffix in (".parquet", ".csv")
    expect(fits, "export", "a .parquet or .csv name", path.name)
    table = store.table(chosen.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = table.to_csv if path.suffix == ".csv" else table.to_parquet
    write(path, index=False)
    return f"{path}: {len(table)} rows"
