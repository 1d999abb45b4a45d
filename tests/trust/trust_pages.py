"""`python tests/trust/trust_pages.py` writes the two pages about what has been tried.

`book/modules.md` comes from the declared table, which a test holds to what happens;
`book/reliability.md` from `measured.json`, what came of the last full run.
"""

from __future__ import annotations

from pathlib import Path

from trust_expected import DATA_FREE, TABLE, refusal

ROOT = Path(__file__).resolve().parents[2]
SOLVES = [f for f in TABLE["functions"] if f.startswith("solve ")]
COLUMNS = {
    "products": ["jvp", "vjp"],
    "`dense`": ["dense"],
    "`spectrum`": ["spectrum"],
    "`solve`": SOLVES,
    **{
        f"`{f}`".replace("sparsify units`", "sparsify`, units"): [f]
        for f in TABLE["functions"]
        if f not in ("jvp", "vjp", "dense", "spectrum", *SOLVES)
    },
}
MODULES = """# Which modules work

Each row is a kind of network, each column a function of `geolib`. A check mark says that
the answer was compared with one that shares no code with the library, and agreed; a number,
that the library refuses by an error with a name, for the reason below the tables. There is
nothing between the two: a test holds every cell to what happens, and fails where a cell
that is marked answers wrongly, or where one that is said to be refused answers.

The networks are tiny, in float64 unless the row says otherwise, and in evaluation mode. Of
{count} cells {right} are right and {refused} are refused. The module, its modes and torch's
random state are the same after each call.

## Networks

{networks}

## Data

{data}

A dash stands where a function takes no data as an argument.

## Why not

{reasons}

## What each is compared with

{compared}
"""


def line(cells):
    """One row of a pipe table."""
    return f"| {' | '.join(cells)} |"


def mark(row, functions):
    """A check mark, the numbers of reasons, or both where some of them are right."""
    entries = [refusal(row, f) for f in functions]
    numbers = sorted({TABLE["refused"].index(e) + 1 for e in entries if e})
    text = ", ".join(map(str, numbers))
    return f"✓, {text}" if numbers and None in entries else text or "✓"


def grid(rows, skipped=()):
    """A table of rows by columns."""
    head = ["", *COLUMNS]
    lines = [line(head), line(["---", *[":-:"] * len(COLUMNS)])]
    for row, title in rows.items():
        cells = ["–" if fs[0] in skipped else mark(row, fs) for fs in COLUMNS.values()]
        lines.append(line([title, *cells]))
    return "\n".join(lines)


def modules_page():
    """The page of the table."""
    from trust_expected import cells

    every = cells()
    refused = sum(refusal(*c) is not None for c in every)
    names = {f: c for c, fs in COLUMNS.items() for f in fs}
    reasons = []
    for n, entry in enumerate(TABLE["refused"], 1):
        which = ", ".join(dict.fromkeys(names[f] for f in entry["functions"]))
        reasons.append(f"{n}. {which}: {entry['because']}")
    compared = [
        f"- {names[f] if f not in ('jvp', 'vjp') else '`' + f + '`'}: {text}."
        for f, text in TABLE["functions"].items()
        if text
    ]
    return MODULES.format(
        count=len(every),
        right=len(every) - refused,
        refused=refused,
        networks=grid(TABLE["modules"]),
        data=grid(TABLE["data"], DATA_FREE),
        reasons="\n".join(reasons),
        compared="\n".join(compared),
    )


PAGES = {"modules": modules_page}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (ROOT / "book" / f"{page}.md").write_text(text(), encoding="utf-8")
