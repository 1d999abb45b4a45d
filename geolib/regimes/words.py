"""Traces of words in A and S, and their time derivatives along the flow."""

from __future__ import annotations

from collections import Counter
from functools import cache

KINDS = ("train", "population")

# One factor A differentiated: A' = -2 A S A - S A A - A A S + 2 S A + 2 A S.
VELOCITY = (("ASA", -2), ("SAA", -1), ("AAS", -1), ("SA", 2), ("AS", 2))
FREE_VELOCITY = VELOCITY[:3]


@cache
def canonical(word: str) -> str:
    """The first of a trace's rotations and reversals in the alphabet.

    tr W is unchanged by rotation, and by reversal as A and S are symmetric.

    Examples:
        >>> canonical("SAAS")
        'AASS'
    """
    back = word[::-1]
    turns = range(len(word))
    return min(w[i:] + w[:i] for w in (word, back) for i in turns) if word else ""


def start(kind: str) -> dict[str, int]:
    """Twice the loss as a sum of traces.

    Examples:
        >>> start("train")
        {'S': 1, 'AS': -2, 'AAS': 1}
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    tail = "S" if kind == "train" else ""
    return {canonical("A" * k + tail): cf for k, cf in ((0, 1), (1, -2), (2, 1))}


def derive(traces: dict[str, int], target: bool = True) -> dict[str, int]:
    """The time derivative of a sum of traces along the flow.

    Examples:
        >>> derive({"A": 1})
        {'AAS': -4, 'AS': 4}
    """
    out: Counter[str] = Counter()
    for word, factor in traces.items():
        for i, letter in enumerate(word):
            if letter == "A":
                for piece, k in VELOCITY if target else FREE_VELOCITY:
                    out[canonical(word[:i] + piece + word[i + 1 :])] += k * factor
    return {word: k for word, k in out.items() if k}


def loss_words(kind: str, order: int) -> list[dict[str, int]]:
    r"""Twice the loss and its first `order` time derivatives as sums of traces.

    .. math:: 2 L_{train} = tr S - 2\, tr SA + tr SAA , \qquad
        2 L_{pop} = d - 2\, tr A + tr AA

    Args:
        kind: `train` or `population`.
        order: highest derivative.

    Returns:
        One dictionary {canonical word: integer} a derivative, from the zeroth.

    Raises:
        ValueError: an unknown kind or a negative order.

    Source: spec section 3.1.

    Examples:
        >>> loss_words("population", 1)[1]
        {'AAS': 16, 'AS': -8, 'AAAS': -8}
    """
    if order < 0:
        raise ValueError(f"order: expected 0 or more, got {order}")
    return [dict(_derivative(kind, s)) for s in range(order + 1)]


@cache
def _derivative(kind: str, order: int) -> dict[str, int]:
    return derive(_derivative(kind, order - 1)) if order else start(kind)
