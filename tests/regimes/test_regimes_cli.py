import re

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
        "# mine\n1;2\n3;5\n",
        "e\tE\n1\t2\n3\t5",
        "1,2\n3,5",
    ],
)
def test_a_table_may_be_written_in_many_ways(tmp_path, text):
    (tmp_path / "t.CSV").write_text(text, encoding="utf-8", newline="")
    assert read_matrix(tmp_path / "t.CSV").tolist() == [[1, 2], [3, 5]]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.csv", None, "a file that is there"),
        ("t.txt", "1,2", "expected a .csv or .npz"),
        ("t.csv", "a,b\n1,x\n2,2\n", "line 2, column 2: expected a finite number"),
        ("t.csv", "1,2\n3\n", "line 2: expected 2 cells as in line 1, got 1"),
        ("t.csv", "1,nan\n2,3\n4,4\n", "line 1, column 2: .* got 'nan'"),
        ("t.csv", "1,2\n2,\n", "line 2, column 2: .* got ''"),
        ("t.csv", "a,b\n1,2\n", "expected two samples or more, got 1"),
        ("t.csv", "", "expected two samples or more, got 0"),
        ("t.csv", "1,2\n1,2\n", "2 of 2 coordinates are constant"),
        ("t.npz", "hello", "holds no plain arrays"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    found = CliRunner().invoke(app, ["--data", str(path), "--hidden", "2"])
    assert isinstance(found.exception, ValueError)
    assert re.search(said, str(found.exception))


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.eye(2), "b": np.eye(2)},
        {"x": np.array([["a", "b"], ["c", "d"]])},
        {"x": np.eye(2) + 1j},
        {"x": np.array([[1, None], [2, 3]], dtype=object)},
        {"x": np.zeros((2, 2, 2))},
    ],
)
def test_an_archive_without_one_matrix_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=r"^data: .*(one matrix|no plain arrays)"):
        read_matrix(tmp_path / "t.npz")


def test_whole_numbers_are_a_table(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.arange(6).reshape(3, 2), y=np.eye(3))
    assert read_matrix(tmp_path / "t.npz").tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_entries_whose_squares_overflow_are_refused(size):
    with pytest.raises(ValueError, match="^X: expected a largest entry between"):
        prepare(size * np.random.default_rng(0).standard_normal((3, 9)))
