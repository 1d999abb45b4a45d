"""The published files of each data set, read from `catalogue.txt` beside this module."""

from __future__ import annotations

from importlib.resources import files

from .files import File

_TEXT = (files(__package__) / "catalogue.txt").read_text(encoding="utf-8")
_ROWS = [line.split() for line in _TEXT.splitlines() if not line.startswith("#")]


def _published(kind: str) -> dict[str, tuple[File, ...]]:
    """The files of one kind by data set, in the order of the table."""
    found: dict[str, tuple[File, ...]] = {}
    for row, name, path, checksum, url in _ROWS:
        if row == kind:
            file = File(path, checksum, None if url == "-" else url)
            found[name] = (*found.get(name, ()), file)
    return found


IDX = _published("idx")
CIFAR = {name: archive for name, (archive,) in _published("cifar").items()}
CIFAR10_NPZ = _published("npz")["cifar10"]
CLASSIFICATION = _published("classification")
# Of a regression table what is pinned is the sha256 of its four arrays.
REGRESSION = {name: packed.md5 for name, (packed,) in _published("regression").items()}

NOTES = {
    "bostonHousing": "One column is derived from race; the table is widely retired.",
    "pima-indians-diabetes": "Zeros in some columns stand for missing values.",
}
