"""Work that is too large for the device, done in the largest pieces that fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class DeviceMemoryError(MemoryError):
    """Not even the smallest piece fits into the device's memory."""


def fitting_batch(
    run: Callable[[int], Result], start: int, smallest: int = 1
) -> tuple[Result, int]:
    r"""Call `run(batch)` with the first batch size of a halving sequence that fits.

    .. math:: b_k = \max(\lfloor b_0 / 2^k \rfloor, b_{\min}), \qquad k = 0, 1, \dots

    `run` must start from nothing on every call: a call that ran out of memory is
    forgotten, its cached blocks are given back, and the next smaller size is tried.

    Args:
        run: the work, as a function of the batch size (in samples).
        start: batch size to try first.
        smallest: batch size below which there is no point in going on.

    Returns:
        The result, and the batch size that fitted.

    Raises:
        ValueError: sizes that are not `1 <= smallest <= start`.
        DeviceMemoryError: `smallest` did not fit; names every size that was tried.

    Cost: at most :math:`\log_2(b_0 / b_{\min}) + 1` calls.

    Source: ours.

    Examples:
        >>> fitting_batch(lambda batch: 10 * batch, 64)
        (640, 64)
    """
    if not 1 <= smallest <= start:
        raise ValueError(
            f"start, smallest: expected 1 <= smallest <= start, got {smallest}, {start}"
        )
    tried: list[int] = []
    batch = start
    while True:
        try:
            return run(batch), batch
        except torch.OutOfMemoryError as full:
            problem = str(full)  # its traceback would keep all that filled the device
        tried.append(batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch == smallest:
            raise DeviceMemoryError(
                f"the device ran out of memory at batch sizes {tried}; "
                f"use a smaller model or fewer outputs ({problem})"
            )
        batch = max(batch // 2, smallest)
