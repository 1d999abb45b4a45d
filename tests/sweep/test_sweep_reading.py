"""Chapters read stores: where one is there its rows are shown, else nothing changes."""

import contextlib
import io
from pathlib import Path

import jupytext
import pytest

from geolib.press import Build
from geolib.press.checkout import discover
from geolib.press.notebook import CHECKED, tags
from geolib.sweep import Store, find, means, sweep_rows
from geolib.sweep.registry import names
from geolib.sweep.spec import fields_of, key_of

ROOT = Path(__file__).resolve().parents[2]
READERS = {
    "phase-map": "regimes/05-my-setup",
    "mode-connectivity": "geodesics/02-connecting",
    "sparsification": "geodesics/03-sparsification",
    "continual-learning": "geodesics/04-forgetting",
    "audit": "naturality/02-audit",
    "singular-starts": "stratifolds/02-trap",
}
RECORDS = {
    "phase-map": dict.fromkeys(
        ("errors",), dict.fromkeys(("large-data", "small-data", "mean-field"), 0.01)
        | {"narrow": 2.0},
    ),
    "mode-connectivity": {"test_barrier": 0.01234},
    "sparsification": {"accuracy": 0.01234},
    "continual-learning": {"average": 0.01234},
    "audit": {"verdict": "0.0123"},
    "singular-starts": {"wrong": 0.01234},
}  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The default store, in a folder of the test's own."""
    monkeypatch.setenv("GEOLIB_SWEEPS", str(tmp_path))
    return Store()


def keep(store, name, spec, record, **fields):
    sweep = find(name)
    entry = {
        "sweep": name, "version": sweep.version, "spec": fields_of(spec),
        "status": "done", "record": record,
    }  # fmt: skip
    key = key_of(spec, name, fields.get("version", sweep.version))
    store.put(name, key, entry | fields)


def reading_cell(name):
    """The code cell of the chapter's notebook that reads the sweep."""
    nb = jupytext.read(ROOT / "chapters" / f"{READERS[name]}.md", fmt="md:myst")
    (cell,) = [c for c in nb.cells if f'sweep_rows("{name}")' in c.source]
    return cell


@pytest.mark.parametrize("name", names())
def test_the_chapter_shows_the_store_when_it_is_there(name, store, monkeypatch):
    for spec in list(find(name).specs("full").values())[:3]:
        keep(store, name, spec, RECORDS[name])
    # nothing of the notebook but one constant: its own rows are out of reach
    space = {"SOLVED": ("large-data", "mean-field")}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(reading_cell(name).source, dict(space))
    expected = "100 % of 3 cells" if name == "phase-map" else "0.0123"
    assert expected in shown.getvalue()
    monkeypatch.setenv("GEOLIB_SWEEPS", str(store.folder / "none"))
    with pytest.raises(NameError):  # without a store it is these that it asks for
        exec(reading_cell(name).source, dict(space))


@pytest.mark.parametrize("name", names())
def test_no_claim_and_no_checked_output_rests_on_a_store(name):
    cell = reading_cell(name)
    assert CHECKED not in tags(cell)
    assert "claim(" not in cell.source
    assert "quote(" not in cell.source


def test_rows_are_those_that_ended_well_under_the_present_version(store):
    specs = list(find("sparsification").specs("small").values())
    keep(store, "sparsification", specs[0], {"accuracy": 0.5})
    keep(store, "sparsification", specs[1], {"accuracy": 0.1}, version=0)
    keep(store, "sparsification", specs[2], {}, status="failed", error="no")
    (row,) = sweep_rows("sparsification")
    assert row == fields_of(specs[0]) | {"accuracy": 0.5}
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


def test_new_results_of_its_sweep_and_of_no_other_change_the_notebooks_key(store):
    reader, other = discover(ROOT, ["regimes/05-my-setup", "regimes/01-model"])[::-1]
    before = [Build(ROOT, "small").key(n) for n in (reader, other)]
    spec = next(iter(find("audit").specs("small").values()))
    keep(store, "audit", spec, {})
    assert [Build(ROOT, "small").key(n) for n in (reader, other)] == before
    spec = next(iter(find("phase-map").specs("small").values()))
    keep(store, "phase-map", spec, {})
    after = [Build(ROOT, "small").key(n) for n in (reader, other)]
    assert after[0] != before[0]
    assert after[1] == before[1]
