r"""What an audit returns, for the terminal, the notebook and the machine."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geolib.naturality.defect import Defect

NONLINEAR = ("radial", "sinh", "coupling")
TINTS = {
    "exact": "#009E73",
    "natural": "#56B4E9",
    "unnatural": "#D55E00",
    "undecided": "#777777",
    "undefined": "#bbbbbb",
}


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.2g}"


@dataclass(frozen=True, repr=False)
class AuditReport:
    """The defects of one optimizer, by family of reparameterizations.

    Attributes:
        optimizer: its name.
        defects: by family.
        title: the task, for headings.
        space: where ends were compared.
    """

    optimizer: str
    defects: dict[str, Defect]
    title: str = ""
    space: str = "parameters"

    @property
    def letters(self) -> str:
        """One letter a family: E exact, N natural, U unnatural, ? and -."""
        return "".join(d.letter for d in self.defects.values())

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of each family."""
        return {k: d.verdict for k, d in self.defects.items()}

    def __getitem__(self, family: str) -> Defect:
        return self.defects[family]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return format_table(self._cells(), f"{self.optimizer} ({self.title})")

    def _cells(self) -> list[list[str]]:
        rows = [["family", "verdict", "defect D(h)", "slope", "plateau"]]
        for name, d in self.defects.items():
            exact = d.verdict == "exact"
            size = max(d.values) if exact else d.values[-1]
            rows.append(
                [
                    name,
                    d.verdict,
                    _number(size),
                    "-" if exact else _number(d.slope),
                    "-" if exact else _number(d.plateau),
                ]
            )
        return rows

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        lines = ["<tr>" + "".join(f"<th>{c}</th>" for c in head) + "</tr>"]
        for row in body:
            tint = TINTS[row[1]]
            cells = [html.escape(c) for c in row]
            cells[1] = (
                f'<span style="border-left:5px solid {tint};padding-left:.4em;'
                f'font-weight:600">{cells[1]}</span>'
            )
            lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
        title = html.escape(f"{self.optimizer} ({self.title})")
        return f"<table><caption>{title}</caption>{''.join(lines)}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: title, space, and every defect with its evidence."""
        return {
            "optimizer": self.optimizer,
            "title": self.title,
            "space": self.space,
            "defects": {k: d.to_dict() for k, d in self.defects.items()},
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The same as JSON text (numbers that are not finite become null)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def format_table(rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Left-aligned columns of text, without trailing spaces.

    Examples:
        >>> print(format_table([["a", "b"], ["long", "c"]]))
        a     b
        long  c
    """
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in rows
    ]
    return "\n".join([title, *lines] if title else lines)


def classify(letters: dict[str, str]) -> str:
    """One word for a row of verdicts.

    `natural`: E on linear maps, and N or E on nonlinear ones; `affine`: E on all
    linear maps, U on a nonlinear one; `partly`: exact or natural for some class
    beyond permutations; `orthogonal`: exact for orthogonal maps only. Letters of
    several seeds are joined by a slash.

    Examples:
        >>> classify({"affine": "E", "coupling": "N"})
        'natural'
        >>> classify({"affine": "E", "coupling": "U"})
        'affine'
        >>> classify({"permutation": "E", "affine": "U", "coupling": "U"})
        'unnatural'
    """
    known = {k: v for k, v in letters.items() if v != "-"}
    linear = [v for k, v in known.items() if k not in NONLINEAR]
    curved = [v for k, v in known.items() if k in NONLINEAR]
    fine = {k for k, v in known.items() if set(v.split("/")) <= {"E", "N"}}
    if all(v == "E" for v in linear):
        if not curved:
            return "layer-affine"
        if fine == set(known):
            return "natural"
        return "affine" if "U" in curved else "undecided"
    good = fine - {"permutation"}
    if good and good <= {"orthogonal", "layer-orthogonal"}:
        return "orthogonal"
    return "partly" if good else "unnatural"
