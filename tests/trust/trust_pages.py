"""`python tests/trust/trust_pages.py` writes the two pages about what has been tried.

`book/modules.md` comes from the declared table and `book/reliability.md` from the counts
of `reliability.yml`; tests hold both to what happens.
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
random state are the same after each call. [What is tried on each release](reliability.md)
has the rest.

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
    # The headings stand upright: fifteen names side by side are wider than a page.
    return "\n".join([":::{container} upright", *lines, ":::"])


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


RELIABILITY = """# What is tried on each release

Whoever computes with a library wants to know what has been tried to break it. This page is
made from counts that tests compare with what the code does: `make test` tries a sample,
`make test-data` all of it.

## Wrong arguments

Each public function has an example in its documentation. The arguments of that call are
replaced, one at a time, by values that are wrong or unusual: NaN, infinities, nothing at all,
another shape or type, complex and half precision, tensors that require gradients, negative
and huge numbers, unknown names and devices, and a few drawn from fixed seeds ({seeds}).
{tried} such calls were made.

{fuzz}

*Named* is an error of the library that names the argument, *unnamed* one that does not;
*answered* a result without NaN, where the value was unusual and not wrong. A call is *bad*
where the error came from inside another library, a NaN was passed on in silence, or a
minute was not enough.{missing}

## Networks that are drawn

Small networks are drawn from a grammar of layers, with shared weights, skip connections,
layers that work in place and frozen parts. The products of `geolib.core` are compared with
finite differences and its solves with dense algebra: {modules[test]} networks on each run of
the tests, {modules[data]} before a release. No difference is left. [Which modules
work](modules.md) has the named ones.

## Properties

These tests state a law, and a search looks for an input that breaks it. Each had none.

{properties}

## Honest answers

What says `converged`, `holds`, `exact` or `applies` has an input for which the right answer
is *no*. {honest} tests hold only such inputs; the other claims have theirs beside
the tests of what they belong to.

## Lines that were broken

A certificate or a guard that no test can catch lying is worth nothing. So {broken} of their lines
were broken on purpose, one at a time in a copy of the package, and the tests were run:
{seen} of them failed a test, which is named here in words. `python tests/trust/mutate.py`
does it again; the lines themselves are in `tests/trust/mutations.yml`.

:::{{dropdown}} The {broken} lines, and the test that notices each
{mutations}
:::
"""


def table(head, rows):
    """A pipe table."""
    return "\n".join(line(cells) for cells in (head, ["---"] * len(head), *rows))


def words(test):
    """The name of a test as words: a long name cannot be broken into lines."""
    name = test.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    return f"*{name}*" if name else "no test"


def reliability_page():
    """The page of what is tried."""
    from fuzz import BAD, ROOMS, SEEDS, STORED
    from mutate import mutations

    good = [v for v in next(iter(STORED["fuzz"].values())) if v not in BAD]
    rows, totals = [], []
    for room, counts in STORED["fuzz"].items():
        numbers = [*(counts[v] for v in good), sum(counts[v] for v in BAD)]
        rows.append([f"[{room}](api/{room}.md)", *map(str, numbers)])
        totals.append(numbers)
    sums = [sum(column) for column in zip(*totals, strict=True)]
    lines = [
        [e["what"], e["file"].removeprefix("geolib/"), e.get("seen", "")]
        for e in mutations()
    ]
    noticed = [
        [w, f.replace("_", " ").removesuffix(".py").replace("/", ": "), words(s)]
        for w, f, s in lines
    ]
    absent = [f"`{room}`" for room in ROOMS if room not in STORED["fuzz"]]
    return RELIABILITY.format(
        missing=f" Not counted yet: {', '.join(absent)}." if absent else "",
        seeds=", ".join(map(str, SEEDS)),
        tried=sum(sums),
        fuzz=table(["", *good, "bad"], [*rows, ["all", *map(str, sums)]]),
        modules=STORED["modules"],
        properties=table(
            ["", "laws"],
            [[f"[{r}](api/{r}.md)", str(n)] for r, n in STORED["properties"].items()],
        ),
        honest=STORED["honest no"],
        broken=len(lines),
        seen=sum(bool(s) for *_, s in lines),
        mutations=table(
            ["what is wrong then", "where", "the test that notices"], noticed
        ),
    )


PAGES = {"modules": modules_page, "reliability": reliability_page}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (ROOT / "book" / f"{page}.md").write_text(text(), encoding="utf-8")
