"""Functions that sweeps in the tests run; workers import this file by name."""

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Spec:
    """One run: what to do, and a number."""

    n: int
    what: str = "square"
    pause: float = 0.0
    folder: str = ""


def run(spec: Spec) -> dict:
    """Do what the spec says."""
    if spec.folder:  # one mark a try, so that tests can count them
        (Path(spec.folder) / f"{spec.n}-{time.time_ns()}").touch()
    time.sleep(spec.pause)
    return ACTS[spec.what](spec)


def square(spec: Spec) -> dict:
    draws = np.random.default_rng(spec.n).normal(size=3)
    return {"value": spec.n**2, "mean": draws.mean(), "draws": draws}


def raises(spec: Spec) -> dict:
    raise ZeroDivisionError(f"poison {spec.n}")


def once(spec: Spec) -> dict:
    """Fails at the first try only."""
    if len(list(Path(spec.folder).glob(f"{spec.n}-*"))) < 2:
        raise OSError("the first try fails")
    return square(spec)


class Unsendable(Exception):
    """Its text raises and it holds what cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.held = lambda: None

    def __str__(self):
        raise RuntimeError("no text")


def unsendable(spec: Spec) -> dict:
    raise Unsendable


def busy(spec: Spec) -> dict:
    while True:
        pass


def deaf(spec: Spec) -> dict:
    """Hangs inside one C call, where no Python error can be delivered."""
    libc = ctypes.PyDLL(None)  # holds no Python instruction until it returns
    ctypes.CDLL(None).sleep(1000) if libc else None
    return {}


ACTS = {
    "square": square,
    "raises": raises,
    "once": once,
    "unsendable": unsendable,
    "busy": busy,
    "deaf": deaf,
    "exit": lambda spec: sys.exit(3),
    "die": lambda spec: os._exit(4),
    "segfault": lambda spec: os.kill(os.getpid(), signal.SIGSEGV),
    "no dictionary": lambda spec: [1, 2],
    "no json": lambda spec: {"f": run},
    "clash": lambda spec: {"n": 1},
    "nan": lambda spec: {"value": float("nan")},
    "cuda": lambda spec: {"seen": os.environ.get("CUDA_VISIBLE_DEVICES")},
    "name": lambda spec: {"worker": os.environ.get("TEST_WORKER", "")},
}
