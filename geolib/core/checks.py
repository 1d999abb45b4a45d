"""What comes in at a door is what its annotation says: the one check of arguments.

Tensors, arrays and modules must be finite, and so must numbers but for a few; a number's
range is told by its name. `Annotated` says what a type cannot: the axes of a tensor and
which of them are equally long in several arguments, ``Annotated[Tensor, "n d"]`` (of a list,
``"n"``: none of them is empty); the range of a number, or of each in a list,
``Annotated[float, "0 <= share < 1"]``; the words that are known, ``Annotated[str, METHODS]``.
"""

from __future__ import annotations

import dis
import functools
import inspect
import math
from collections import abc
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .validation import ArgumentError, Inputs, short

COUNT = "a whole number above zero", lambda v: 1 <= v <= 10**9
SIZE = "a non-negative integer", lambda v: v >= 0
POSITIVE = "a finite number above zero", lambda v: v > 0
SIGNLESS = "a finite number >= 0", lambda v: v >= 0
SHARE = "a share of zeros in [0, 1)", lambda v: 0 <= v < 1
# Names mean the same everywhere, so that each has its range here, once.
RANGES = {
    "max_sweeps max_iterations max_iter max_steps steps batch batch_size bins nodes samples "
    "candidates chunk segments count grid every surgery_every smallest side "
    "channels classes n_components stages limit probes": COUNT,
    "seed iterations memory split jets depth": SIZE,
    "lr beta reach step h rho kappa sigma2 c budget slack size penalty": POSITIVE,
    "rtol atol tol tolerance damping reg_covar friction patience decades "
    "plateau max_rise bias_scale amount horizon gap eps": SIGNLESS,
    "sparsity": SHARE,
}
BOUNDS = {name: bound for names, bound in RANGES.items() for name in names.split()}
INFINITE = dict.fromkeys("patience target budget clip horizon".split(), math.inf)
INFINITE["tol"] = -math.inf  # never: with more than all numbers all would converge
# Of these tensors whole numbers are no use; inputs, labels and masks may hold them.
FLOATING = (
    "theta theta0 points outputs v u g z w eta eta0 natural natural0 teacher control logits y0 "
    "G a b V t lower upper log_mass"
).split()
SINGLE = (torch.float32, torch.float64)
FLOATS = (*SINGLE, torch.float16, torch.bfloat16)
WORDS: dict[Any, str] = {
    Tensor: "a tensor",
    np.ndarray: "finite real numbers",
    ArrayLike: "finite real numbers",
    nn.Module: "an nn.Module",
    Inputs: "a tensor, a dict or a tuple of tensors",
    float: "a finite number",
    int: "a whole number",
    NoneType: "None",
}
Fault = type[Exception] | None  # what kind of error a value deserves


Rule = abc.Callable[[Any], Fault]


class Arguments:
    """What a function's arguments must be, by name."""

    def __init__(self, fn: Any) -> None:
        self.fn, kinds = fn, inspect.signature(fn).parameters
        self.undefined = "NaN" in (fn.__doc__ or "")  # where it may be
        hints = get_type_hints(fn, include_extras=True)
        self.rules = {n: rule(hints.get(n, Any), n) for n in kinds}
        inner = {n: rule(hints.get(n, Any), n, True) for n in kinds}
        lenient = {
            n: (partial(_within_fault, f), w, a) for n, (f, w, a) in inner.items()
        }
        self.known = self.rules, lenient
        self.names = [n for n, p in kinds.items() if p.kind != p.KEYWORD_ONLY]
        self.many = [n for n, p in kinds.items() if p.kind == p.VAR_POSITIONAL]

    def name_module(self, error: Exception, given: dict[str, Any]) -> None:
        """What is said of a `module` is said of the argument that it came as."""
        named = [n for n in given if n != "self" and isinstance(given[n], nn.Module)]
        said = str(error).startswith("module: ") and "module" not in self.rules
        if named and said:
            error.args = (f"{', '.join(named)}: {error}",)

    def call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The function's value; what fails in a module's forward pass is said so."""
        try:
            value = self.fn(*args, **kwargs)
        except Exception as error:
            given = dict([*zip(self.names, args, strict=False), *kwargs.items()])
            if not foreign(error, given):
                self.name_module(error, given)
                raise
            fed = (n for n, v in given.items() if n != "self" and isinstance(v, FED))
            ended = f"it ended in {type(error).__name__}: {str(error)[:150]}"
            wanted = f"what the module or function given takes; {ended}"
            raise ArgumentError(f"{', '.join(fed)}: expected {wanted}") from error
        if not self.undefined and undefined(value):
            names = ", ".join(n for n in self.names if n != "self")
            what = f"the result of {self.fn.__name__} is not a number"
            what = f"{names}: too large, or unfit for each other; {what}"
            raise FloatingPointError(what)
        return value

    def check(self, args: tuple, kwargs: dict[str, Any], within: bool) -> None:
        """Refuse by name the first argument that does not fit."""
        sizes: dict[str, tuple[int, str]] = {}
        known = self.known[within]
        rest = self.many * (len(args) - len(self.names))
        given = [*zip([*self.names, *rest], args, strict=False), *kwargs.items()]
        for name, value in given:
            fits, wanted, axes = known.get(name) or option("" if within else name)
            if fault := fits(value):
                raise ArgumentError(f"{name}: {complaint(wanted, value, fault)}")
            if axes and (odd := axes_fault(axes, sizes, name, value, given)):
                raise ArgumentError(f"{name}: expected {wanted}{odd}")


@functools.cache
def option(name: str) -> tuple[Rule, str, str]:
    """What fits one of ``**options``: a number of a known name has its range."""
    whole = BOUNDS.get(name) in (COUNT, SIZE)
    return rule((int if whole else float) | None if name in BOUNDS else Any, name)


def rule(hint: Any, name: str, within: bool = False) -> tuple[Rule, str, str]:
    """What fits an annotation, its words, and the names of a tensor's axes."""
    told: Any = ""
    real = False
    if get_origin(hint) is Annotated:
        hint, told = get_args(hint)
    fits, text, bound = kind_rule(hint, within), words(hint), BOUNDS.get(name)
    ranged = isinstance(told, str) and ("<" in told or ">" in told)
    if bound and not ranged and text.startswith((WORDS[int], WORDS[float])):
        whole, text = text.startswith(WORDS[int]), bound[0]
        text = text.replace("a finite number", WORDS[int]) if whole else text
        fits = partial(_bounded_fault, fits, bound[1])
    if name in INFINITE:
        fits = partial(_endless, fits, INFINITE[name])
    if not isinstance(told, str):
        text = text.replace("a str", f"one of {', '.join(map(repr, told))}")
        fits, told = partial(_known_fault, fits, told), ""
    elif told.startswith("real"):
        told = told.removeprefix("real").strip()
        real = True
    elif ranged:
        holds = eval(f"lambda {name}: {told}", {"inf": math.inf})
        fits = partial(_bounded_fault, fits, holds)
        text, told = f"{text} with {told}", ""
    if name == "device":
        text, fits = "a device of this machine", partial(_device_fault, fits)
    if real or name in FLOATING:
        wanted = "float32 or float64" if real else "floating numbers"
        text = text.replace("a tensor", f"a tensor of {wanted}")
        fits = partial(_whole_fault, fits, SINGLE if real else FLOATS)
    if told:
        axes = (axis if axis == "..." else axis.split(".")[-1] for axis in told.split())
        text += f" of shape ({', '.join(axes)})"
    return fits, text, told


def _known_fault(fits: Rule, known: abc.Collection, value: Any) -> Fault:
    return fits(value) or (ValueError if value not in (None, *known) else None)


def _bounded_fault(fits: Rule, holds: abc.Callable[[Any], bool], value: Any) -> Fault:
    if (fault := fits(value)) or value is None:
        return fault
    flat = np.ravel(value.detach().cpu() if isinstance(value, Tensor) else value)
    ends = (flat.min(), flat.max()) if flat.size and flat.dtype.kind in "iuf" else ()
    return None if all(map(holds, ends)) else ValueError


def _endless(fits: Rule, end: float, value: Any) -> Fault:
    endless = isinstance(value, float) and value in (end, -math.inf)
    return None if endless else _diverged(fits, value)


def _diverged(fits: Rule, value: Any) -> Fault:
    fault = fits(value)
    return fault if isinstance(value, int | float) or fault is not ValueError else None


def _within_fault(fits: Rule, value: Any) -> Fault:
    """Within the library a diverged run goes on, and a pair of units may be complex."""
    complex_pair = isinstance(value, Tensor) and value.is_complex()
    return None if complex_pair else _diverged(fits, value)


def _device_fault(fits: Rule, value: Any) -> Fault:
    fault = fits(value)
    try:
        if fault is None and value is not None:
            torch.empty(0, device=value)
        return fault
    except (RuntimeError, AssertionError):
        return ValueError


def _whole_fault(fits: Rule, dtypes: abc.Collection, value: Any) -> Fault:
    other = isinstance(value, Tensor) and value.dtype not in dtypes
    return TypeError if other else fits(value)


def axes_fault(
    axes: str, sizes: dict[str, tuple[int, str]], name: str, value: Any, given: Any
) -> str:
    """What is odd about a shape: its axes, none of them empty, or one's length elsewhere."""
    names, listed = axes.split(), isinstance(value, list | tuple | abc.Mapping)
    if listed and len(names) == 1:
        shape: tuple[int, ...] = (len(value),)
    elif hasattr(value, "shape") or isinstance(value, list | tuple | int | float):
        shape = tuple(getattr(value, "shape", ()) or np.shape(value))
    else:
        return ""
    got = f", got shape {shape}"
    if names[0] == "...":
        names, shape = names[1:], shape[max(0, len(shape) - len(names) + 1) :]
    elif names[-1] == "...":
        names, shape = names[:-1], shape[: len(names) - 1]
    if len(names) != len(shape) or 0 in shape:
        return got
    for axis, size in zip(names, shape, strict=True):
        if "." in axis:  # what another argument says of itself
            other, _, attribute = axis.partition(".")
            whole = dict(given)[other]
            sizes[axis] = int(attrgetter(attribute)(whole)), type(whole).__name__
        wanted, other = sizes.setdefault(axis, (size, name))
        if axis.isdigit() and size != int(axis):
            return got
        if size != wanted:
            return f" with {axis.split('.')[-1]} = {wanted} as in {other}{got}"
    return ""


@functools.cache
def kind_rule(hint: Any, within: bool = False) -> Rule:
    """What a value must be to fit an annotation: a function to the error it deserves.

    Within the library nobody looks whether tensors are finite, which costs a pass.
    """
    origin, parts = get_origin(hint) or hint, members(hint)
    if hint == ArrayLike:
        return _array_fault
    if hint is Tensor:
        return partial(_tensor_fault, within)
    if origin in (Union, UnionType):
        return partial(_union_fault, [kind_rule(part, within) for part in parts])
    if origin is Literal:
        return lambda v: None if v in parts else ValueError
    if origin in RULES:
        return RULES[origin]
    if not inspect.isclass(origin) or origin in (Any, object):
        return lambda v: None
    if getattr(origin, "_is_protocol", False):
        return partial(_alike_fault, origin)
    return partial(_kind_fault, origin, parts, within)


def members(hint: Any) -> tuple:
    """The parts of an annotation; `ArrayLike`, itself a union of many, is one of them."""
    parts, many = get_args(hint), get_args(ArrayLike)
    if hint == ArrayLike or any(part not in parts for part in many):
        return parts
    return ArrayLike, *(p for p in parts if p not in many)


def _union_fault(rules: list[Rule], value: Any) -> Fault:
    found = [one(value) for one in rules]
    near = ValueError if ValueError in found else TypeError
    return None if None in found else near


def _kind_fault(kind: type, parts: tuple, within: bool, value: Any) -> Fault:
    if kind in LISTS and isinstance(value, np.ndarray | Tensor):
        whole = parts != (int,) or "int" in str(value.dtype)
        return _array_fault(value) if whole else TypeError
    if kind in LISTS and isinstance(value, list | tuple):
        return _inside(parts, within, tuple(value) if kind is tuple else value)
    fits = isinstance(value, kind) and not (type(value) is str and kind is not str)
    if not fits:  # what behaves alike will do, unless it is of a kind that cannot
        plain = kind is nn.Module or isinstance(value, PLAIN | Tensor | np.ndarray)
        return TypeError if plain else _alike_fault(kind, value)
    if isinstance(value, nn.Module):
        good = (not nn.parameter.is_lazy(p) and finite(p) for p in value.parameters())
        return None if within or all(good) else ValueError
    return _inside(parts, within, value)


def _alike_fault(kind: type, value: Any) -> Fault:
    """Whether a value has what the class offers, and can be called if instances can."""
    offered = [n for n in vars(kind) if n[0] != "_" or n == "__call__"]
    return None if all(hasattr(value, n) for n in offered) else TypeError


def _inside(parts: tuple, within: bool, value: Any) -> Fault:
    """The first fault among the entries of a list, tuple or mapping."""
    if isinstance(value, abc.Mapping) and len(parts) == 2:
        pairs = [(parts[1], v) for v in value.values()]
    elif isinstance(value, tuple) and parts and parts[-1] is not Ellipsis:
        same = parts if len(parts) > 1 else parts * len(value)
        if len(same) != len(value):
            return ValueError
        pairs = list(zip(same, value, strict=True))
    elif isinstance(value, list | tuple) and parts:
        pairs = [(parts[0], v) for v in value]
    else:
        return None
    return next(filter(None, (kind_rule(part, within)(v) for part, v in pairs)), None)


def _tensor_fault(within: bool, value: Any) -> Fault:
    if not isinstance(value, Tensor) or value.is_nested or value.is_complex():
        return TypeError
    if value.layout != torch.strided:
        return TypeError
    return None if within or finite(value) else ValueError


def foreign(error: Exception, given: dict[str, Any]) -> bool:
    """Whether a module or function of the caller's was given what it cannot take.

    Not what it raises by itself, errors of kinds of their own, and a lack of memory.
    """
    if type(error) not in UNNAMED or "memory" in str(error):
        return False
    me = given.get("self")
    kept = getattr(me, "__dict__", {}).items()
    held = [*given.values(), *(v for n, v in kept if not hasattr(type(me), n))]
    codes = [v.__code__ for v in held if hasattr(v, "__code__")]
    own = {c for c in codes if HOME not in c.co_filename}
    own.add(nn.Module._call_impl.__code__)
    places = list(_frames(error.__traceback__))
    last, at = places[-1]
    raised = last in own and last.co_code[at] == dis.opmap["RAISE_VARARGS"]
    inside = any(code in own for code, _ in places)
    return inside and not raised and HOME not in last.co_filename


def _frames(tb: Any) -> abc.Iterator[tuple[Any, int]]:
    """The code of each frame, and the instruction at which it is."""
    while tb is not None:
        yield tb.tb_frame.f_code, tb.tb_lasti
        tb = tb.tb_next


def undefined(value: Any) -> bool:
    """Whether a result, or a part of it, is NaN, and says nothing of it."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        return bool(np.isnan(value).any())
    if isinstance(value, Tensor):
        return not finite(value) and bool(value.isnan().any())
    if isinstance(value, tuple | list):
        return any(map(undefined, value))
    return isinstance(value, float) and math.isnan(value)


def finite(t: Tensor) -> bool:
    """Whether all entries are; what `vmap` maps over has no entries to look at."""
    with torch._C.DisableTorchFunction():  # no call of a model that is being watched
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(t)
        if wrapped or not t.is_floating_point() or t.is_meta:
            return True
        # a sum is quick, and overflows only where entries are huge
        return math.isfinite(t.detach().sum().item()) or bool(t.isfinite().all())


def _array_fault(value: Any) -> Fault:
    if isinstance(value, Tensor):
        return _tensor_fault(False, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return TypeError
    if array.dtype.kind not in "biuf":
        return TypeError
    return None if np.isfinite(array).all() else ValueError


def _float_fault(value: Any) -> Fault:
    if isinstance(value, str | bool):
        return TypeError
    try:
        return None if math.isfinite(value) else ValueError
    except OverflowError:
        return ValueError
    except (TypeError, ValueError, RuntimeError):
        return TypeError


def _int_fault(value: Any) -> Fault:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    return None if whole and not getattr(value, "shape", ()) else TypeError


RULES: dict[Any, Rule] = {
    np.ndarray: _array_fault,
    float: _float_fault,
    int: _int_fault,
    bool: lambda v: None if isinstance(v, int | np.bool_) else TypeError,
    str: lambda v: None if isinstance(v, str | torch.device) else TypeError,
    abc.Callable: lambda v: None if callable(v) else TypeError,
    NoneType: lambda v: None if v is None else TypeError,
}


HOME = str(Path(__file__).parents[1])
UNNAMED = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
FED = Tensor | abc.Mapping | tuple | list | abc.Callable
PLAIN = type | bytes | str | complex | int | float | None | list | tuple | dict
LISTS = (abc.Sequence, abc.Iterable, abc.Collection, list, tuple)


def words(hint: Any) -> str:
    """An annotation as a reader says it."""
    origin, parts = get_origin(hint) or hint, members(hint)
    for known in (ArrayLike, Inputs):
        if hint == known:
            return WORDS[known]
    if origin in (Union, UnionType):
        return " or ".join(words(part) for part in parts)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in WORDS:
        return WORDS[origin]
    if origin is abc.Callable:
        return "a function"
    if origin in LISTS and parts and parts[0] in (int, float):
        return WORDS[ArrayLike]
    name = getattr(origin, "__name__", str(origin))
    inside = [words(p) for p in parts if p not in (Any, Ellipsis)]
    return f"a {name} of {' and '.join(inside)}" if inside else f"a {name}"


def complaint(wanted: str, value: Any, fault: type[Exception]) -> str:
    """What was expected and what came, as an error message says it."""
    if isinstance(value, nn.Module) and fault is ValueError:
        lazy = (n for n, p in value.named_parameters() if nn.parameter.is_lazy(p))
        if name := next(lazy, None):
            return f"expected weights, but {name!r} is lazy; run the module once"
        held = (n for n, p in value.named_parameters() if not finite(p))
        return f"expected finite weights, but {next(held, 'it')} holds NaN or inf"
    if isinstance(value, Tensor | np.ndarray):
        t = torch.as_tensor(value) if value.dtype != object else torch.zeros(())
        if t.is_nested or t.layout != torch.strided:
            kind = "a nested one" if t.is_nested else f"layout {t.layout}"
            return f"expected a dense tensor, got {kind}; call .to_dense()"
        if not finite(t):
            bad = torch.nonzero(~torch.isfinite(t)).tolist()
            what = f"{len(bad)} of {t.numel()} entries are not finite"
            return f"expected finite numbers, {what}, the first at {bad[0]}"
        return f"expected {wanted}, got shape {tuple(t.shape)}, {value.dtype}"
    if fault is TypeError and not isinstance(value, int | float | NoneType):
        return f"expected {wanted}, got {type(value).__name__}"
    return f"expected {wanted}, got {short(value)}"
