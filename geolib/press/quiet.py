"""What of a cell a reader sees: its idea, apart from claims, prints and imports."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from itertools import groupby

STATED = ("claim", "quote")
TOLD = (*STATED, "print", "show")
LONGEST = 15  # lines of code that a page shows in one piece
SHORTEST = 4  # lines up to which a piece that calls no algorithm of the library is none
OURS = ("geolib", "experiments")


def names_used(sources: Iterable[str]) -> set[str]:
    """Every name that one of these cells reads."""
    return {name for s in sources if (tree := _parsed(s)) for name in _read(tree)}


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
    return found - {*TOLD}


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
    """Whether lines hold an idea that a reader takes in at a glance."""
    tree, count = _parsed("\n".join(piece)), sum(map(bool, piece))
    ours = tree is None or bool(_calls(tree) & library)
    return count <= LONGEST and (count > SHORTEST or ours)


def _shown(body: list[ast.stmt], used: set[str], library: set[str]) -> list[bool]:
    """Which statements are shown: not claims, prints and what serves only these."""

    def plain(s: ast.stmt) -> bool:  # sets something, by no algorithm of the library
        return bool(_sets(s)) and not _calls(s) & library

    shown = [not _states(s, plain) for s in body]
    for i in reversed(range(len(body))):
        later = zip(body[i + 1 :], shown[i + 1 :], strict=True)
        readers = [k for s, k in later if _sets(body[i]) & _read(s)]
        serves = plain(body[i]) and not _sets(body[i]) & used
        shown[i] &= not (serves and readers and not any(readers))
    # Prints before an idea stay with it: a bar between would be louder than they are.
    for start, run in groupby(range(len(body)), key=lambda k: shown[k]):
        places = list(run)
        claims = any(_claims(body[k]) for k in places)
        if not start and not claims and places[-1] < len(body) - 1:
            shown[places[0] : places[-1] + 1] = [True] * len(places)
    return shown


def code_block(source: str) -> str:
    """Source text in the colours of the page, as HTML."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    text = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    region = 'class="highlight" role="region" aria-label="code of these checks"'
    return f'<div {region}><pre tabindex="0">{text}</pre></div>'


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


def _read(node: ast.AST) -> set[str]:
    loads = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    return {n.id for n in loads if isinstance(n.ctx, ast.Load)}


def _sets(statement: ast.stmt) -> set[str]:
    """The names that an assignment makes; none where it changes a part of one."""
    if not isinstance(statement, ast.Assign):
        return set()
    kinds = (ast.Name, ast.Tuple, ast.List, ast.Store)
    nodes = [n for target in statement.targets for n in ast.walk(target)]
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    return names if all(isinstance(n, kinds) for n in nodes) else set()


def _calls(node: ast.AST) -> set[str]:
    """The first names of all calls: `st` for `st.descend(...)`."""
    roots = set()
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        root: ast.AST = call.func
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
