"""Chapters show what was published beside them, and nothing else on any disk."""

import contextlib
import io
from pathlib import Path

import jupytext
import pytest
from conftest import cell

from geolib.press import Build
from geolib.press.notebook import CHECKED, discover, tags
from geolib.sweep import Store, find, keep, means, sweep_rows
from geolib.sweep.store import fields_of
from geolib.tables import show

ROOT = Path(__file__).resolve().parents[2]
READERS = {
    "phase-map": "regimes/05-my-setup",
    "mode-connectivity": "geodesics/02-connecting",
    "sparsification": "geodesics/03-sparsification",
    "continual-learning": "geodesics/04-forgetting",
    "singular-starts": "stratifolds/02-trap",
}
# What these pages read they do not run.
STORED = {
    "regimes/06-steps",
    "stratifolds/05-bayes",
    "stratifolds/06-identifiability",
    "inverse_stability/03-learning",
}
RECORDS = {
    "phase-map": dict.fromkeys(
        ("errors",), dict.fromkeys(("large-data", "small-data", "mean-field"), 0.01)
        | {"narrow": 2.0},
    ),
    "mode-connectivity": {"test_barrier": 0.01234},
    "sparsification": {"accuracy": 0.01234},
    "continual-learning": {"average": 0.01234},
    "singular-starts": {"wrong": 0.01234},
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose chapters have the book's experiments, and nothing measured."""
    (tmp_path / "_toc.yml").touch()
    for file in (ROOT / "chapters").glob("*/*.py"):
        target = tmp_path / "chapters" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(checkout, name, *records):
    chapter = READERS[name].split("/")[0]
    sweep = find(name)
    entries = {
        key: fields_of(spec) | record
        for (key, spec), record in zip(
            sweep.specs("full").items(), records, strict=False
        )
    }
    path = checkout / "chapters" / chapter / "measured" / f"{name}.json"
    keep(path, entries, {"date": "today"})


def reading_cell(name):
    """The code cell of the chapter's notebook that reads the sweep."""
    nb = jupytext.read(ROOT / "chapters" / f"{READERS[name]}.md", fmt="md:myst")
    (cell,) = [c for c in nb.cells if f'sweep_rows("{name}")' in c.source]
    return cell


@pytest.mark.parametrize("name", READERS)
def test_the_chapter_shows_what_was_published(name, checkout):
    # nothing of the notebook but a constant and a table: its own rows are out of reach
    space = {"SOLVED": ("large-data", "mean-field"), "show": show}
    space |= {"sweep_rows": sweep_rows, "means": means}
    with pytest.raises(NameError):  # while there is nothing it is these that it shows
        exec(reading_cell(name).source, dict(space))
    publish(checkout, name, *[RECORDS[name]] * 3)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(reading_cell(name).source, dict(space))
    expected = "3        100 %" if name == "phase-map" else "0.0123"
    assert expected in shown.getvalue()


@pytest.mark.parametrize("name", READERS)
def test_no_claim_and_no_checked_output_rests_on_a_sweep(name):
    cell = reading_cell(name)
    assert CHECKED not in tags(cell)
    assert "claim(" not in cell.source
    assert "quote(" not in cell.source


def test_no_other_notebook_reads_a_sweep():
    texts = (ROOT / "chapters").glob("*/*.md")
    readers = [t for t in texts if "sweep_rows(" in t.read_text()]
    found = {f"{t.parent.name}/{t.stem}" for t in readers}
    assert found == {*READERS.values(), *STORED}


def test_rows_are_those_that_were_published(checkout):
    publish(checkout, "sparsification", {"accuracy": 0.5})
    (row,) = sweep_rows("sparsification")
    first = next(iter(find("sparsification").specs("full").values()))
    assert row == fields_of(first) | {"accuracy": 0.5}
    assert sweep_rows("phase-map") == []
    with pytest.raises(ValueError, match="no sweep 'sparsity'"):
        sweep_rows("sparsity")


def test_means_against_numpy():
    import numpy as np

    rng = np.random.default_rng(0)
    rows = [
        {"a": i % 2, "b": [1, i % 3], "x": float(x)}
        for i, x in enumerate(rng.normal(size=20))
    ]
    found = means(rows, ("a", "b"), "x")
    assert list(found) == [(a, (1, b)) for a in range(2) for b in range(3)]
    for (a, (_, b)), group in found.items():
        x = [r["x"] for r in rows if r["a"] == a and r["b"][1] == b]
        assert (group.mean, group.sd, group.count) == pytest.approx(
            (np.mean(x), np.std(x, ddof=1), len(x))
        )
    with pytest.raises(KeyError):
        means(rows, ("c",), "x")


@pytest.mark.parametrize("profile", ["small", "book"])
def test_nothing_on_the_readers_disk_changes_a_notebooks_key(
    profile, tmp_path, monkeypatch
):
    """No store of sweeps, no data folder, no cache and no home: only the checkout."""
    notebooks = discover(ROOT)

    def keys():
        return {n.name: Build(ROOT, profile).inputs(n).key(None) for n in notebooks}

    places = ("GEOLIB_SWEEPS", "GEOLIB_DATA", "XDG_CACHE_HOME", "HOME")
    for variable in places:
        monkeypatch.setenv(variable, str(tmp_path / "empty"))
    before = keys()
    for variable in places:
        monkeypatch.setenv(variable, str(tmp_path / "full"))
    store = Store()
    assert store.folder == tmp_path / "full"
    for name in READERS:
        key, spec = next(iter(find(name).specs("full").items()))
        entry = {"spec": fields_of(spec), "record": RECORDS[name]}
        store.put(name, key, {"status": "done", **entry})
        assert sweep_rows(name) == []
    (tmp_path / "full" / "mnist").mkdir()
    (tmp_path / "full" / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"0")
    assert keys() == before


def test_what_is_published_changes_the_keys_of_its_own_chapter_only(book):
    for chapter in ("one", "two"):
        book.add(f"{chapter}/01-a", cell("print(1)"))
    notebooks = discover(book.root)
    before = [Build(book.root, "small").inputs(n).key(None) for n in notebooks]
    keep(book.root / "chapters/one/measured/a.json", {"k": 1}, {})
    after = [Build(book.root, "small").inputs(n).key(None) for n in notebooks]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False]
