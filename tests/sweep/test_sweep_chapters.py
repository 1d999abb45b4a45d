"""The sweeps of the chapters, at their small size, against what their chapters know."""

import functools
import tempfile
from pathlib import Path

import pytest

from geolib.sweep import Options, Store, find, measured, run_sweep

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def collect(name: str, store: Store, scheduler: str) -> list[dict]:
    """The rows of the small size, in the grid's order."""
    sweep = find(name)
    report = run_sweep(sweep, "small", store, Options(scheduler, workers=2))
    assert report.failed == {}
    return store.rows(name, sweep.specs("small"))


@functools.cache
def rows(name: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        return collect(name, Store(folder), "inline")


def test_mode_connectivity():
    found = rows("mode-connectivity")
    by = {(r["pair"], r["method"]): r for r in found}
    for pair in (0, 1):
        line, geodesic = by[pair, "line"], by[pair, "geodesic"]
        assert line["ends"] == geodesic["ends"]  # the very same two networks
        assert min(line["ends"]) > 0.8
        assert geodesic["barrier"] < 0.5 * line["barrier"]
        assert line["passes"] == 0 < geodesic["passes"]


def test_sparsification():
    by = {(r["level"], r["method"]): r for r in rows("sparsification")}
    prunable = 64 * 16 + 16 * 10
    for (level, _), r in by.items():
        assert r["zeros"] >= round(level * prunable) - 1
        assert r["dense"] == by[0.5, "one-shot"]["dense"]
    assert by[0.9, "invariant path"]["accuracy"] > by[0.9, "one-shot"]["accuracy"] + 0.1


def test_continual_learning():
    by = {(r["seed"], r["method"]): r for r in rows("continual-learning")}
    for seed in (0, 1):
        assert by[seed, "joint"]["average"] > 0.9
        assert by[seed, "fine-tuning"]["average"] < 0.75
        assert by[seed, "fine-tuning"]["forgetting"] > 0.3
        assert by[seed, "replay"]["average"] > by[seed, "fine-tuning"]["average"] + 0.15
        last = by[seed, "replay"]["last"]
        assert by[seed, "replay"]["average"] == pytest.approx(sum(last) / len(last))


def test_phase_map():
    by = {(r["log_h"], r["log_n"]): r for r in rows("phase-map")}
    assert by[-3, 3]["h"] == 2
    assert by[-3, 3]["n"] == 128
    assert by[3, 3]["best"] in ("large-data", "mean-field")
    for r in by.values():
        solved = {k: e for k, e in r["errors"].items() if k != "ensemble"}
        assert len(solved) == 4
        assert solved[r["best"]] == min(solved.values())
    assert len({r["best"] for r in by.values()}) >= 3  # a map, not one colour


def test_audit():
    by = {r["optimizer"]: r for r in rows("audit")}
    assert by["ngd"]["verdict"] == "natural"
    assert by["gd"]["verdict"] == "orthogonal"
    assert by["adam"]["verdict"] not in ("natural", "affine")


def test_singular_starts():
    by = {(r["chart"], r["method"]): r for r in rows("singular-starts")}
    assert by["tube", "gd"]["success"] == by["tube", "ngd"]["success"] == 1
    assert by["raw", "gd"]["wrong"] < 0.3
    assert by["raw", "em"]["success"] == 1
    assert by["raw", "gd"]["wrong_starts"] == by["tube", "gd"]["wrong_starts"] > 10


def test_coverage_of_the_samplers_bar():
    (row,) = rows("coverage")
    assert len(row["trials"]) == row["samples"] == 2
    assert all(abs(distance) < 1 and bar > 0 for distance, bar in row["trials"])


def test_realizations_are_no_worse_than_the_optimum():
    (row,) = rows("realizations")
    assert [r["width"] for r in row["runs"]] == [2, 64]
    for r in row["runs"]:
        assert r["lower"] <= r["best"] <= r["best"] + r["excess"]
        assert r["loss_excess"] <= r["lipschitz"]


def test_training_with_and_without_the_restriction():
    found = rows("restriction")
    assert {r["mode"] for r in found} == {"unrestricted", "projected", "reparametrised"}
    assert all(len(r["losses"]) == 2 and min(r["losses"]) > 0 for r in found)


def test_planted_layers_repeat_what_is_published():
    (row,) = rows("planted-layers")
    kept = measured(ROOT / "chapters/stratifolds/measured/planted.json").entries
    assert row["trials"] == kept[str(row["first"])][: row["networks"]]


def test_deep_networks_are_recognized_in_another_gauge():
    (row,) = rows("deep-comparisons")
    assert row["recognized"] == row["gauges"] == 2
    assert 0 < row["weights"][0] <= row["weights"][1]
    assert 0 < row["outputs"][0] <= row["outputs"][1]


def test_a_chapters_sweep_gives_the_same_on_dask_and_in_process(tmp_path):
    pytest.importorskip("distributed", reason="the extra `sweep` is not installed")
    assert collect("phase-map", Store(tmp_path), "local") == rows("phase-map")


def test_growth_repeats_what_is_published():
    (row,) = rows("stratifold-growth")
    kept = measured(ROOT / "chapters/stratifolds/measured/growth.json").entries
    published = kept["Adam, shear"]
    assert row["rate"] == published["rate"]
    assert {k: row[k] for k in ("steps", "loss", "accuracy")} == {
        k: published[k][:1] for k in ("steps", "loss", "accuracy")
    }
