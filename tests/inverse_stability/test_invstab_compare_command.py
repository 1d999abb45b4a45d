"""The command `geolib compare`, and files that it refuses."""

import pytest
import torch
from torch import nn

from geolib.core import init_
from geolib.inverse_stability import random_gauge


def test_the_command_compares_two_files(tmp_path, monkeypatch):
    import typer
    from safetensors.torch import save_file
    from typer.testing import CliRunner

    from geolib.inverse_stability.compare import command

    (tmp_path / "some_nets.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = init_(
        nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)), 0, bias_scale=0.5
    ).eval()
    files = [str(tmp_path / f"{k}.safetensors") for k in "abc"]
    far = init_(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)), 1)
    for file, module in zip(files, (net, random_gauge(net, 0), far), strict=True):
        state = {k: v.contiguous() for k, v in module.state_dict().items()}
        save_file(state, file)
    app = typer.Typer()
    app.command()(command)
    run = CliRunner()
    options = ["--model", "some_nets:build", "--shape", "2"]
    same = run.invoke(app, [*files[:2], *options])
    assert same.exit_code == 0, same.output
    assert same.output.startswith("the same function")
    other = run.invoke(app, [files[0], files[2], *options])
    assert other.output.startswith("not the same up to a gauge")
    assert "outputs on [-1, 1] apart" in other.output
    for bad in (["--model", "some_nets:absent"], ["--model", "nowhere:build"]):
        failed = run.invoke(app, [*files[:2], *bad])
        assert failed.exit_code == 2
        assert "expected package.module:build" in failed.output
    missing = run.invoke(app, [files[0], str(tmp_path / "no.safetensors"), *options])
    assert missing.exit_code == 2


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """Runs `geolib compare` on files in a folder that has a builder of networks."""
    import typer
    from typer.testing import CliRunner

    from geolib.inverse_stability.compare import command

    (tmp_path / "odd_nets.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))\n\n\n"
        "def absent():\n    raise RuntimeError('no such network')\n\n\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app = typer.Typer()
    app.command()(command)

    def run(first, second, model="odd_nets:build", *more):
        files = [str(tmp_path / f) for f in (first, second)]
        return CliRunner().invoke(app, [*files, "--model", model, *more])

    return run


def stored(folder, name, change=None):
    from safetensors.torch import save_file

    net = init_(
        nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)), 0, bias_scale=0.5
    )
    state = {k: t.detach().clone() for k, t in net.state_dict().items()}
    save_file(change(state) if change else state, folder / name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {f"module.{k}": t for k, t in s.items()}, ("8 tensors", "0.bias")),
        (
            lambda s: {k: t for k, t in s.items() if k != "2.bias"},
            ("2.bias", "nothing"),
        ),
        (lambda s: s | {"0.bias": torch.ones(4)}, ("0.bias", "(5,)", "(4,)")),
        (lambda s: s | {"0.bias": s["0.bias"] * torch.nan}, ("module_b", "finite")),
        (
            lambda s: {k: t.int() for k, t in s.items()},
            ("4 tensors", "expected float (5,)"),
        ),
        (lambda s: {}, ("4 tensors",)),
    ],
)
def test_a_file_of_other_tensors_is_refused_in_one_line(
    tmp_path, command_line, change, words
):
    stored(tmp_path, "a.safetensors")
    stored(tmp_path, "b.safetensors", change)
    got = command_line("a.safetensors", "b.safetensors")
    assert got.exit_code == 2
    assert got.output.startswith("geolib compare: ")
    assert all(w in got.output for w in words), got.output
    assert len(got.output.strip().splitlines()) == 1


def test_what_is_no_file_or_no_network_is_refused_by_name(tmp_path, command_line):
    stored(tmp_path, "a.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pt")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for other in ("b.pt", "empty.safetensors", "folder", "no.safetensors"):
        got = command_line("a.safetensors", other)
        assert got.exit_code == 2
        assert other in got.output
        assert "expected a .safetensors file" in got.output
    a = "a.safetensors"
    for model, word in (("odd_nets:number", "int"), ("odd_nets:absent", "no such")):
        got = command_line(a, a, model)
        assert (got.exit_code, word in got.output) == (2, True)
    for shape in ("x", "0", "2,-1", ""):
        got = command_line(a, a, "odd_nets:build", "--shape", shape)
        assert got.exit_code == (2 if shape else 0)
        assert ("shape: expected" in got.output) == bool(shape)
    assert command_line(a, a, "odd_nets:build", "--shape", "3").exit_code == 2


@torch.no_grad()
def test_precision_decides_what_counts_as_rounding(tmp_path, command_line):
    """The same weights in half the bits are the same; two per cent of noise is not."""
    stored(tmp_path, "a.safetensors")
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        stored(
            tmp_path,
            "b.safetensors",
            lambda s, k=kind: {n: t.to(k) for n, t in s.items()},
        )
        got = command_line("a.safetensors", "b.safetensors")
        assert got.output.startswith("the same function"), (kind, got.output)
    stored(
        tmp_path,
        "c.safetensors",
        lambda s: {n: t + 0.02 * t.norm() / t.numel() ** 0.5 for n, t in s.items()},
    )
    for other in "ac":
        got = command_line(f"{other}.safetensors", "c.safetensors")
        assert got.output.startswith("the same") == (other == "c")
