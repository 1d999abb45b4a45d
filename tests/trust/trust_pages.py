"""`python tests/trust/trust_pages.py` writes the two pages about what has been tried.

`book/modules.md` comes from the declared table, which a test holds to what happens;
`book/reliability.md` from `fuzz.yml`, what came of the last full run of `fuzz.py`.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from trust_expected import DATA_FREE, TABLE, refusal

ROOT = Path(__file__).resolve().parents[2]
FUZZ = yaml.safe_load((Path(__file__).parent / "fuzz.yml").read_text(encoding="utf-8"))
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

RELIABILITY = """# What is tried on each release

Three things are tried on all of `geolib` before a release, beside the tests that each
function has of its own.

**Networks.** {cells} cells of [a table of modules and functions](modules.md) are right
against an independent answer or refused for a stated reason. Two thousand random modules,
drawn from a grammar of layers with skips, sharing, layers used again or in vain, changes
in place and frozen parts, are compared with central differences of the module itself: the
outputs, products, the dense metric and one solve each. A draw is left out where the
differences to the left and to the right disagree, since there is no derivative to compare
with. On what is left {random}.

**Wrong arguments.** Every public function, constructor and method that its own doctest
runs is called again with one wrong argument at a time: `None`, text, an empty list or
dict, a number; of a tensor NaN, infinite, huge or negative entries, no rows, an axis more,
a row less, whole numbers, flags, a sparse layout; of a number NaN, infinity, zero, a
negative, a huge one, a fraction; of a module NaN weights, another module, a class. Of
{total} wrong arguments came:

{counts}

*Named* is an error of the library's own that names the argument and says what was
expected; *unnamed* one of its own that names another; *answered* is a result without NaN,
which is right for many of these (a negative tensor is no fault where any real number will
do) and is not checked further here; *raw* is an error from inside torch, NumPy, SciPy or
Python; *NaN* is a result with a NaN where the unspoilt call has none; *slow* took more than
a minute. The doors of the press and of the sweeps are not in the table: they start
processes and write files, and their own tests try them.

A test holds these counts: none of the last three may rise.

**Where it falls short.** These arguments are not yet refused by name:

{open}
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


def reliability_page():
    """The page of what came of wrong arguments."""
    from trust_expected import cells

    counts = FUZZ["counts"]
    verdicts = list(next(iter(counts.values())))
    lines = [line(["", *verdicts]), line(["---", *["--:"] * len(verdicts)])]
    lines += [line([f"`{r}`", *map(str, c.values())]) for r, c in counts.items()]
    sums = [sum(c[v] for c in counts.values()) for v in verdicts]
    lines.append(line(["all", *map(str, sums)]))
    left = [
        f"- `{name}`: " + "; ".join(f"{k} ({v})" for k, v in kinds.items())
        for name, kinds in FUZZ["open"].items()
    ]
    return RELIABILITY.format(
        cells=len(cells()),
        random=FUZZ["random"],
        total=f"{sum(sums):,}".replace(",", " "),
        counts="\n".join(lines),
        open="\n".join(left) or "none.",
    )


PAGES = {"modules": modules_page, "reliability": reliability_page}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (ROOT / "book" / f"{page}.md").write_text(text(), encoding="utf-8")
