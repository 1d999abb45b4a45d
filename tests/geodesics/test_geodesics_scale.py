"""The sweep of VGG pairs on a tiny made table: it ends, goes on after a kill, publishes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module

from geolib.networks import Table, training
from geolib.sweep import Options, Store, measured, registry, run_sweep


def made():
    """Thirty rows and twenty that are held out, ten classes by colour."""
    rng = np.random.default_rng(0)

    def part(n):
        y = torch.arange(n) % 10
        x = torch.from_numpy(rng.standard_normal((n, 3, 32, 32))).float()
        return x + y.view(-1, 1, 1, 1) / 3 - 1.5, y

    rows, held = part(50), part(20)
    return Table(*rows, *held, *held)


@pytest.fixture
def scale(tmp_path, monkeypatch):
    """The sweep's module with a few steps for each stage, on the made table."""
    module = chapter_module("geodesics", "experiments_scale")
    table, tiny = made(), module.Budget(4, 400, 1, 200)
    spec, rates = module.VggSpec, {"lr": (1e-3, 3e-3)}
    monkeypatch.setitem(module.best_of.__globals__, "GROWN", 0)
    units = [spec("pair", "vgg11", 0, 1 / 32), spec("split", "vgg11", 0, 1 / 32)]
    sweep = replace(module.VGG_PAIRS, grids={"small": lambda: units})
    changed = {
        "FOLDER": tmp_path / "stages",
        "HELD": 20,
        "BUDGET": tiny,
        "SHORT": replace(tiny, training=2),
        "GRID": 3,
        "RATES": rates,
        "BY_STRENGTH": {**rates, "strength": (0.3,)},
        "PATHS": {k: g and rates for k, g in module.PATHS.items()},
        "VGG_PAIRS": sweep,
        "images": lambda device="cpu": table,
    }
    for name, value in changed.items():
        monkeypatch.setattr(module, name, value)
    module.pair_of.cache_clear()
    yield module
    module.pair_of.cache_clear()


def without_times(value):
    """A record without the processor time of its stages."""
    if not isinstance(value, dict):
        return value
    return {k: without_times(v) for k, v in value.items() if k != "cpu"}


def run(scale, folder):
    return run_sweep(scale.VGG_PAIRS, "small", Store(folder), Options("inline"))


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_to_the_same_record_and_is_published(
    scale, tmp_path, monkeypatch
):
    cut, trained, calls, steps = scale.cut, training._draw, [], []

    def killed(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return cut(*args)

    def counted(*args):
        steps.append(args[3])
        return trained(*args)

    monkeypatch.setattr(scale, "cut", killed)
    monkeypatch.setattr(training, "_draw", counted)
    with pytest.raises(KeyboardInterrupt):
        run(scale, tmp_path / "store")
    assert (len(calls), len(steps)) == (
        6,
        2 * 2 + 2 * 4,
    )  # two short, two long trainings
    scale.pair_of.cache_clear()  # another process
    report = run(scale, tmp_path / "store")
    assert (report.done, report.failed) == (2, {})
    # two methods, two rates and two levels: only the one that was killed runs twice
    assert len(calls) == 2 * (2 + 2) + 1
    assert len(steps) == 12
    rows = Store(tmp_path / "store").rows("vgg")
    pair = next(r for r in rows if r["task"] == "pair")

    monkeypatch.setattr(scale, "FOLDER", tmp_path / "unbroken")
    scale.pair_of.cache_clear()
    whole = scale.run_vgg(scale.VggSpec("pair", "vgg11", 0, 1 / 32))
    assert without_times({k: pair[k] for k in whole}) == without_times(whole)

    monkeypatch.setattr(registry, "find", lambda name: scale.VGG_PAIRS)
    monkeypatch.setattr(registry, "_file", lambda name: tmp_path / "experiments.py")
    (path,) = registry.publish("vgg", "small", Store(tmp_path / "store"))
    assert path == tmp_path / "measured" / "vgg-0.03125.json"
    entries = measured(path).entries
    assert set(entries) == {"pair | vgg11 | 0", "split | vgg11 | 0"}
    assert entries["pair | vgg11 | 0"]["line"] == pair["line"]
    (shown,) = scale.pair_rows(entries)
    assert shown["barrier, line"] == f"{pair['line']['test_barrier']:.3f}"
    dates = [row["date"] for row in scale.scale_rows(entries)]
    assert dates.count("not run") == len(dates) - 2
    assert dates[0] != "not run" != dates[4]


@pytest.mark.slow
def test_a_pair_has_equal_passes_and_rates_that_did_best_on_a_pair_of_their_own(scale):
    row = scale.run_vgg(scale.VggSpec("pair", "vgg11", 1, 1 / 32))
    assert row["line"]["passes"] == row["aligned line"]["passes"] == 0
    # 100 answers of the ends, and as many batches of the 50 rows as 128 would allow
    assert row["aligned arc"]["passes"] == 100 + 50 * ((400 - 100) // 128)
    for level in scale.LEVELS:
        ours, rival = (row[f"{m} | {level:g}"] for m in (scale.OURS, scale.RIVAL))
        assert ours["scores"].keys() == rival["scores"].keys()
        # as many steps of Adam; ours holds five of the fifty rows out to judge itself
        assert (ours["passes"], rival["passes"]) == (13 * 45, 13 * 50)
        for found in (ours, rival):
            best = max(found["scores"], key=found["scores"].__getitem__)
            assert json.loads(best) == found["setting"]
    data = scale.data_of(scale.VggSpec("pair", "vgg11", scale.TUNED_ON))
    table = scale.images()
    assert torch.equal(data.x_val, table.x[:20])  # none of the rows for scores
    assert torch.equal(data.x, table.x[20:])


def test_the_bars_are_about_the_worst_network_and_path_and_the_mean_lead():
    scale = chapter_module("geodesics", "experiments_scale")

    def row(dense, arc, ours):
        found = {
            "first network": {"accuracy": dense},
            "second network": {"accuracy": 1},
        }
        found |= {"aligned arc": {"test_barrier": arc}, "line": {"test_barrier": 2.0}}
        for level in scale.LEVELS:
            found[f"{scale.OURS} | {level:g}"] = {"accuracy": ours}
            found[f"{scale.RIVAL} | {level:g}"] = {"accuracy": 0.5}
        return found

    entries = {"pair | vgg11 | 0": row(0.8, 0.1, 0.3), "split | vgg11 | 0": {}}
    entries["pair | vgg11 | 1"] = row(0.9, 0.2, 0.6)
    found = scale.bars(entries)
    assert found == pytest.approx({"dense": 0.8, "arc": 0.1, "90": -5, "95": -5})


def test_the_pairs_cost_what_their_steps_do():
    scale = chapter_module("geodesics", "experiments_scale")
    steps = scale.study()
    assert steps["training"] == {"vgg11": (6 * 4000 + 2 * 1000) / 2, "vgg16": 4000}
    # two methods at two levels for each of three pairs; four rates on the short pair
    assert steps["pruning on labels"]["vgg11"] == 3 * 4 * 13 * 31 + 2 * 4 * 13 * 8
    each = {f"{n} | {s}": {"seconds": 1.0} for s in steps for n in ("vgg11", "vgg16")}
    total = sum(sum(of.values()) for of in steps.values())
    assert scale.cost_hours(each) == pytest.approx(total / 3600)


def test_a_setting_is_chosen_by_what_is_finite():
    scale = chapter_module("geodesics", "experiments_scale")
    assert scale.goodness({"test_barrier": float("nan"), "middle": 1.0}) < (-1e6, 0)
    # of paths without a barrier, the one with the better midpoint
    level, better = ({"test_barrier": 0.0, "middle": m} for m in (0.5, 0.6))
    assert scale.goodness(level) < scale.goodness(better)
