"""Assemble the stage, let Jupyter Book render it, publish only a whole site."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from geolib.files import digest_tree, locked, write_whole

from .ledger import GPU_LEDGER, Ledger, collect, kept, page_table, write_json
from .notebook import PressError, discover
from .run import build_folder, staged_path

SIGNS = ("WARNING", "ERROR", "Error:")
LEDGER_MARK = "<!-- ledger -->"
CPU_MARK = "<!-- cpu-notebooks -->"
MATHJAX = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")


def build_site(root: Path, profile: str) -> tuple[Path, Ledger]:
    """Render the site of one profile from its staged notebooks.

    Returns:
        The folder of the site (with `index.html`) and the ledger that it shows.

    Raises:
        PressError: a notebook is not staged, or Sphinx found a fault (any warning).
    """
    folder = build_folder(root, profile)
    site = folder / "html"
    with locked(
        folder / "lock", lambda: print("waiting for another press", file=sys.stderr)
    ):
        ledger = _assemble(root, profile)
        key = digest_tree(
            folder / "stage",
            (".md", ".ipynb", ".bib", ".yml", ".py", ".css", ".svg", ".js"),
        ) + digest_tree(root / "geolib", (".py",))
        record = folder / "html.key"
        if site.is_dir() and record.exists() and record.read_text() == key:
            return site, ledger
        _render(root, folder)
        _publish(folder / "sphinx" / "_build" / "html", site)
        write_whole(record, key)
    return site, ledger


def _assemble(root: Path, profile: str) -> Ledger:
    notebooks = discover(root)
    stage = build_folder(root, profile) / "stage"
    absent = [n.name for n in notebooks if not staged_path(n, profile).exists()]
    if absent:
        raise PressError(
            f"not executed in profile {profile}: {', '.join(absent)}; "
            f"run `geolib run --profile {profile}` first"
        )
    wanted = {staged_path(n, profile) for n in notebooks}
    for old in (stage / "chapters").rglob("*.ipynb"):
        if old not in wanted:
            old.unlink()
    for name in ("_config.yml", "_toc.yml"):
        _copy(root / name, stage / name)
    for file in (root / "book").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            _copy(file, stage / "book" / file.relative_to(root / "book"))
    for file in (root / "CHANGELOG.md",):
        if file.exists():
            _copy(file, stage / "book" / "changelog.md")
    ledger = collect(notebooks, profile)
    write_json(ledger, root / "_build" / "claims.json")
    table = page_table(ledger, kept(root / GPU_LEDGER))
    _fill(root, stage, "book/claims.md", LEDGER_MARK, f"```{{raw}} html\n{table}\n```")
    idle = [n for n in notebooks if n.device("cuda") == "cpu"]
    names = "\n".join(f"- {{doc}}`/{n.page}`" for n in idle) or "none."
    _fill(root, stage, "book/gpu.md", CPU_MARK, names)
    return ledger


def _fill(root: Path, stage: Path, name: str, mark: str, text: str) -> None:
    """Put generated text where a page has its mark."""
    if (root / name).exists():
        page = (root / name).read_text()
        _write_if_changed(stage / name, page.replace(mark, text))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copy2(source, target)


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        write_whole(path, text)


def _render(root: Path, folder: Path) -> None:
    out, stage = folder / "sphinx", folder / "stage"
    # Sphinx does not notice a change of its own extension: then build from nothing.
    machinery = digest_tree(stage / "book" / "_ext", (".py",))
    record = folder / "sphinx.key"
    if not record.exists() or record.read_text() != machinery:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(record, machinery)
    _mathjax(root, stage / "book" / "_static" / "mathjax")
    launch = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", launch, "build", str(stage), "--path-output"]
    command += [str(out), "-W", "-n", "--keep-going", "-q"]
    env = dict(os.environ, PYTHONPATH=str(root), GEOLIB_ROOT=str(root))
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    log = result.stdout + result.stderr
    write_whole(folder / "sphinx.log", log)
    index = out / "_build" / "html" / "index.html"
    if result.returncode != 0 or not index.is_file():
        lines = [w for w in log.splitlines() if any(m in w for m in SIGNS)]
        tail = "\n".join(lines[-30:] or log.splitlines()[-30:])
        raise PressError(
            f"the site was not built (see {folder / 'sphinx.log'}):\n{tail}"
        )


def _mathjax(root: Path, target: Path) -> None:
    """Copy MathJax out of the installed npm package, so that no page asks a CDN."""
    source = root / "node_modules" / "mathjax" / "es5"
    if not source.is_dir():
        raise PressError(
            f"MathJax is not installed in {root}: run `npm ci` there first"
        )
    for name in MATHJAX:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            _copy(source / name, target / name)


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
