"""Files that survive a kill: tensors and a small record, written at once or not."""

from __future__ import annotations

import json
import os
from pathlib import Path as File
from typing import Any

from torch import Tensor


def save(file: str | File, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
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

    file = File(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".part{os.getpid()}")
    flat = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    save_file(flat, part, {"record": json.dumps(record)})
    os.replace(part, file)


def load(file: str | File) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is not one of ours or is damaged; it is named.
        FileNotFoundError: no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not File(file).exists():
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


def write_json(file: str | File, value: Any) -> None:
    r"""Write JSON at once or not at all; stable order, one line per entry.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_json(folder + "/a.json", {"b": 1})
        >>> File(folder + "/a.json").read_text()
        '{\n "b": 1\n}\n'
    """
    file = File(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".part{os.getpid()}")
    part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(part, file)
