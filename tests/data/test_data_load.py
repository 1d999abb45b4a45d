"""The readers on real files, on files the tests make, and on broken ones."""

import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from geolib import data
from geolib.data import DataError, api, images, tables
from geolib.data import files as published
from geolib.data.dataset import stratified
from geolib.data.files import File, folder

# Real files: `make test-data`. Elsewhere these are skipped, and say why.
needs = {
    name: lambda test, name=name: pytest.mark.data(
        pytest.mark.skipif(
            not data.available(name),
            reason=f"{name} must be fetched first: it is not in {folder()}",
        )(test)
    )
    for name in ("cifar10", "uci/adult", "uci/yacht", "uci/breast-cancer-wisconsin")
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOLIB_DATA", str(tmp_path))
    return tmp_path


def write(path: Path, raw: bytes) -> str:
    """Write a file; its md5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return hashlib.md5(raw).hexdigest()


def pin(monkeypatch, table: dict, name: str, *files: File) -> None:
    monkeypatch.setitem(table, name, files)


# ---- embedded ------------------------------------------------------------------


def test_digits_are_scaled_by_their_training_part():
    d = data.load("digits")
    assert d.x.shape == (1200, 64)
    assert d.x_test.shape == (597, 64)
    np.testing.assert_allclose(d.x.mean(axis=0), 0, atol=1e-14)
    assert d.x.std() == pytest.approx(1, abs=1e-12)
    assert abs(d.x_test.mean()) > 1e-6  # the test part's own mean was not used
    shares = np.bincount(d.y) / 1200 - np.bincount(d.y_test) / 597
    assert np.abs(shares).max() < 2e-3


def test_digits_are_scikit_learns_rows_each_once():
    from sklearn.datasets import load_digits

    d = data.load("digits")
    raw = load_digits().data
    ours = np.concatenate([d.x, d.x_test])
    pixel = raw.std(axis=0).argmax()
    step = np.diff(np.unique(np.round(ours[:, pixel], 9))).min()  # one grey level
    back = np.rint((ours - ours.min(axis=0)) / step)
    np.testing.assert_allclose((ours - ours.min(axis=0)) / step, back, atol=1e-6)
    expected = raw - raw.min(axis=0)
    np.testing.assert_array_equal(
        back[np.lexsort(back.T)], expected[np.lexsort(expected.T)]
    )


@pytest.mark.parametrize(("name", "rows"), [("diabetes", 442), ("breast_cancer", 569)])
def test_embedded_tables_are_standardised(name, rows):
    d = data.load(name)
    assert len(d.x) + len(d.x_test) == rows
    np.testing.assert_allclose(d.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(d.x.std(axis=0), 1, rtol=1e-12)
    assert len(np.unique(np.concatenate([d.x, d.x_test]), axis=0)) == rows


def test_split_is_a_seed_and_repeats():
    a, b, c = (data.load("digits", split=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.x, b.x)
    assert not np.array_equal(a.y, c.y)


def test_stratified_keeps_lonely_classes_in_training():
    y = np.array([0] * 10 + [1] * 5 + [2])
    train, test = stratified(y, 0.2, 0)
    assert np.bincount(y[test], minlength=3).tolist() == [2, 1, 0]
    assert sorted([*train, *test]) == list(range(16))
    assert set(y[train[:8]]) >= {0, 1}  # in random order, not class by class


def test_train_and_test_keep_the_first_rows():
    whole, part = data.load("digits"), data.load("digits", train=7, test=3)
    np.testing.assert_array_equal(part.x, whole.x[:7])
    np.testing.assert_array_equal(part.y_test, whole.y_test[:3])


# ---- real files ------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_data_sets(name):
    if not data.available(name):
        pytest.skip(f"{name} must be fetched first: it is not in {folder()}")
    d = data.load(name)
    assert d.x.shape == (60000, 28, 28)
    assert d.x_test.shape == (10000, 28, 28)
    assert d.x.dtype == np.float32
    assert (d.x.min(), d.x.max()) == (0, 1)
    if name == "mnist":  # the published first labels and mean pixel
        assert d.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert d.x.mean() == pytest.approx(0.1306604, abs=2e-6)


@needs["cifar10"]
def test_cifar10_from_npz_has_the_published_pixels():
    d = data.load("cifar10", train=12_000)
    assert d.x.shape == (12_000, 3, 32, 32)
    assert d.classes[d.y[0]] == "frog"
    if "official" in d.note:
        test = np.rint(d.x_test * 255).astype(np.uint8)
        assert hashlib.sha256(test.tobytes()).hexdigest() == (
            "f167149948fc8fe0b9a76ba86421e987817f98b63761ba9415c5d42664d51f03"
        )
    assert d.x.mean(axis=(0, 2, 3)) == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)


@needs["uci/yacht"]
def test_regression_table_uses_the_published_splits():
    with np.load(folder() / "UCI/regression/yacht.npz") as raw:
        d = data.load("uci/yacht", split=3)
        np.testing.assert_array_equal(d.x_test, raw["x"][raw["test_idx"][3]])
        np.testing.assert_array_equal(d.y, raw["y"][raw["train_idx"][3]])
    with pytest.raises(ValueError, match="splits 0 to 19; got 20"):
        data.load("uci/yacht", split=20)


@needs["uci/adult"]
def test_adult_uses_its_test_file_and_marks_what_is_missing():
    d = data.load("uci/adult")
    assert (d.x.shape, d.x_test.shape) == ((32561, 14), (16281, 14))
    assert d.classes == ("<=50K", ">50K")  # the test file's trailing dots are gone
    lines = (folder() / "UCI/classification/adult-train.csv").read_text()
    assert int(np.isnan(d.x).sum()) == lines.count("?")
    assert d.categories[9] == ("Female", "Male")
    assert d.x[0, 0] == 39


@needs["uci/breast-cancer-wisconsin"]
def test_missing_entries_are_nan():
    assert data.load("uci/breast-cancer-wisconsin").missing == 16


# ---- small files made here ---------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.tobytes())


def test_idx_reader_inverts_the_format(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    write(tmp_path / "a.gz", idx_bytes(array))
    np.testing.assert_array_equal(images.read_idx(tmp_path / "a.gz"), array)


# Named: gzip writes the time into its header, and workers must collect the same names.
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"not gzip", id="not gzip"),
        pytest.param(
            gzip.compress(b"\0\0\x09\x01\0\0\0\x01a"), id="another element type"
        ),
        pytest.param(
            gzip.compress(b"\0\0\x08\x01\0\0\0\x05a"), id="fewer bytes than said"
        ),
        pytest.param(gzip.compress(b"\0\0\x08\x03\0"), id="header cut short"),
        pytest.param(idx_bytes(np.zeros(500, np.uint8))[:-12], id="stream cut short"),
    ],
)
def test_idx_reader_refuses_what_is_not_idx(tmp_path, raw):
    write(tmp_path / "a.gz", raw)
    with pytest.raises(DataError):
        images.read_idx(tmp_path / "a.gz")


def cifar_archive(members: dict[str, np.ndarray]) -> bytes:
    """A gzipped tar of binary batches from label rows and pixels."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, rows in members.items():
            raw = rows.tobytes()
            entry = tarfile.TarInfo(f"cifar/{name}")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return sink.getvalue()


def records(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
    rows[:, 0] = rng.integers(0, 10, n)
    return rows


def test_cifar10_prefers_the_official_archive(home, monkeypatch):
    batches = {f"data_batch_{i}.bin": records(2, i) for i in range(1, 6)}
    test = records(2, 9)
    raw = cifar_archive(batches | {"test_batch.bin": test})
    md5 = write(home / "CIFAR10/small.tar.gz", raw)
    monkeypatch.setitem(published.CIFAR, "cifar10", File("CIFAR10/small.tar.gz", md5))
    write(home / "CIFAR10/train_batch_1.npz", b"must not be read")
    d = data.load("cifar10")
    assert d.note == ""
    rows = np.concatenate(list(batches.values()))
    np.testing.assert_array_equal(d.y, rows[:, 0])
    expected = rows[4, 1:].reshape(3, 32, 32) / np.float32(255)
    np.testing.assert_array_equal(d.x[4], expected)
    np.testing.assert_array_equal(d.y_test, test[:, 0])


def test_cifar_archive_lacking_a_batch_or_cut_short(tmp_path):
    raw = cifar_archive({f"data_batch_{i}.bin": records(2, 0) for i in range(1, 6)})
    write(tmp_path / "a.tar.gz", raw)
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        images.read_archive(tmp_path / "a.tar.gz")
    write(tmp_path / "a.tar.gz", raw[: len(raw) // 2])
    with pytest.raises(DataError, match="not a readable archive"):
        images.read_archive(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match="records of 3073"):
        images.read_records(b"x" * 100)


def test_npz_batch_undoes_its_differences(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    coded = x.copy()
    coded[:, 0] -= x[:, 1]
    coded[:, 2] -= x[:, 1]
    coded[..., 1:] -= coded[..., :-1].copy()
    np.savez(tmp_path / "b.npz", dx=coded, y=np.arange(3, dtype=np.uint8))
    back, y = images.read_batch(tmp_path / "b.npz")
    np.testing.assert_array_equal(back, x)
    assert y.tolist() == [0, 1, 2]


def test_cifar10_from_batches_reads_only_what_is_needed(home, monkeypatch):
    files = []
    for i in range(6):
        path = home / f"CIFAR10/{i}.npz"
        path.parent.mkdir(exist_ok=True)
        dx = np.zeros((4, 3, 32, 32), np.uint8)
        dx[:, 1, :, 0] = 10 * i
        np.savez(path, dx=dx, y=np.arange(4, dtype=np.uint8))
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        files.append(File(f"CIFAR10/{i}.npz", md5))
    for module in (images, api):
        monkeypatch.setattr(module, "CIFAR10_NPZ", tuple(files))
    assert data.available("cifar10")
    d = data.load("cifar10")
    assert d.x.shape == (20, 3, 32, 32)
    assert np.rint(255 * d.x[::4, 1, 5, 9]).tolist() == [0, 10, 20, 30, 40]
    assert np.rint(255 * d.x_test[0, 1, 5, 9]) == 50
    assert "not an official" in d.note
    (home / "CIFAR10/4.npz").unlink()
    assert not data.available("cifar10")
    assert len(data.load("cifar10", train=3).x) == 3  # one batch is enough for three
    with pytest.raises(DataError, match=r"4\.npz"):
        data.load("cifar10")


def test_classification_table_codes_and_missing(home, monkeypatch):
    text = "1,red,yes\n2,?,no\n?,blue,yes\n10,red,no\n" * 5
    md5 = write(home / "UCI/classification/t.csv", text.encode())
    pin(
        monkeypatch,
        published.CLASSIFICATION,
        "iris",
        File("UCI/classification/t.csv", md5),
    )
    d = data.load("uci/iris")
    assert d.classes == ("no", "yes")
    assert d.categories == {1: ("blue", "red")}
    assert d.missing == 10
    rows = np.concatenate([d.x, d.x_test])
    assert set(rows[:, 0][~np.isnan(rows[:, 0])]) == {1, 2, 10}
    ragged = write(home / "UCI/classification/t.csv", b"1,2\n1\n")
    pin(
        monkeypatch,
        published.CLASSIFICATION,
        "iris",
        File("UCI/classification/t.csv", ragged),
    )
    with pytest.raises(DataError, match="rows of different length"):
        data.load("uci/iris")


def test_class_names_sort_as_numbers():
    assert sorted(["10", "9", "b", "a", "2"], key=tables.natural_sort_key) == [
        "2", "9", "10", "a", "b",
    ]  # fmt: skip


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in data.names() if n not in api.EMBEDDED])
def test_missing_file_is_one_clear_error(home, name):
    assert not data.available(name)
    with pytest.raises(DataError) as caught:
        data.load(name)
    message = str(caught.value)
    assert f"geolib data fetch {name}" in message
    assert str(home) in message
    assert "expected: md5 " in message or "expected: sha256 " in message
    assert "found:    no such file" in message


def test_corrupt_file_is_one_clear_error(home):
    file = published.IDX["mnist"][0]
    md5 = write(home / file.path, b"damaged")
    with pytest.raises(DataError) as caught:
        data.load("mnist")
    message = str(caught.value)
    assert file.md5 in message
    assert f"found:    md5 {md5}, 7 bytes" in message
    assert not data.available("mnist")


@pytest.mark.parametrize("kind", ["garbage", "other numbers", "lacks an array"])
def test_corrupt_table_is_one_clear_error(home, kind):
    path = home / "UCI/regression/yacht.npz"
    path.parent.mkdir(parents=True)
    arrays = {part: np.zeros((2, 2)) for part in tables.PARTS}
    if kind == "garbage":
        path.write_bytes(b"PK not a zip")
    elif kind == "other numbers":
        np.savez(path, **arrays)
    else:
        np.savez(path, x=arrays["x"])
    assert not data.available("uci/yacht")
    with pytest.raises(DataError, match="fetch uci/yacht"):
        data.load("uci/yacht")


def packed_yacht(home, monkeypatch) -> Path:
    """A regression table of noise, packed and pinned as a right one."""
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(50, 3)),
        "y": rng.normal(size=50),
        "train_idx": np.array([np.arange(40)] * 2),
        "test_idx": np.array([np.arange(40, 50)] * 2),
    }
    path = home / "UCI/regression/yacht.npz"
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, **arrays)
    monkeypatch.setitem(published.REGRESSION, "yacht", tables.digest(arrays))
    return path


def test_a_flipped_byte_anywhere_in_a_table_is_one_clear_error(home, monkeypatch):
    path = packed_yacht(home, monkeypatch)
    whole = path.read_bytes()
    assert data.available("uci/yacht")
    for place in range(0, len(whole), 31):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        )
        tables.read_packed.cache_clear()
        if not data.available("uci/yacht"):  # a date in the archive may be any date
            with pytest.raises(DataError, match="fetch uci/yacht"):
                data.load("uci/yacht")


def test_what_unfolds_without_end_is_not_unfolded(home, monkeypatch):
    path = packed_yacht(home, monkeypatch)
    monkeypatch.setattr(tables, "ROOM", 1000)
    with pytest.raises(DataError, match="unfolds to more than 1000 bytes"):
        data.load("uci/yacht")
    monkeypatch.setattr(images, "ROOM", 1000)
    write(path, idx_bytes(np.zeros(5000, np.uint8)))
    with pytest.raises(DataError, match="its 1000 bytes hold"):
        images.read_idx(path)
    write(path, cifar_archive({"test_batch.bin": records(2, 0)}))
    with pytest.raises(DataError, match="unfolds to more than 1000 bytes"):
        images.read_archive(path)


def test_small_and_book_are_the_same_on_every_disk(root):
    import yaml

    fetched = set(data.names()) - set(api.EMBEDDED)
    profiles = yaml.safe_load((root / "chapters/profiles.yml").read_text())
    notebooks = sorted(root.glob("chapters/*/[0-9][0-9]-*.md"))
    assert len(notebooks) > 20
    for source in notebooks:
        name = f"{source.parent.name}/{source.stem}"
        small = re.search(r"parameters\]\n(.*?)```", source.read_text(), re.S)
        for text in (small[1], str(profiles.get(name, {}).get("book", {}))):
            assert not fetched & set(re.findall(r"[\w/-]+", text)), name


def test_a_changed_file_is_checked_again(home, monkeypatch):
    array = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    labels = np.arange(3, dtype=np.uint8)
    files = []
    for part, values in (("x", array), ("y", labels), ("xt", array), ("yt", labels)):
        files.append(File(f"{part}.gz", write(home / f"{part}.gz", idx_bytes(values))))
    pin(monkeypatch, published.IDX, "mnist", *files)
    assert data.load("mnist").y.tolist() == [0, 1, 2]
    write(home / "y.gz", idx_bytes(np.arange(4, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"y\.gz"):
        data.load("mnist")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="did you mean mnist"):
        data.load("minst")
    with pytest.raises(ValueError, match="train: .* train >= 1, got 0"):
        data.load("digits", train=0)
    with pytest.raises(
        ValueError, match="split: expected a whole number with 0 <= split"
    ):
        data.load("digits", split=-1)


def test_folder_without_the_variable_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("GEOLIB_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "geolib"
