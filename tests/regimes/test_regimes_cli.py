import re
import warnings

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from geolib.regimes import predict, prepare
from geolib.regimes.cli import command, read_matrix

app = typer.Typer()
app.command()(command)


def table(path, kind):
    x = np.random.default_rng(0).standard_normal((40, 6)) * [1, 2, 3, 1, 1, 0] + 5
    if kind == "npz":
        np.savez(path / "t.npz", x=x, y=np.arange(40))
        return path / "t.npz", x
    np.savetxt(path / "t.csv", x, delimiter=",", header="a,b,c,d,e,f", comments="")
    return path / "t.csv", x


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_predict_from_a_file_in_its_own_units(tmp_path, kind):
    path, x = table(tmp_path, kind)
    assert read_matrix(path) == pytest.approx(x)
    picture = tmp_path / "p.png"
    asked = ["--data", str(path), "--hidden", "3", "--check", "2", "--plot", picture]
    found = CliRunner().invoke(app, list(map(str, asked)))
    assert found.exit_code == 0, found.output
    own = predict(prepare(x.T, drop_constant=True), h=3, sigma2=0.02).in_data_units()
    last = found.output.splitlines()[-2].split()
    assert float(last[0]) == pytest.approx(own.times[-1], rel=1e-3)
    assert float(last[1]) == pytest.approx(own.train[-1], rel=1e-3)
    assert "1 constant ones dropped" in found.output
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff1,2\n3,5\n",  # a byte order mark, and no heading
        '"a","b"\r\n1,2\r\n3,5\r\n\r\n',
        '"1","2"\n"3","5"\n',
        "# mine\n1;2\n3;5\n# end\n",
        "a;b\n1,0;2,0\n3,0;5,0\n",  # decimal commas
        "e\tE\n1\t2\n3\t5",
        "1  2\n 3 5 \n",
        "1, 2\n3, 5",
        '"a\nlong one",b\n1,2\n3,5',
        "1,2\r3,5\r",
    ],
)
def test_a_table_may_be_written_in_many_ways(tmp_path, text):
    (tmp_path / "t.CSV").write_text(text, encoding="utf-8", newline="")
    assert read_matrix(tmp_path / "t.CSV").tolist() == [[1, 2], [3, 5]]


def refused(path, *options):
    """What the command says of a file or an option that it refuses, in one line."""
    asked = ["--data", str(path), "--hidden", "2", *options]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 2, found.output
    said = found.output.splitlines()
    assert len(said) == 1, found.output
    assert said[0].startswith("geolib: ")
    return said[0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.csv", None, "a file that is there"),
        ("t.txt", "1,2", "expected a .csv or .npz"),
        ("t.csv.gz", "1,2", "expected a .csv or .npz"),
        ("t.csv", "a,b\n1,x\n2,2\n", "line 2, column 2: expected a finite number"),
        ("t.csv", "a,b\nm,s\n1,2\n2,2\n", "line 2, column 1: .* got 'm'"),
        ("t.csv", "day,b\n2026-01-02,1\n", "column 1: .* got '2026-01-02'"),
        ("t.csv", "NA,1\n1,2\n2,5\n", "line 1, column 1: .* got 'NA'"),
        ("t.csv", ",a,b\n0,1,2\n1,3,3\n", "heading: expected a name over every"),
        ("t.csv", "1,2\n3\n", "line 2: expected 2 cells as in line 1, got 1"),
        ("t.csv", "1,2\n3,4,5\n", "line 2: expected 2 cells as in line 1, got 3"),
        ("t.csv", "1,nan\n2,3\n4,4\n", "line 1, column 2: .* got 'nan'"),
        ("t.csv", "1,2\n2,1e400\n", "line 2, column 2: .* got '1e400'"),
        ("t.csv", "1,2\n2,\n", "line 2, column 2: .* got ''"),
        ("t.csv", '"1,000.5",2\n2,4\n', "line 1, column 1: .* got '1,000.5'"),
        ("t.csv", "a,b\n1,2\n", "expected two samples or more, got 1"),
        ("t.csv", "", "expected two samples or more, got 0"),
        ("t.csv", "1,2\n1,2\n", "2 of 2 coordinates are constant"),
        ("t.csv", "1e200,2\n-1e200,3\n", "t.csv: X: expected a largest entry"),
        ("t.csv", "\xe9,b\n1,2\n", "t.csv: expected UTF-8 text"),
        ("t.npz", "hello", "expected an archive of plain arrays$"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert re.search(said, refused(path))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "one matrix"),
        ({"a": np.eye(2), "b": np.eye(2)}, "one matrix"),
        ({"x": np.array([["a", "b"], ["c", "d"]])}, "one matrix"),
        ({"x": np.eye(2) + 1j}, "one matrix"),
        ({"x": np.array([[1, None], [2, 3]], dtype=object)}, "archive of plain arrays"),
        ({"x": np.zeros((2, 2, 2))}, "one matrix"),
        ({"x": np.arange(3.0)}, "one matrix"),
        ({"x": np.zeros((0, 2))}, "two samples or more, got 0"),
        ({"x": np.zeros((3, 0))}, "shape"),
        ({"x": np.array([[1, 2], [np.inf, 3]])}, "X: expected finite numbers"),
        ({"x": np.array([[1, 2], [np.inf, 3]], np.float16)}, "expected finite numbers"),
    ],
)
def test_an_archive_without_one_matrix_is_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "t.npz", **arrays)
    assert re.search(f"^geolib: data: .*{said}", refused(tmp_path / "t.npz"))


def test_a_broken_archive_is_refused(tmp_path):
    path, _ = table(tmp_path, "npz")
    path.write_bytes(path.read_bytes()[:300])
    assert "expected an archive of plain arrays" in refused(path)
    np.save(tmp_path / "one.npy", np.eye(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "expected an archive of plain arrays" in refused(tmp_path / "one.npz")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kappa", "0"], "kappa: expected a positive number"),
        (["--kappa", "nan"], "kappa: expected a positive number"),
        (["--kappa", "inf"], "kappa: expected a positive number"),
        (["--plot", "no_such_folder/p.png"], "plot: expected a name ending in"),
        (["--plot", "."], "plot: expected a name ending in"),
        (["--plot", "p.xyz"], "plot: expected a name ending in"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, said):
    assert said in refused(table(tmp_path, "csv")[0], *options)


@pytest.mark.parametrize(
    "option", [["--hidden", "0"], ["--check=-1"], ["--hidden", "x"]]
)
def test_options_out_of_range_are_refused(tmp_path, option):
    path, _ = table(tmp_path, "csv")
    found = CliRunner().invoke(app, ["--data", str(path), "--hidden", "2", *option])
    assert found.exit_code == 2
    assert "Invalid value" in found.output


@pytest.mark.parametrize(
    "x",
    [
        np.arange(8).reshape(4, 2) ** 2,
        (np.arange(8).reshape(4, 2) ** 2).astype(np.float16),
        np.arange(8).reshape(4, 2) % 3 > 0,
        np.arange(4.0)[:, None],  # one column
        np.array([[0, 7, 1], [2, 7, 5], [1, 7, 1.0]]),  # a constant one
        np.array([[1, 2, 3], [2, 5, 1.0]]),  # two samples
    ],
)
def test_small_and_odd_tables_are_predicted(tmp_path, x):
    np.savez_compressed(tmp_path / "t.npz", x=x)
    asked = ["--data", str(tmp_path / "t.npz"), "--hidden", "2", "--kappa", "1e-30"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert found.output.startswith(f"{len(x)} samples of ")
    assert "nan" not in found.output


def test_whole_numbers_are_a_table(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.arange(6).reshape(3, 2), y=np.eye(3))
    assert read_matrix(tmp_path / "t.npz").tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_entries_whose_squares_overflow_are_refused(size):
    with pytest.raises(ValueError, match="^X: expected a largest entry between"):
        prepare(size * np.random.default_rng(0).standard_normal((3, 9)))
