"""Files that survive a kill: tensors and a small record, written at once or not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor


def save(file: str | Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors and a JSON record to one safetensors file.

    It is written beside its place and then renamed, so that a kill leaves either the
    old file or the new one.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> save(folder + "/a.safetensors", {"w": torch.ones(2)}, {"step": 3})
        >>> load(folder + "/a.safetensors")
        ({'w': tensor([1., 1.])}, {'step': 3})
    """
    from safetensors.torch import save_file

    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".part{os.getpid()}")
    flat = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    save_file(flat, part, {"record": json.dumps(record)})
    os.replace(part, file)


def load(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is not one of ours or is damaged; it is named.
        FileNotFoundError: no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(file).exists():
        raise FileNotFoundError(f"checkpoint: no file {file}")
    try:
        with safe_open(str(file), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
            record = json.loads((handle.metadata() or {})["record"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"checkpoint: {file} is damaged or not one of ours ({error}); delete it "
            "and start again"
        ) from error
    return tensors, record
