"""`python -m geolib.data fetch mnist`, `python -m geolib.data list`."""

from __future__ import annotations

import sys

from geolib.data import DataError, available, fetch, folder, names

USAGE = "usage: python -m geolib.data list | fetch NAME [NAME ...]"


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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
