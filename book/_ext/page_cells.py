"""What a page shows of an executed notebook: which lines are folded, claims, numbers."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterable
from html import unescape
from itertools import groupby
from typing import Any

from page_checks import checks_box, checks_table, said_aloud

from geolib.claims import MIMETYPE as CLAIM
from geolib.press.notebook import names_read, tags
from geolib.press.pair import without_traces
from geolib.press.verdict import settle
from geolib.tables import human

REMOVED = "remove-input"
# The source of a cell whose code went on; without one no output of it would be shown.
JOINED = "# with the next"
ALL_CHECKS = "all-checks"
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
GLUED = re.compile(r"\{glue:[^}]*\}`([^`]*)`")
QUOTE = "geolib.quote"
GLUE = "application/papermill.record/"
STATED = ("claim", "quote")
TOLD = (*STATED, "print", "show")
LONGEST = 15  # lines of code that a page shows in one piece
SHORTEST = 4  # lines up to which a piece that calls no algorithm of the library is none
OURS = ("geolib", "experiments", "path_lengths")
# What reads stored results, and not by an algorithm.
READS = {"measured", "column", "contested", "contest_lead", "sweep_rows", "means"}


def staged(executed: Any, page_source: str) -> Any:
    """The published form: no times but the whole's, no paths, claims as boxes, glue."""
    from nbformat import from_dict

    nb = without_traces(executed)
    cost = executed.metadata.get("geolib", {}).get("cost")
    nb.metadata["geolib"] = {"source": page_source, **({"cost": cost} if cost else {})}
    injected = any("injected-parameters" in tags(c) for c in nb.cells)
    for cell in nb.cells:
        names = tags(cell)
        if "parameters" in names:  # shown only where nothing overrides it
            names.append("remove-cell" if injected else "hide-input")
        if "injected-parameters" in names:
            names.append("hide-input")
        if names:
            cell.metadata["tags"] = names
    cells = _quiet(nb)
    stated = [_stated(c) for c in cells]
    checks = [[settle(o.metadata[CLAIM]) for o in claims] for claims in stated]
    every = [e for entries in checks for e in entries]
    prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    aloud = said_aloud(every, set(map(quoted, GLUED.finditer(prose))))
    for cell, claims, entries in zip(cells, stated, checks, strict=True):
        outputs = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            outputs += [output, *(from_dict(g) for g in _for_the_prose(output))]
        cell.outputs = outputs
        if claims:
            told = REMOVED in tags(cell) and cell.source != JOINED
            code = cell.source if told else ""
            claims[0].data["text/html"] = checks_box(entries, aloud, code)
    if every:
        nb.cells.append(_all_checks(every, aloud))
    return nb


def quoted(m: re.Match[str]) -> str:
    """The key of the number that a piece of prose shows."""
    return m[1].split("<")[-1].rstrip("> ")


def _quiet(nb: Any) -> list[Any]:
    """Cut the code cells in what is shown and what is folded; return those with outputs.

    A folded run that states claims goes into their line, any other one under a bar.
    """
    sources = {c["id"]: c.source for c in nb.cells if c.cell_type == "code"}
    library = names_of_the_library(sources.values())
    cells, last = [], []
    for cell in nb.cells:
        if cell.cell_type != "code" or {*tags(cell)} & FOLDED:
            cells.append(cell)
            last += [cell] if cell.cell_type == "code" else []
            continue
        used = names_used(s for name, s in sources.items() if name != cell["id"])
        runs = parts(cell.source, used, library)
        for k, (text, shown) in enumerate(runs):
            part = copy.deepcopy(cell)
            part.source = text
            if k < len(runs) - 1:
                part["id"], part.outputs = f"{cell['id']}-{k}", []
                part.metadata.pop("mystnb", None)
            if not shown:
                fold = REMOVED if _stated(part) else "hide-input"
                part.metadata["tags"] = [*tags(part), fold]
            cells.append(part)
        last.append(cells[-1])
    nb.cells = _joined_folds(cells)
    return last


def _joined_folds(cells: list[Any]) -> list[Any]:
    """Folded code goes into the folded code that follows it with nothing seen between."""
    last = None
    for cell in cells:
        names = tags(cell)
        if "remove-cell" in names:
            continue
        told = REMOVED in names and _stated(cell)  # its code is folded below its claims
        if last and (told or "hide-input" in names):
            cell.source, last.source = f"{last.source}\n\n{cell.source}", JOINED
            last.metadata["tags"] = sorted({*tags(last), REMOVED} - {"hide-input"})
        quoted = all(QUOTE in o.get("metadata", {}) for o in cell.get("outputs", []))
        last = cell if told or ("hide-input" in names and quoted) else None
    return [c for c in cells if c.source != JOINED or c.outputs]


def _stated(cell: Any) -> list[Any]:
    return [o for o in cell.outputs if CLAIM in o.get("metadata", {})]


def _all_checks(entries: list[dict[str, Any]], aloud: set[str]) -> Any:
    """A folded table at the end of the page, linked to what is shown above."""
    from nbformat.v4 import new_markdown_cell

    count = len({e["key"] for e in entries})
    cell = new_markdown_cell(
        "## All checks of this page\n\n```{raw} html\n"
        f'<details class="checks all-checks"><summary>{count} checks</summary>'
        f"{checks_table(entries, aloud)}</details>\n```"
    )
    cell["id"] = ALL_CHECKS
    return cell


def _for_the_prose(output: Any) -> list[dict[str, Any]]:
    """Hide a claim or a quoted number; return the glue by which the prose shows it."""
    metadata = output.get("metadata", {})
    if CLAIM not in metadata and QUOTE not in metadata:
        return []
    entry = settle(metadata[CLAIM]) if CLAIM in metadata else metadata[QUOTE]
    output.data["text/html"] = ""
    shown = unescape(human(entry["shown"]))  # 10⁻⁶ for 1e-06
    text = entry["shown"] if "<" in shown else shown
    book = {"scrapbook": {"name": entry["key"], "mime_prefix": GLUE}}
    data = {f"{GLUE}text/plain": text}
    glue = {"output_type": "display_data", "data": data, "metadata": book}
    return [glue] if entry["shown"] else []


def names_used(sources: Iterable[str]) -> set[str]:
    """Every name that one of these cells reads."""
    return {n for s in sources if (tree := _parsed(s)) for n in names_read(tree)}


def names_of_the_library(sources: Iterable[str]) -> set[str]:
    """The names under which these cells import what the book is about."""
    found = set()
    for tree in filter(None, map(_parsed, sources)):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and _ours(node.module or ""):
                found |= {a.asname or a.name for a in node.names}
            if isinstance(node, ast.Import):
                ours = [a for a in node.names if _ours(a.name)]
                found |= {a.asname or a.name.split(".")[0] for a in ours}
    return found - {*TOLD} - READS


def parts(source: str, used: set[str], library: set[str]) -> list[tuple[str, bool]]:
    """Runs of lines `(text, shown)`: claims, prints and what only these use are not.

    What is longer than a reader takes in at a glance is not shown either.

    Args:
        source: the code of a cell.
        used: names that other cells read; a line that sets one of them is shown.
        library: names of the library; a line that calls one of them is shown.
    """
    tree = _parsed(source)
    if tree is None or not tree.body:
        return [(source, True)]
    body, lines = tree.body, source.splitlines()
    if all(isinstance(s, ast.Import | ast.ImportFrom) or _bare(s) for s in body):
        return [(source, False)]

    shown = _shown(body, used, library)
    runs: list[tuple[int, bool]] = []  # where each begins, and whether it is shown
    for i, statement in enumerate(body):
        if i and statement.lineno <= (body[i - 1].end_lineno or 0):  # on one line: `;`
            runs[-1] = (runs[-1][0], runs[-1][1] or shown[i])
        elif not runs or runs[-1][1] != shown[i]:
            runs.append((_first(statement, lines) if i else 0, shown[i]))
    ends = [start for start, _ in runs[1:]] + [len(lines)]
    pieces = [lines[start:end] for (start, _), end in zip(runs, ends, strict=True)]
    told = zip(pieces, (seen for _, seen in runs), strict=True)
    marked = [(piece, seen and _tells(piece, library)) for piece, seen in told]
    return [
        ("\n".join(line for piece, _ in group for line in piece).strip("\n"), seen)
        for seen, group in groupby(marked, key=lambda part: part[1])
    ]


def _tells(piece: list[str], library: set[str]) -> bool:
    """Whether lines hold an idea that a reader takes in at a glance.

    Lines that set numbers in words, or read stored results, are bookkeeping.
    """
    tree, count = _parsed("\n".join(piece)), sum(map(bool, piece))
    if tree is None or count > LONGEST:
        return tree is None
    parts = (n for n in ast.walk(tree) if isinstance(n, ast.FormattedValue))
    idea = _calls(tree) & library or (count > SHORTEST and not _calls(tree) & READS)
    return bool(idea) and not any(n.format_spec for n in parts)


def _shown(body: list[ast.stmt], used: set[str], library: set[str]) -> list[bool]:
    """Which statements are shown: not claims, prints and what serves only these."""

    def plain(s: ast.stmt) -> bool:  # sets something, by no algorithm of the library
        return bool(_sets(s)) and not _calls(s) & library

    shown = [not _states(s, plain) for s in body]
    for i in reversed(range(len(body))):
        later = zip(body[i + 1 :], shown[i + 1 :], strict=True)
        readers = [k for s, k in later if _sets(body[i]) & names_read(s)]
        serves = plain(body[i]) and not _sets(body[i]) & used
        shown[i] &= not (serves and readers and not any(readers))
    # Prints before an idea stay with it: a bar between would be louder than they are.
    for start, run in groupby(range(len(body)), key=lambda k: shown[k]):
        places = list(run)
        claims = any(_claims(body[k]) for k in places)
        if not start and not claims and places[-1] < len(body) - 1:
            shown[places[0] : places[-1] + 1] = [True] * len(places)
    return shown


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def _bare(statement: ast.stmt) -> bool:
    """Whether this is a call without arguments, as that which sets the style."""
    call = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and not getattr(call, "args", [1])


def _states(statement: ast.stmt, plain: Callable[[ast.stmt], bool]) -> bool:
    """Whether this states a claim or prints, or repeats that and plain steps to it."""
    if isinstance(statement, ast.For | ast.If):
        body = statement.body + statement.orelse
        if _called(body[-1]) in STATED:  # whatever it takes to state it
            return True
        ends = _states(body[-1], plain)
        return ends and all(_states(s, plain) or plain(s) for s in body)
    return _called(statement) in TOLD


def _claims(statement: ast.stmt) -> bool:
    return any(_called(s) in STATED for s in ast.walk(statement))


def _called(node: ast.AST) -> str | None:
    """The name of the function that a statement calls for its effect."""
    call = node.value if isinstance(node, ast.Expr) else None
    name = call.func if isinstance(call, ast.Call) else None
    return name.id if isinstance(name, ast.Name) else None


def _sets(statement: ast.stmt) -> set[str]:
    """The names that an assignment makes; none where it changes a part of one."""
    if not isinstance(statement, ast.Assign):
        return set()
    kinds = (ast.Name, ast.Tuple, ast.List, ast.Store)
    nodes = [n for target in statement.targets for n in ast.walk(target)]
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    return names if all(isinstance(n, kinds) for n in nodes) else set()


def _calls(node: ast.AST) -> set[str]:
    """The first names of all calls: `st` for `st.descend(...)`; a reader's own name."""
    roots = set()
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        root: ast.AST = call.func
        if getattr(root, "attr", None) in READS:
            roots.add(root.attr)  # type: ignore[attr-defined]
            continue
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        roots |= {root.id} if isinstance(root, ast.Name) else set()
    return roots


def _first(statement: ast.stmt, lines: list[str]) -> int:
    """Where the lines of a statement begin, its decorators and comments among them."""
    marks = [statement, *getattr(statement, "decorator_list", [])]
    start = min(m.lineno for m in marks) - 1
    while start and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return start
