"""`geolib data list`, `geolib data fetch mnist`; also as `python -m geolib.data`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from geolib.data.api import available, fetch, names
from geolib.data.dataset import DataError
from geolib.data.files import folder

USAGE = "usage: geolib data list | geolib data fetch NAME [NAME ...]"


def main(arguments: list[str]) -> int:
    """Run one command; 0 when it did what it was asked."""
    match arguments:
        case ["list"]:
            print(f"data folder: {folder()}")
            for name in names():
                print(f"{'here' if available(name) else 'absent':7} {name}")
        case ["fetch", first, *rest]:
            for name in (first, *rest):
                try:
                    fetch(name)
                except (DataError, ValueError) as error:
                    print(error, file=sys.stderr)
                    return 1
                print(f"{name}: ready")
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def command(
    action: Annotated[str, typer.Argument(help="list or fetch.")] = "",
    names: Annotated[list[str] | None, typer.Argument(help="What to fetch.")] = None,
) -> None:
    """Say which data sets are on this disk, or fetch some of them, checksummed.

    Example: geolib data fetch mnist
    """
    raise typer.Exit(main([action, *(names or [])]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
