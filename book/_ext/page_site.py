"""Assemble the pages, let Jupyter Book render them, publish only a whole site."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from page_gpu import GPU_LEDGER, load_device_ledger
from page_marks import banner, below_the_heading, filled, ledger_page, marked_page

from geolib.files import digest, digest_tree, write_changed, write_whole
from geolib.press.build import Build, Page
from geolib.press.ledger import Ledger, of_pages, write_json
from geolib.press.notebook import PressError, SettingsError, discover, read_table

CHANGES = "book/changelog"  # a page that is copied from CHANGELOG.md
SIGNS = ("WARNING", "ERROR", "Error:")
LEDGER_MARK = "<!-- ledger -->"
CPU_MARK = "<!-- cpu-notebooks -->"
MATHJAX = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions/*",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
    "output/chtml/fonts/woff-v2/*",
    "a11y/assistive-mml.js",
)
SOURCES = (".md", ".ipynb", ".bib", ".yml", ".py", ".css", ".svg", ".js", ".json")
LAUNCH = "from jupyter_book.cli.main import main; main()"


def check_settings(root: Path) -> str:
    """The name of the landing page, once Jupyter Book can use `_config.yml`, `_toc.yml`.

    Raises:
        SettingsError: one of them cannot be read, has a value of the wrong type, or
            names a page without a text or an extension that is not installed.
    """
    import jsonschema
    from sphinx_external_toc.parsing import MalformedError, parse_toc_data

    package = Path(find_spec("jupyter_book").origin).parent  # type: ignore
    schema = json.loads((package / "config_schema.json").read_text())
    config = read_table(root, "_config.yml")
    for problem in jsonschema.Draft7Validator(schema).iter_errors(config):
        where = ": ".join(["_config.yml", *map(str, problem.absolute_path)])
        raise SettingsError(f"{where}: {problem.message}")
    for name in config.get("sphinx", {}).get("extra_extensions") or []:
        if not _installed(name):
            where = "_config.yml: sphinx: extra_extensions"
            raise SettingsError(f"{where}: no module {name!r} is installed")
    try:
        pages = parse_toc_data(read_table(root, "_toc.yml"))
    except (MalformedError, TypeError, ValueError, AttributeError) as problem:
        raise SettingsError(f"_toc.yml: {problem}") from None
    for page in set(pages) - {CHANGES}:
        if not (root / page).is_file() and not (root / f"{page}.md").is_file():
            raise SettingsError(f"_toc.yml: no page {page!r}: expected {page}.md")
    return str(pages.root.docname)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # of its package
        return False


def build_site(build: Build, strict: bool = False) -> Ledger:
    """Render `build.site` from the executed notebooks, whatever became of them.

    A page that is not whole carries a mark that says why; so does the landing page.

    Args:
        build: whose pages.
        strict: refuse to render when a page is not whole or a claim fails.

    Returns:
        The ledger that the site shows.

    Raises:
        PressError: the settings cannot be read, the site cannot be rendered or
            written, or `strict` refuses.
    """
    landing = check_settings(build.root)
    with build.locked(partial(print, file=sys.stderr)):
        try:
            return _build(build, strict, landing)
        except OSError as problem:
            why = f"{problem.strerror} {problem.filename or ''}".rstrip()
            raise PressError(f"the site could not be written: {why}") from None


def _build(build: Build, strict: bool, landing: str) -> Ledger:
    notebooks = discover(build.root)
    pages = [build.page(n) for n in notebooks]
    ledger = of_pages(build.profile, pages)
    if strict and not ledger.is_valid:
        why = [": ".join(item) for item in ledger.marked.items()]
        raise PressError("\n  ".join(["html --strict refuses:", *why, ledger.summary]))
    source = build.folder / "pages"
    wanted = {source / "chapters" / f"{p.notebook.name}.ipynb": p for p in pages}
    for old in set((source / "chapters").rglob("*.ipynb")) - set(wanted):
        old.unlink()
    for target, page in wanted.items():
        if page.state == "whole" and page.path is not None:
            write_changed(target, page.path.read_bytes())
        else:
            write_changed(target, marked_page(build, page))
    _copy_book(build, source)
    write_json(ledger, build.root / "_build" / "claims.json")
    _fill(build, source, ledger, pages, landing)
    sidebar = (build.root / "_toc.yml").read_bytes()  # every page shows it
    extension = digest_tree(build.root / "book" / "_ext", (".py",))
    machinery = digest(extension.encode(), sidebar)
    code = json.dumps(build.code, sort_keys=True).encode()  # the API pages show it
    key = digest(digest_tree(source, SOURCES).encode(), code, machinery.encode())
    record = build.folder / "html.key"
    if build.site.is_dir() and record.exists() and record.read_text() == key:
        return ledger
    _render(build, source, machinery, whole=not ledger.marked)
    _publish(build.folder / "sphinx" / "_build" / "html", build.site)
    write_whole(record, key)
    return ledger


def _copy_book(build: Build, source: Path) -> None:
    settings = [build.root / name for name in ("_config.yml", "_toc.yml")]
    book = filter(Path.is_file, (build.root / "book").rglob("*"))
    for file in (*settings, *book):
        inside = file.relative_to(build.root)
        filled = inside.match("book/*.md")  # `_fill` writes these
        if not filled and "__pycache__" not in file.parts:
            write_changed(source / inside, file.read_bytes())
    changes = build.root / "CHANGELOG.md"
    if changes.exists():
        write_changed(source / f"{CHANGES}.md", changes.read_bytes())


def _fill(
    build: Build, source: Path, ledger: Ledger, pages: list[Page], landing: str
) -> None:
    """Put numbers, pictures and tables where the book's own pages ask for them."""
    table = ledger_page(ledger, load_device_ledger(build.root / GPU_LEDGER))
    idle = [p.notebook for p in pages if p.notebook.device("cuda") == "cpu"]
    marks = {
        LEDGER_MARK: f"```{{raw}} html\n{table}\n```",
        CPU_MARK: "\n".join(f"- {{doc}}`/{n.page}`" for n in idle) or "none.",
    }
    folder = source / "book" / "_figures"
    for file in (build.root / "book").glob("*.md"):
        text = filled(file.read_text(), ledger, pages, folder)
        for mark, content in marks.items():
            text = text.replace(mark, content)
        if ledger.marked and landing == f"book/{file.stem}":
            about = counted(ledger, len(pages))
            text = below_the_heading(text, banner("This book is not whole", about))
        write_changed(source / "book" / file.name, text)


def counted(ledger: Ledger, pages: int) -> str:
    """How many pages are marked and how many claims broke, in few sentences."""
    if not ledger.marked:
        return f"{pages} of {pages} notebooks are whole. {ledger.summary}."
    by_reason: dict[str, list[str]] = {}
    for name, why in ledger.marked.items():
        by_reason.setdefault(why, []).append(name)
    reasons = " ".join(f"{', '.join(n)}: {why}" for why, n in by_reason.items())
    marked = f"{len(ledger.marked)} of {pages} notebooks are not whole"
    return f"{marked}. {reasons} {ledger.summary}."


def _render(build: Build, source: Path, machinery: str, whole: bool) -> None:
    """Let Jupyter Book read what changed. Of a whole book any warning is an error."""
    out = build.folder / "sphinx"
    # Sphinx notices no change of its own extension or of what is in the sidebar of pages
    # that did not change: then build from nothing.
    record = build.folder / "sphinx.key"
    if not record.exists() or record.read_text() != machinery:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(record, machinery)
    _mathjax(build.root, source / "book" / "_static" / "mathjax")
    command = [sys.executable, "-c", LAUNCH, "build", str(source), "--path-output"]
    command += [str(out), "-n", "--keep-going", "-q", *(["-W"] if whole else [])]
    env = dict(os.environ, PYTHONPATH=str(build.root), GEOLIB_ROOT=str(build.root))
    result = subprocess.run(
        command, env=env, capture_output=True, text=True, errors="replace"
    )
    log = result.stdout + result.stderr
    write_whole(build.folder / "sphinx.log", log)
    index = out / "_build" / "html" / "index.html"
    if result.returncode != 0 or not index.is_file():
        lines = [w for w in log.splitlines() if any(m in w for m in SIGNS)]
        tail = "\n".join(lines[-30:] or log.splitlines()[-30:])
        where = build.folder / "sphinx.log"
        raise PressError(f"the site was not built (see {where}):\n{tail}")


def _mathjax(root: Path, target: Path) -> None:
    """Copy MathJax out of the installed npm package, so that no page asks a CDN."""
    source = root / "node_modules" / "mathjax" / "es5"
    if not source.is_dir():
        what = f"MathJax is not installed in {root}"
        raise PressError(f"{what}: run `npm ci` there first")
    for file in (p for name in MATHJAX for p in source.glob(name)):
        write_changed(target / file.relative_to(source), file.read_bytes())


def _publish(built: Path, site: Path) -> None:
    """Swap the finished tree in; readers of the old one never see a mixture."""
    fresh, old = site.with_name("html.new"), site.with_name("html.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(built, fresh)
    if site.exists():
        site.rename(old)
    fresh.rename(site)
    shutil.rmtree(old, ignore_errors=True)
