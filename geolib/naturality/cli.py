"""The command `geolib audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from geolib.core.validation import expect
from geolib.files import imported, write_whole

from .affine_layers import affine_mlp
from .audit import Protocol
from .audit import audit as run_audit


def resolve_model(model: str, inputs: int, outputs: int) -> nn.Module:
    """A network from `mlp:8-8` (hidden widths) or `package.module:factory`.

    Raises:
        ValueError: text of neither form, or a factory that gives no module.
    """
    if model.startswith("mlp:"):
        try:
            hidden = [int(k) for k in model[4:].split("-") if k]
        except ValueError:
            raise ValueError(
                f"model: expected hidden widths as in mlp:8-8, got {model!r}"
            ) from None
        return affine_mlp([inputs, *hidden, outputs])
    factory = imported(model, "model", "mlp:WIDTHS or package.module:factory")
    module = factory() if not isinstance(factory, nn.Module) else factory
    wanted = f"a module of {model}"
    expect(isinstance(module, nn.Module), "model", wanted, type(module).__name__)
    return module


def read_data(name: str, samples: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The first `samples` standardised training pairs and the number of outputs."""
    from geolib.data import load

    d = load(name)
    x = torch.as_tensor(d.x[:samples]).double().reshape(min(samples, len(d.x)), -1)
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-3)
    y = torch.as_tensor(d.y[:samples])
    if not y.is_floating_point():
        return x, y.long(), int(torch.as_tensor(d.y).max()) + 1
    y = y.double().reshape(len(x), -1)
    return x, (y - y.mean(0)) / y.std(0), y.shape[1]


def audit(
    optimizer: Annotated[
        str, typer.Argument(help="Import path (torch.optim.AdamW) or a table's name.")
    ],
    model: Annotated[
        str, typer.Option(help="mlp:8 (hidden widths) or package.module:factory.")
    ] = "mlp:6",
    data: Annotated[str, typer.Option(help="A data set of geolib.data.")] = "digits",
    samples: Annotated[int, typer.Option(min=2, help="Training samples used.")] = 100,
    families: Annotated[
        str, typer.Option(help="Families, separated by commas; all when empty.")
    ] = "",
    space: Annotated[
        str, typer.Option(help="Compare `parameters` or `outputs`.")
    ] = "outputs",
    horizon: Annotated[float, typer.Option(help="Training time T.")] = 0.5,
    counts: Annotated[
        str, typer.Option(help="Numbers of steps to T of runs beside, at least two.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the random maps.")] = 0,
    json: Annotated[
        Path | None, typer.Option(help="Also write the report to this file.")
    ] = None,
) -> None:
    """Audit an optimizer: in which coordinate systems does it train alike?

    Example: geolib audit torch.optim.AdamW --model mlp:6 --data digits
    """
    names = families.split(",")
    try:
        x, y, outputs = read_data(data, samples)
        report = run_audit(
            optimizer,
            resolve_model(model, x.shape[1], outputs),
            (x, y),
            families=[f for f in names if f] or None,
            protocol=Protocol(horizon, _integers(counts), space, seed),
        )
    except (ValueError, TypeError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(str(report))
    if json is not None:
        write_whole(json, report.to_json())


def _integers(counts: str) -> list[int]:
    try:
        return [int(k) for k in counts.split(",") if counts]
    except ValueError:
        message = f"counts: expected integers as in 16,32, got {counts!r}"
        raise ValueError(message) from None
