"""The audit, its report, its table and its command."""

import json
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
import typer
from naturality_chapter import DRAWINGS, EXPERIMENTS, PROBLEMS, STORED
from torch import nn
from typer.testing import CliRunner

from geolib.core import init_
from geolib.naturality import (
    NaturalGradient,
    Protocol,
    Reparameterization,
    Verdict,
    affine_mlp,
    audit,
    cli,
)
from geolib.naturality.cli import read_data, resolve_model
from geolib.sweep import Options, Store, keep, run_sweep

QUICK = Protocol(states=1)
FEW = ["permutation", "uniform", "affine", "coupling"]


def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((20, 2)), rng.integers(0, 3, 20)


def test_audit_of_an_own_module_in_one_line():
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    before = [t.detach().clone() for t in module.parameters()]
    report = audit(torch.optim.AdamW, module, data(), families=FEW, protocol=QUICK)
    assert list(report.verdicts) == FEW
    assert report.letters[0] == "E"
    assert report["affine"].verdict == "unnatural"
    assert "classification, p = 21" in str(report)
    for a, b in zip(before, module.parameters(), strict=True):
        assert torch.equal(a, b)  # the caller's module is left alone


def test_audit_takes_single_precision_buffers_and_two_families():
    module = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 1)
    )
    init_(module, seed=0)
    assert not module[1].num_batches_tracked.is_floating_point()
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.standard_normal((20, 2)), dtype=torch.float32)
    y = x[:, 0].sin()  # one axis is enough for one output
    two = ["affine", "coupling"]
    report = audit(torch.optim.SGD, module.eval(), (x, y), protocol=QUICK, families=two)
    assert report.letters == "UU"
    assert list(report.verdicts) == two
    assert "regression, p = 13" in str(report)
    assert module[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "x", "y", "message"),
    [
        (nn.ReLU(), (4, 2), torch.ones(4, 2), "ReLU has no trainable parameters"),
        (nn.Linear(2, 2), (4, 2), torch.ones(3, 2), "data: expected as many x as y"),
        (nn.Linear(2, 2), (4, 2), torch.ones(4, 3), "y: expected the outputs' shape"),
        (nn.Linear(2, 2), (4, 2), torch.full((4,), 2), "y: expected classes 0 to 1"),
        (nn.Linear(2, 2), (4, 2), torch.full((4,), -1), "y: expected classes"),
        (nn.Linear(2, 2), (4, 2), torch.full((4, 2), torch.nan), "data"),
        (
            nn.Linear(2, 2, device="meta"),
            (4, 2),
            torch.ones(4, 2),
            "data: expected the module's device",
        ),
        (nn.BatchNorm1d(2), (4, 2), torch.ones(4, 2), "batch statistics"),
        (nn.Dropout(), (4, 2), torch.ones(4, 2), "no trainable parameters"),
        ("net", (4, 2), torch.ones(4, 2), "module: expected an nn.Module"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_modules_and_data_are_named(module, x, y, message):
    x = torch.linspace(0, 1, math.prod(x)).reshape(x)
    with pytest.raises((ValueError, TypeError), match=message):
        audit(NaturalGradient, module, (x, y), families=FEW, protocol=QUICK)


def test_report_as_html_and_json():
    report = audit("ngd", PROBLEMS.regression_problem(12), families=FEW, protocol=QUICK)
    assert report.letters == "EEEN"
    page = report._repr_html_()
    assert page.count("<tr>") == 5
    assert "natural" in page
    back = json.loads(report.to_json())
    assert back["optimizer"] == "ngd"
    assert back["defects"]["coupling"]["verdict"] == "natural"
    kfac = audit("kfac", PROBLEMS.regression_problem(12), families=FEW, protocol=QUICK)
    assert kfac.letters == "EE--"
    assert json.loads(kfac.to_json())["defects"]["affine"]["slope"] is None


def test_own_maps_and_several_optimizers():
    P = PROBLEMS.regression_problem(12)
    report = audit(
        "gd", P, families={"mine": Reparameterization.scaling(3.0)}, protocol=QUICK
    )
    assert report.verdicts == {"mine": "unnatural"}
    rows = [audit(n, P, families=["uniform"], protocol=QUICK) for n in ("gd", "ngd")]
    assert [r.letters for r in rows] == ["U", "E"]


def test_clear_errors():
    with pytest.raises(ValueError, match="families"):
        audit("gd", PROBLEMS.regression_problem(12), families=["rotation"])
    with pytest.raises(ValueError, match="data"):
        audit("gd", affine_mlp([2, 3]), 5)
    with pytest.raises(ValueError, match="step_sizes"):
        audit("gd", PROBLEMS.regression_problem(12), protocol=Protocol(counts=(4,)))
    with pytest.raises(ValueError, match="four"):
        DRAWINGS.square(None, ["a"], ["b"])
    with pytest.raises(ValueError, match="audit table"):
        STORED.stored_audit("no-such-file.json")


def classified(**letters):
    """The class of verdicts given by letters, those of several seeds with a slash."""
    return STORED.naturality_class(
        {
            k.replace("_", "-"): {Verdict.from_letter(one) for one in v.split("/")}
            for k, v in letters.items()
        }
    )


def test_classify():
    assert classified(affine="E", coupling="N", kfac="-") == "natural"
    assert classified(affine="E", coupling="?") == "undecided"
    assert classified(affine="E", coupling="E/N") == "natural"
    assert classified(layer_affine="E", coupling="-") == "layer-affine"
    assert classified(affine="U", orthogonal="E", sinh="U") == "orthogonal"
    assert classified(affine="U", uniform="E", sinh="U") == "partly"
    # a seed that is undecided is no seed against
    assert classified(affine="U", orthogonal="?/E", sinh="U/?") == "orthogonal"
    assert classified(affine="E/?", coupling="N/?") == "natural"
    assert classified(permutation="E", affine="?", coupling="?") == "undecided"


@pytest.mark.slow
def test_table_is_filled_resumed_and_recomputed(tmp_path):
    sweep, store = EXPERIMENTS.AUDIT, Store(tmp_path / "store")
    specs = {s.optimizer: (k, s) for k, s in sweep.specs("small").items()}
    names, path = ["gd", "ngd"], tmp_path / "audit-regression.json"

    def fill(*names):
        wanted = dict(specs[n] for n in names)
        report = run_sweep(sweep, wanted, store, Options("inline"))
        rows = store.rows(sweep.name, list(wanted))
        entries = [sweep.entry(*one) for one in zip(wanted, rows, strict=True)]
        assert {file for file, _, _ in entries} == {"audit-regression"}
        keep(path, {key: cells for _, key, cells in entries}, {**sweep.about})
        return report

    assert fill("gd").done == 1
    assert list(STORED.stored_audit(path)["cells"]) == ["12"]
    second = fill(*names)
    assert (second.stored, second.done) == (1, 1)  # kept, not redone
    t = STORED.stored_audit(path)
    assert set(t["cells"]["12"]) == set(names)
    again = STORED.recompute(t, 12, "ngd", "coupling")
    stored = t["cells"]["12"]["ngd"]["coupling"]
    assert again.values == pytest.approx(stored["values"], rel=1e-4)
    assert STORED.consensus(t, "ngd", "coupling") == {Verdict.NATURAL}
    with pytest.raises(ValueError, match="names"):
        STORED.cells_of(t, ["adam"], ["uniform"])
    with pytest.raises(ValueError, match="problem: expected"):
        EXPERIMENTS.run(EXPERIMENTS.Spec("gd", "ranking"))


def test_the_sweep_repeats_every_audit_of_the_stored_tables():
    folder = Path(EXPERIMENTS.__file__).parent / "measured"
    known = {
        (f"audit-{s.problem}", f"{s.seed} | {s.optimizer}"): s.steps
        for s in EXPERIMENTS.AUDIT.specs("full").values()
    }
    for path in folder.glob("audit-*.json"):
        table = STORED.stored_audit(path)
        for seed, row in table["cells"].items():
            for name, cells in row.items():
                steps = known[path.stem, f"{seed} | {name}"]
                assert list(steps) == table["about"]["counts"]
                assert {len(c["values"]) for c in cells.values()} == {len(steps)}


def run(*arguments):
    app = typer.Typer()
    app.command()(cli.audit)
    return CliRunner().invoke(app, list(arguments))


def test_command(tmp_path):
    out = tmp_path / "report.json"
    result = run(
        "torch.optim.AdamW", "--model", "mlp:3", "--data", "diabetes", "--samples",
        "40", "--families", "permutation,affine", "--counts", "4,8", "--horizon",
        "0.2", "--json", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "AdamW (regression, p = 37" in result.output
    report = json.loads(out.read_text())
    assert report["defects"]["permutation"]["verdict"] == "exact"
    two = run("torch.optim.SGD", "--samples", "20", "--model", "mlp:2",
              "--families", "affine,coupling")  # fmt: skip
    assert [line.split()[0] for line in two.output.splitlines()[2:]] == [
        "affine",
        "coupling",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.optim.Nope"], "import path"),
        (["torch.optim.SGD", "--model", "mlp:a"], "model"),
        (["torch.optim.SGD", "--model", "nowhere"], "model"),
        (["torch.optim.SGD", "--counts", "8"], "step_sizes"),
        (["torch.optim.SGD", "--counts", "x"], "counts"),
        (["torch.optim.SGD", "--families", "spin"], "families"),
        (["torch.optim.SparseAdam", "--families", "uniform"], "SparseAdam"),
    ],
)
def test_command_errors_are_one_line(arguments, message):
    result = (
        run(*arguments, "--samples", "20", "--model", "mlp:2")
        if ("--model" not in arguments)
        else run(*arguments, "--samples", "20")
    )
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_models_and_data_of_the_command():
    assert resolve_model("torch.nn:ReLU", 2, 2).__class__ is nn.ReLU
    assert [tuple(w.shape) for w in resolve_model("mlp:", 2, 3).parameters()] == [
        (3, 3)
    ]
    with pytest.raises(ValueError, match="expected a module"):
        resolve_model("builtins:dict", 2, 2)
    x, y, outputs = read_data("digits", 50)
    assert x.shape == (50, 64)
    assert outputs == 10
    assert not y.is_floating_point()


def test_drawings():
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2)
    DRAWINGS.square(
        axes[0], list("ABCD"), ["f", "g", "h", "k"], note="?", commutes=None
    )
    assert {t.get_text() for t in axes[0].texts} >= set("ABCDfghk?")
    DRAWINGS.heat_map(axes[1], ["r"], ["a", "b"], [["E", "N/U"]])
    assert [t.get_text() for t in axes[1].texts] == ["E", "N/U"]
    plt.close(fig)


@pytest.mark.parametrize("name", ["radam", "adagrad"])
def test_a_warm_up_is_not_taken_for_the_rule_and_squares_are_permuted(name):
    """RAdam's first steps are plain descent; AdaGrad's squares move with their axes."""
    families = ["permutation", "orthogonal"]
    rule, task = EXPERIMENTS.TABLE[name], PROBLEMS.regression_problem(12)
    report = audit(rule, task, families=families)
    assert report.letters == "EU"
