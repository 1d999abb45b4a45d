"""Image data: MNIST's idx files and the two forms of CIFAR-10."""

import gzip
import tarfile
import zlib
from pathlib import Path

import numpy as np

from .dataset import Array, DataError, Dataset
from .files import CIFAR, CIFAR10_NPZ, IDX, ROOM, checksum_error, verified

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
                   "horse", "ship", "truck")  # fmt: skip
FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal",
                   "shirt", "sneaker", "bag", "ankle boot")  # fmt: skip
PARTIAL_TEST = (
    "The test part is the first 1000 of the 10000 official test images: an accuracy on "
    "it is not an official CIFAR-10 accuracy (its standard error is 0.95 points at 90 "
    "percent). Hold out training images for a larger evaluation set."
)


def read_idx(path: Path) -> Array:
    """The array in a gzipped idx file of unsigned bytes.

    The file holds two zero bytes, the type code 8, the number of dimensions, each
    dimension as a big-endian int32, then the bytes in C order.

    Raises:
        DataError: the header is not that of such a file, or bytes are missing.
    """
    try:
        with gzip.open(path) as stream:
            raw = stream.read(ROOM)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file ({error})") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an idx file of unsigned bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4) if len(raw) >= 4 + 4 * rank else [-1]
    if len(raw) != 4 + 4 * rank + int(np.prod(shape)):
        raise DataError(f"{path}: the header announces shape {tuple(shape)}, which is "
                        f"not what its {len(raw)} bytes hold")  # fmt: skip
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def unit(images: Array) -> Array:
    """Bytes 0..255 as float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def load_idx(name: str) -> Dataset:
    """MNIST or Fashion-MNIST, images as bytes `(n, 28, 28)`."""
    x, y, x_test, y_test = (read_idx(verified(name, file)) for file in IDX[name])
    classes = FASHION_CLASSES if name == "fashion_mnist" else tuple("0123456789")
    y, y_test = y.astype(np.int64), y_test.astype(np.int64)
    return Dataset(name, x, y, x_test, y_test, classes)


def read_batch(path: Path) -> tuple[Array, Array]:
    """Images and labels of one of the `.npz` batches of CIFAR-10.

    They are stored without loss as differences along the width, with green taken
    from red and blue; sums modulo 256 undo both.
    """
    with np.load(path) as stored:
        x = np.cumsum(stored["dx"], axis=3, dtype=np.uint8)
        y = stored["y"].astype(np.int64)
    x[:, 0] += x[:, 1]
    x[:, 2] += x[:, 1]
    return x, y


def read_records(raw: bytes) -> tuple[Array, Array]:
    """Images and labels of the official binary form of CIFAR-10.

    A record is a byte of label, then 3072 bytes of red, green and blue, each row by row.

    Raises:
        DataError: the length is not a whole number of records.
    """
    if not raw or len(raw) % 3073:
        raise DataError(f"CIFAR: {len(raw)} bytes are not records of 3073 bytes")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def read_archive(path: Path) -> tuple[Array, Array, Array, Array]:
    """Training and test arrays of a `cifar-10-binary.tar.gz`.

    Raises:
        DataError: the archive cannot be read or lacks a batch.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if archive.offset > ROOM:
                    raise DataError(f"{path}: unfolds to more than {ROOM} bytes")
                if stream is not None:
                    members[Path(member.name).name] = stream.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: not a readable archive ({error})") from error
    *train, test = *(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"
    if absent := [part for part in [*train, test] if part not in members]:
        raise DataError(f"{path}: the archive lacks {', '.join(absent)}")
    whole = b"".join(members[part] for part in train)
    return *read_records(whole), *read_records(members[test])


def load_cifar(train: int | None) -> Dataset:
    """CIFAR-10, images as bytes `(n, 3, 32, 32)`.

    It is read from the official archive where that is there, else from the `.npz`
    batches (only as many of them as `train` needs).
    """
    if cifar10_from_npz():
        return load_cifar10_npz(train)
    parts = read_archive(verified("cifar10", CIFAR["cifar10"]))
    return Dataset("cifar10", *parts, CIFAR10_CLASSES)


def cifar10_from_npz() -> bool:
    """Whether the official archive is absent and a `.npz` batch is there."""
    absent = checksum_error(CIFAR["cifar10"]) == "no such file"
    return absent and any(
        checksum_error(file) != "no such file" for file in CIFAR10_NPZ
    )


def load_cifar10_npz(train: int | None) -> Dataset:
    """CIFAR-10 from the `.npz` batches; see `PARTIAL_TEST`."""
    wanted = 50_000 if train is None else min(train, 50_000)
    batches = CIFAR10_NPZ[: max(1, -(-wanted // 10_000))]
    read = [
        read_batch(verified("cifar10", file)) for file in (*batches, CIFAR10_NPZ[-1])
    ]
    x, y = (np.concatenate(part) for part in zip(*read[:-1], strict=True))
    return Dataset("cifar10", x, y, *read[-1], CIFAR10_CLASSES, note=PARTIAL_TEST)
