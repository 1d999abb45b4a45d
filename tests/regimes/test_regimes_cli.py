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
    ("name", "text", "said"),
    [
        ("none.csv", None, "data: no file"),
        ("t.txt", "1,2", "expected a .csv or .npz"),
        ("t.csv", "a,b\n1,x\n", "no table of numbers"),
        ("t.csv", "1,2\n3\n", "no table of numbers"),
        ("t.csv", "a,b\n1,nan\n2,3\n", "finite numbers"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    found = CliRunner().invoke(app, ["--data", str(path), "--hidden", "2"])
    assert isinstance(found.exception, ValueError)
    assert said in str(found.exception)


def test_an_archive_without_one_matrix_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", a=np.eye(2), b=np.eye(2))
    with pytest.raises(ValueError, match="one matrix"):
        read_matrix(tmp_path / "t.npz")
