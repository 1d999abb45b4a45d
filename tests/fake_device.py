"""A GPU that is not there: every tensor carries the device it would be on.

Inside `with FakeDevice():` code runs on the CPU, but tensors that were made for or moved
to "cuda" say so, and what a real GPU would refuse raises `Elsewhere`: tensors of two
devices in one operation, NumPy from a device tensor, an index on the wrong device.

A tensor made out of sight, in C++ or inside a compiled transform, carries no tag and
passes everywhere. A function that torch wrote in Python is seen as one call.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FACTORIES = set(
    "eye zeros ones empty full arange linspace logspace tensor from_numpy randint rand "
    "randn randperm tril_indices triu_indices scalar_tensor".split()
)
JOINS = {"cat", "stack", "hstack", "vstack", "concatenate", "column_stack"}
INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}
functorch = torch._C._functorch


class Elsewhere(RuntimeError):
    """What a GPU would refuse."""


def inner(t: Tensor) -> Tensor | None:
    """The tensor inside a wrapper of functorch (vmap, jvp, grad)."""
    wrapped = functorch.is_functorch_wrapped_tensor(t)
    return functorch.get_unwrapped(t) if wrapped else None


def where(t: Tensor | None) -> torch.device | None:
    """The device a tensor would be on; None where nothing is known."""
    while t is not None and "_place" not in t.__dict__:
        t = inner(t)
    return None if t is None else t.__dict__["_place"]


def tensors(*values: Any) -> list[Tensor]:
    """All tensors in values, in tuples, lists and dictionaries too."""
    found = []
    for v in values:
        if isinstance(v, Tensor):
            found.append(v)
        elif isinstance(v, tuple | list | dict):
            found += tensors(*(v.values() if isinstance(v, dict) else v))
    return found


def put(value: Any, place: torch.device | None) -> Any:
    """Tag all tensors of a result."""
    for t in tensors(value) if place is not None else ():
        while t is not None:
            t.__dict__["_place"] = place
            t = inner(t)
    return value


def named(device: Any) -> torch.device:
    return GPU if torch.device(device).type == "cuda" else CPU


class FakeDevice(TorchFunctionMode):
    def __enter__(self) -> FakeDevice:
        new = nn.Parameter.__new__

        def tagged(cls, data=None, requires_grad=True):  # made in C++
            p = new(cls, data, requires_grad)
            return p if data is None else put(p, where(data))

        self.patches = ExitStack()
        for owner, name, fake in (
            (nn.Parameter, "__new__", tagged),
            (torch.cuda, "mem_get_info", lambda device=None: (10**10, 10**10)),
            (torch.cuda, "synchronize", lambda device=None: None),
        ):
            self.patches.enter_context(mock.patch.object(owner, name, fake))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.patches.close()
        super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return _property(func, name, args)
        if name in ("to", "cuda", "cpu", "type_as"):
            return _move(func, name, args, kwargs)
        if name == "_has_compatible_shallow_copy_type":
            return where(args[0]) == where(args[1])
        if name in ("numpy", "__array__") and where(args[0]) == GPU:
            raise Elsewhere(f"{name}: of a tensor on {GPU}")
        place = _wanted(name, args, kwargs) or _common(name, args, kwargs)
        if kwargs.get("generator") is not None and place == GPU:
            raise Elsewhere(f"{name}: a generator of the CPU for a tensor on {GPU}")
        return put(func(*args, **kwargs), place)


def _wanted(name: str, args: tuple, kwargs: dict) -> torch.device | None:
    """The device that a call asks for; it is made on the CPU."""
    asked = kwargs.pop("device", None)
    if asked is not None:
        return named(asked)
    copied = name == "as_tensor" and not isinstance(args[0], Tensor)
    return CPU if copied or name in FACTORIES else None


def _common(name: str, args: tuple, kwargs: dict) -> torch.device | None:
    """The device of all operands; 0-dimensional tensors of the CPU may be anywhere."""
    if name in ("copy_", "fill_", "new_tensor"):
        return where(args[0])
    if name in INDEXING:
        return _indexed(name, *args)
    known = [(t, where(t)) for t in tensors(args, kwargs)]
    places = {p for t, p in known if p and (t.ndim or p == GPU or name in JOINS)}
    if name.endswith("_") and not name.endswith("__"):  # what is written stays there
        places |= {where(t) for t in tensors(args[:1])} - {None}
    if len(places) > 1:
        about = ", ".join(f"{tuple(t.shape)} on {place}" for t, place in known)
        raise Elsewhere(f"{name}: tensors on two devices: {about}")
    return next(iter(places), CPU if any(p for _, p in known) else None)


def _indexed(name: str, x: Tensor, index: Any, value: Any = None, *_: Any) -> Any:
    """A CPU index is good everywhere, a device's index and values only there."""
    home, others = where(x), tensors(value) if _picks(index) else []
    others += tensors(index) if home == CPU else []
    if any(t.ndim and {home, where(t)} == {CPU, GPU} for t in others):
        raise Elsewhere(f"{name}: an index or values on another device than {home}")
    return home


def _picks(index: Any) -> bool:
    """Whether an index is more than numbers and slices: those copy between devices."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, list) or getattr(p, "ndim", 0) > 0 for p in parts)


def _property(func: Any, name: str, args: tuple) -> Any:
    t, label, out = args[0], getattr(func.__self__, "__name__", ""), func(*args)
    if name == "__set__":
        place = where(args[1]) if isinstance(args[1], Tensor) else None
        if label == "grad" and {place, where(t)} == {CPU, GPU}:
            raise Elsewhere(f"grad: on {place} for a tensor on {where(t)}")
        return put(t, place if label == "data" else None)
    if label == "device":
        return where(t) or out
    if label == "is_cuda":
        return where(t) == GPU
    return put(out, where(t)) if isinstance(out, Tensor) and out is not t else out


def _move(func: Any, name: str, args: tuple, kwargs: dict) -> Tensor:
    t, rest = args[0], []
    place = {"cpu": CPU, "cuda": GPU}.get(name, where(t))
    if kwargs.get("device") is not None:
        place, kwargs["device"] = named(kwargs["device"]), CPU
    for a in args[1:]:
        if isinstance(a, Tensor):
            place = where(a) or place
        elif isinstance(a, str | torch.device):
            place, a = named(a), CPU
        rest.append(a)
    out = t if name == "cuda" else func(t, *rest, **kwargs)
    if out is t and place is not None and place != where(t):
        out = t.detach().clone() if isinstance(t, nn.Parameter) else t.clone()
    return put(out, place)
