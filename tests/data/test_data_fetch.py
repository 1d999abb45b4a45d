"""Fetching, against a real HTTP server on loopback."""

import functools
import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest
import typer

from geolib import data
from geolib.data import DataError, api, tables
from geolib.data import files as published
from geolib.data.__main__ import command
from geolib.data.files import File


def main(arguments):
    """The command's exit code."""
    try:
        command(*arguments[:1], arguments[1:])
    except typer.Exit as end:
        return end.exit_code
    return 0


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        self.server.asked.append(self.path)


@pytest.fixture
def site(tmp_path):
    """A folder served over HTTP: `(folder, address, requests)`."""
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(Quiet, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield served, f"http://127.0.0.1:{server.server_port}/", server.asked
        server.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOLIB_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def mnist(site, home, monkeypatch):
    """A small MNIST: four idx files on the server, pinned by their md5."""
    served, address, _ = site
    files = []
    for i in range(4):
        values = np.arange(3, dtype=np.uint8).reshape((3, 1, 1) if i % 2 == 0 else 3)
        shape = np.array(values.shape, ">i4").tobytes()
        raw = gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes())
        (served / f"{i}.gz").write_bytes(raw)
        md5 = hashlib.md5(raw).hexdigest()
        files.append(File(f"M/{i}.gz", md5, f"{address}{i}.gz"))
    monkeypatch.setitem(published.IDX, "mnist", tuple(files))
    return files


def test_fetch_then_load_and_never_twice(mnist, site, home):
    assert not data.available("mnist")
    data.fetch("mnist")
    assert data.load("mnist").y.tolist() == [0, 1, 2]
    before = len(site[2])
    data.fetch("mnist")
    assert len(site[2]) == before == 4
    assert sorted(p.name for p in (home / "M").iterdir()) == [
        "0.gz", "1.gz", "2.gz", "3.gz",
    ]  # fmt: skip


def test_fetch_replaces_a_corrupt_file(mnist, home):
    (home / "M").mkdir(parents=True)
    (home / "M/1.gz").write_bytes(b"damaged")
    data.fetch("mnist")
    assert data.available("mnist")


def test_wrong_bytes_are_refused_and_leave_nothing(mnist, site, home):
    (site[0] / "2.gz").write_bytes(b"other bytes")
    with pytest.raises(DataError) as caught:
        data.fetch("mnist")
    assert mnist[2].md5 in str(caught.value)
    assert not (home / "M/2.gz").exists()
    assert sorted(p.name for p in (home / "M").iterdir()) == ["0.gz", "1.gz"]


def test_no_network_is_one_clear_error(home, monkeypatch):
    gone = File("M/0.gz", "0" * 32, "http://127.0.0.1:9/0.gz")
    monkeypatch.setitem(published.IDX, "mnist", (gone,))
    with pytest.raises(DataError, match=r"could not fetch M/0\.gz"):
        data.fetch("mnist")


def test_a_server_that_drips_is_not_waited_for(home, monkeypatch):
    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            while not over.wait(0.05):
                self.wfile.write(b".")

        def log_message(self, *_):
            pass

    over = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/0.gz"
        monkeypatch.setitem(published.IDX, "mnist", (File("M/0.gz", "0" * 32, url),))
        monkeypatch.setattr(api, "PATIENCE", 0.4)
        with pytest.raises(DataError, match="did not send it in time"):
            data.fetch("mnist")
        over.set()
        server.shutdown()
    assert not any((home / "M").iterdir())


def test_a_corrupt_table_does_not_stop_its_own_repair(yacht, home):
    data.fetch("uci/yacht")
    path = home / "UCI/regression/yacht.npz"
    raw = path.read_bytes()
    path.write_bytes(raw[:200] + bytes([raw[200] ^ 1]) + raw[201:])
    assert main(["list"]) == 0
    assert not data.available("uci/yacht")
    data.fetch("uci/yacht")
    assert data.available("uci/yacht")


def test_a_file_with_no_address_says_so(home, monkeypatch):
    monkeypatch.setitem(published.IDX, "mnist", (File("M/0.gz", "0" * 32),))
    with pytest.raises(DataError, match="no public address"):
        data.fetch("mnist")


def test_load_never_fetches(mnist, site):
    with pytest.raises(DataError):
        data.load("mnist")
    assert site[2] == []


@pytest.fixture
def yacht(site, home, monkeypatch):
    """A small regression table as its source publishes it, pinned by its arrays."""
    served, address, _ = site
    rows = np.random.default_rng(0).normal(size=(10, 3))
    texts = {
        "data": rows,
        "index_features": np.array([0, 1]),
        "index_target": np.array([2]),
        "n_splits": np.array([2]),
    }
    order = np.random.default_rng(1).permutation(10)
    for i in range(2):
        texts[f"index_train_{i}"] = np.roll(order, i)[:9]
        texts[f"index_test_{i}"] = np.roll(order, i)[9:]
    folder = served / "yacht/data"
    folder.mkdir(parents=True)
    for stem, values in texts.items():
        np.savetxt(folder / f"{stem}.txt", values)
    arrays = {"x": rows[:, :2], "y": rows[:, 2]}
    for part in ("train", "test"):
        pair = [texts[f"index_{part}_{i}"] for i in range(2)]
        arrays[f"{part}_idx"] = np.stack(pair)
    monkeypatch.setitem(published.REGRESSION, "yacht", tables.digest(arrays))
    monkeypatch.setattr(tables, "SPLITS_URL", address)
    return arrays


def test_regression_table_is_packed_from_its_text_files(yacht, home):
    data.fetch("uci/yacht")
    d = data.load("uci/yacht", split=1)
    np.testing.assert_array_equal(d.x_test, yacht["x"][yacht["test_idx"][1]])
    assert [p.name for p in (home / "UCI/regression").iterdir()] == ["yacht.npz"]


def test_regression_table_with_other_numbers_is_refused(yacht, site, home):
    path = site[0] / "yacht/data/data.txt"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(DataError, match="nothing was written"):
        data.fetch("uci/yacht")
    assert not (home / "UCI").exists()


def test_regression_table_without_network(home, monkeypatch):
    monkeypatch.setattr(tables, "SPLITS_URL", "http://127.0.0.1:9/")
    with pytest.raises(DataError, match="uci/yacht: could not fetch"):
        data.fetch("uci/yacht")


def test_command_line(mnist, home, capsys):
    assert main(["fetch", "mnist", "digits"]) == 0
    assert capsys.readouterr().out == "mnist: ready\ndigits: ready\n"
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "here    mnist" in listed
    assert "absent  fashion_mnist" in listed
    assert main(["fetch", "nothing"]) == 1
    assert "no data set" in capsys.readouterr().err
    assert main([]) == 2
