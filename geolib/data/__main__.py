"""The command `geolib data`, also as `python -m geolib.data`."""

from typing import Annotated

import typer

from .api import available, fetch
from .api import names as known
from .dataset import DataError
from .files import folder

USAGE = "usage: geolib data list | geolib data fetch NAME [NAME ...]"


def command(
    action: Annotated[str, typer.Argument(help="list or fetch.")] = "",
    names: Annotated[list[str] | None, typer.Argument(help="What to fetch.")] = None,
) -> None:
    """Say which data sets are on this disk, or fetch some of them, checksummed.

    Example: geolib data fetch mnist
    """
    if action not in ("list", "fetch") or bool(names) != (action == "fetch"):
        typer.echo(USAGE, err=True)
        raise typer.Exit(2)
    if action == "list":
        typer.echo(f"data folder: {folder()}")
        for name in known():
            typer.echo(f"{'here' if available(name) else 'absent':7} {name}")
    for name in names or ():
        try:
            fetch(name)
        except (DataError, ValueError) as error:
            typer.echo(error, err=True)
            raise typer.Exit(1) from None
        typer.echo(f"{name}: ready")


if __name__ == "__main__":
    typer.run(command)
