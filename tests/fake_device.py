"""A GPU that is not there: every tensor carries the device it would be on.

Inside `with FakeDevice():` code runs on the CPU, but tensors that were made for or moved
to "cuda" say so, and what a real GPU would refuse raises `Elsewhere`: tensors of two
devices in one operation, NumPy from a device tensor, an index on the wrong device.

It cannot see into C++: a tensor made there carries no tag, and passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FACTORIES = set(
    "eye zeros ones empty full arange linspace logspace tensor from_numpy randint rand "
    "randn randperm tril_indices triu_indices scalar_tensor".split()
)
JOINS = {"cat", "stack", "hstack", "vstack", "concatenate", "column_stack"}
INDEXING = {"__getitem__", "__setitem__", "index_select", "index_put", "index_put_"}


class Elsewhere(RuntimeError):
    """What a GPU would refuse."""


def layers(t: Tensor) -> list[Tensor]:
    """A tensor and those inside its functorch wrappers (vmap, jvp, grad)."""
    found = [t]
    while torch._C._functorch.is_functorch_wrapped_tensor(found[-1]):
        found.append(torch._C._functorch.get_unwrapped(found[-1]))
    return found


def where(t: Tensor) -> torch.device | None:
    """The device a tensor would be on; None where nothing is known."""
    tags = (x.__dict__.get("_place") for x in layers(t))
    return next((tag for tag in tags if tag is not None), None)


def put(t: Any, place: torch.device | None) -> Any:
    """Tag all tensors of a result."""
    for leaf in tree_leaves(t):
        if isinstance(leaf, Tensor) and place is not None:
            for x in layers(leaf):
                x.__dict__["_place"] = place
    return t


def named(device: Any) -> torch.device:
    return GPU if torch.device(device).type == "cuda" else CPU


def tensors(*values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class FakeDevice(TorchFunctionMode):
    """See the module."""

    def __enter__(self) -> FakeDevice:
        new = self.new = nn.Parameter.__new__
        self.memory = torch.cuda.mem_get_info

        def tagged(cls, data=None, requires_grad=True):  # made in C++
            p = new(cls, data, requires_grad)
            return p if data is None else put(p, where(data))

        nn.Parameter.__new__ = tagged  # type: ignore[method-assign,assignment]
        torch.cuda.mem_get_info = lambda device=None: (10**10, 10**10)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        nn.Parameter.__new__ = self.new  # type: ignore[method-assign]
        torch.cuda.mem_get_info = self.memory
        super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return _property(func, name, args)
        if name in ("numpy", "__array__"):
            if where(args[0]) == GPU:
                raise Elsewhere(f"{name}: of a tensor on {GPU}")
            return func(*args, **kwargs)
        if name in ("to", "cuda", "cpu"):
            return _move(func, name, args, kwargs)
        if name == "_has_compatible_shallow_copy_type":
            return where(args[0]) == where(args[1])
        if name.startswith(("_foreach", "_fused")):
            return func(*args, **kwargs)
        place = _wanted(name, args, kwargs)
        if place is None:
            place = _common(name, args, kwargs)
        out = func(*args, **kwargs)
        if args and (name == "__setitem__" or _in_place(name)):
            place = where(args[0]) or place
        return put(out, place)


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _wanted(name: str, args: tuple, kwargs: dict) -> torch.device | None:
    """The device that a call asks for; it is made on the CPU."""
    asked = kwargs.pop("device", None)
    if asked is None:
        if name == "as_tensor" and not isinstance(args[0], Tensor):
            return CPU
        return CPU if name in FACTORIES else None
    place = named(asked)
    if kwargs.get("generator") is not None and place == GPU:
        raise Elsewhere(f"{name}: a generator of the CPU for a tensor on {GPU}")
    return place


def _common(name: str, args: tuple, kwargs: dict) -> torch.device | None:
    """The device of all operands; numbers in 0-dimensional tensors may be anywhere."""
    if name == "copy_":
        return where(args[0])
    if name in INDEXING:
        return _indexed(name, args, kwargs)
    known = [(t, where(t)) for t in tensors(args, kwargs)]
    places = {place for t, place in known if place and (t.ndim or name in JOINS)}
    if len(places) > 1:
        about = ", ".join(f"{tuple(t.shape)} on {place}" for t, place in known)
        raise Elsewhere(f"{name}: tensors on two devices: {about}")
    numbers = [place for _, place in known if place]
    return next(iter(places), GPU if GPU in numbers else next(iter(numbers), None))


def _indexed(name: str, args: tuple, kwargs: dict) -> torch.device | None:
    """A CPU index is good everywhere, a device's index and values only there."""
    home = where(args[0])
    rest = [t for t in tensors(args[1:], kwargs) if t.ndim]
    if home == CPU and any(where(t) == GPU for t in rest):
        raise Elsewhere(f"{name}: a tensor on {CPU} with an index or values on {GPU}")
    value = args[2] if name == "__setitem__" else None
    if home == GPU and isinstance(value, Tensor) and value.ndim and where(value) == CPU:
        raise Elsewhere(f"{name}: values on {CPU} for a tensor on {GPU}")
    return home


def _property(func: Any, name: str, args: tuple) -> Any:
    t, label = args[0], getattr(func.__self__, "__name__", "")
    out = func(*args)
    if name == "__set__":
        return put(t, where(args[1])) if label == "data" else out
    if label == "device":
        return where(t) or out
    if label == "is_cuda":
        return where(t) == GPU
    return out if out is t else put(out, where(t))


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
