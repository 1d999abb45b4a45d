"""What the house asks of the package, as functions; `python tests/house_rules.py ROOM`.

Used by tests/test_house.py; by hand it lists what a room still owes.
"""

import ast
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "geolib"
CHAPTERS = ("stratifolds", "naturality", "geodesics", "regimes", "inverse_stability")
ROOMS = ("core", "networks", "data", *CHAPTERS, "press", "sweep")
MATHEMATICAL = ("core", "networks", *CHAPTERS)
# Tables of contents, records and plumbing have nothing to cite.
FIRST_WORD = re.compile(r"^[A-Z`|*:\\]")
DANGLING = re.compile(
    r"\bspec(ification)?\b,? ?([0-9]|section|pitfall|Theorem|prototype)|\bpitfall \d"
    r"|\bprototype of this|\bspec [0-9]",
    re.I,
)


@functools.cache
def modules():
    """Every module of the package: dotted name and path."""
    paths = sorted(PACKAGE.rglob("*.py"))
    named = [(p.relative_to(ROOT).with_suffix("").parts, p) for p in paths]
    return [(".".join(n for n in names if n != "__init__"), p) for names, p in named]


@functools.cache
def tree(path):
    """The syntax of a file."""
    return ast.parse(path.read_text())


def imports(path, name):
    """Dotted names of our own modules that a file imports, wherever it does so."""
    known = dict(modules())
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rsplit(".", 1)[0]
                stem = package.split(".")
                stem = stem[: len(stem) - node.level + 1]
                base = ".".join([*stem, *([node.module] if node.module else [])])
            names = [f"{base}.{a.name}" for a in node.names]
        else:
            continue
        for n in names:
            while n and n not in known:
                n = n.rpartition(".")[0]
            if n.startswith("geolib."):
                found.add(n)
    return found - {name}


def circles():
    """Circles of imports between modules, `TYPE_CHECKING` and functions included."""
    graph = {n: imports(p, n) for n, p in modules() if p.name != "__init__.py"}
    graph = {n: {m for m in to if m in graph} for n, to in graph.items()}
    found, done, path = [], set(), []

    def visit(n):
        if n in path:
            found.append([*path[path.index(n) :], n])
            return
        if n in done:
            return
        path.append(n)
        for m in sorted(graph[n]):
            visit(m)
        path.pop()
        done.add(n)

    for n in sorted(graph):
        visit(n)
    return found


def code_lines(path):
    """Lines of a file that are no blank, comment or docstring."""
    text = path.read_text()
    prose = set()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree(path)):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            prose.update(range(first.lineno, first.end_lineno + 1))
    return sum(
        bool(line.strip()) and i not in prose and not line.strip().startswith("#")
        for i, line in enumerate(text.splitlines(), 1)
    )


def public(room):
    """The names behind one door, and the objects."""
    module = importlib.import_module(f"geolib.{room}")
    return {n: getattr(module, n) for n in getattr(module, "__all__", [])}


def _body_raises(obj):
    """Whether a function (or a class in its constructor) raises by itself."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(obj))
    except (OSError, TypeError):
        return False
    tree = ast.parse(source).body[0]
    if isinstance(tree, ast.ClassDef):
        named = ("__init__", "__post_init__")
        bodies = [n for n in tree.body if getattr(n, "name", "") in named]
    else:
        bodies = [tree]
    return any(
        isinstance(n, ast.Raise) and n.exc is not None
        for b in bodies
        for n in ast.walk(b)
    )


def _own_parameters(obj):
    """Parameters a caller gives, where there are any."""
    try:
        given = inspect.signature(obj).parameters.values()
    except (ValueError, TypeError):
        return []
    return [p.name for p in given if p.name not in ("self", "cls")]


def faults(name, obj):
    """What the docstring of one public object lacks; empty when nothing."""
    if not (inspect.isfunction(obj) or inspect.isclass(obj)):
        return []
    text = inspect.getdoc(obj) or ""
    first = " ".join(text.split("\n\n")[0].split())
    record = inspect.isclass(obj) and hasattr(obj, "__dataclass_fields__")
    error = inspect.isclass(obj) and issubclass(obj, BaseException)
    abstract = inspect.isabstract(obj) or getattr(obj, "_is_protocol", False)
    found = []
    if not first.endswith((".", ":")) or len(first.split()) < 3:
        found.append("no whole first sentence")
    if DANGLING.search(text):
        found.append("cites what no reader has")
    if error:
        return found
    if _body_raises(obj) and "Raises:" not in text:
        found.append("raises, but no Raises")
    if len(_own_parameters(obj)) >= 2 and not (
        "Args:" in text or "Attributes:" in text
    ):
        found.append("no Args or Attributes")
    room = obj.__module__.split(".")[1]
    if room in MATHEMATICAL and not record and "Source:" not in text:
        found.append("no Source")
    if not (record or abstract) and ">>>" not in text:
        found.append("no doctest")
    return found


def owed(room):
    """The faults of all public names of a room."""
    every = {n: faults(n, o) for n, o in public(room).items()}
    return {n: f for n, f in every.items() if f}


if __name__ == "__main__":
    for room in sys.argv[1:] or ROOMS:
        debts = owed(room)
        for name, list_ in debts.items():
            print(f"{room}.{name}: {'; '.join(list_)}")
        files = [p for n, p in modules() if n.split(".")[1:2] == [room]]
        print(
            f"{room}: {len(public(room))} public names, {len(debts)} in debt, "
            f"{sum(map(code_lines, files))} code lines in {len(files)} modules, "
            f"longest {max(len(p.read_text().splitlines()) for p in files)} lines"
        )
    mine = [
        c
        for c in circles()
        if not sys.argv[1:] or any(r in str(c) for r in sys.argv[1:])
    ]
    for circle in mine:
        print("circle:", " -> ".join(circle))


# A textbook's word, and the module whose first docstring line has it: one search finds it.
LOOKUPS = {
    "The natural gradient": "naturality/natural_gradient.py",
    "(DER)": "geodesics/learners.py",
    "RLCT": "stratifolds/learning_coefficient.py",
    "W^{1,inf}": "inverse_stability/w1inf_seminorm.py",
    "Which regime": "regimes/predict.py",
    "A claim": "claims.py",
    "Kronecker-factored approximation": "core/kronecker.py",
    "softmax's Fisher metric": "core/output_metrics.py",
    "Training a network": "networks/training.py",
    "git re-basin": "networks/weight_matching.py",
    "Expectation-maximization": "stratifolds/gmm.py",
    "Dormand-Prince": "core/ode.py",
    "Marchenko-Pastur": "regimes/spectral_measures.py",
    "geodesic between two": "geodesics/connect.py",
    "Nystrom": "core/nystrom.py",
    "neural tangent kernel": "core/jacobian_factors.py",
}


def homes(word):
    """The modules whose docstring's first line has the word."""
    first = {p: (ast.get_docstring(tree(p)) or "").split("\n")[0] for _, p in modules()}
    return [p.relative_to(PACKAGE).as_posix() for p in first if word in first[p]]
