"""The checkout: where the book is, which notebooks it has, what sizes they get."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from geolib.files import did_you_mean, find_checkout

from .notebook import Notebook, PressError, SettingsError

PROFILES = ("small", "book", "full")
CHANGES = "book/changelog"  # the press copies it from CHANGELOG.md
PLAIN = (bool, int, float, str, type(None))


def find_root() -> Path:
    """The folder that holds `_toc.yml`, from the current one upwards.

    Raises:
        PressError: there is none.
    """
    here = Path.cwd()
    if root := find_checkout(here):
        return root
    raise PressError(
        f"no book here: this command needs a checkout of the book, and neither {here} "
        "nor a parent holds _toc.yml and chapters/"
    )


def discover(root: Path, wanted: list[str] | None = None) -> list[Notebook]:
    """All notebooks, or those of the wanted chapters or single names.

    Raises:
        PressError: one of `wanted` is neither.
    """
    files = sorted((root / "chapters").glob("*/[0-9][0-9]-*.md"))
    found = [Notebook(root, f"{p.parent.name}/{p.stem}") for p in files]
    if not wanted:
        return found
    wanted = [
        w.strip("/").removeprefix("chapters/").removesuffix(".md") for w in wanted
    ]
    known = {n.chapter for n in found} | {n.name for n in found}
    for w in wanted:
        if w not in known:
            raise PressError(
                f"chapter: no chapter or notebook {w!r}; there are "
                f"{', '.join(sorted({n.chapter for n in found})) or 'none'}"
                f"{did_you_mean(w, known)}"
            )
    return [n for n in found if n.name in wanted or n.chapter in wanted]


def parameters(notebook: Notebook, profile: str, device: str) -> dict[str, Any]:
    """What must be injected for this profile and device (of the notebook's).

    Raises:
        PressError: an unknown profile, or a parameter that the notebook never declares.
    """
    if profile not in PROFILES:
        raise PressError(f"profile: expected one of {PROFILES}, got {profile!r}")
    values = _profiles(notebook.root).get(notebook.name, {}).get(profile, {})
    if notebook.facts.fault:  # nothing of it can be known, and it will not be run
        return values
    declared = notebook.declared()
    if unknown := sorted(set(values) - declared):
        raise PressError(
            f"chapters/profiles.yml: {notebook.name}, profile {profile}: "
            f"undeclared parameter {', '.join(unknown)}; "
            f"the notebook declares {', '.join(sorted(declared)) or '(nothing)'}"
        )
    if device != "cpu":
        values["device"] = device
    return values


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
            raise SettingsError(
                f"_config.yml: sphinx: extra_extensions: no module {name!r} is installed"
            )
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


def read_table(root: Path, name: str) -> dict[str, Any]:
    """A YAML file of the checkout that must hold a table.

    Raises:
        SettingsError: it is absent, no text, no YAML, or holds something else.
    """
    try:
        return copy.deepcopy(_table(name, (root / name).read_text("utf-8")))
    except OSError as problem:
        raise SettingsError(f"{name}: {problem.strerror} ({root / name})") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: expected UTF-8 text") from None


@lru_cache(maxsize=8)
def _table(name: str, text: str) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        table = yaml.load(text, loader) if text.strip() else {}
    except (yaml.YAMLError, ValueError) as problem:  # 2026-13-45 is a ValueError
        why = " ".join(str(problem).split())
        raise SettingsError(f"{name}: this is not YAML ({why})") from None
    return _as_table(name, table or {})


def _as_table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise SettingsError(
            f"{where}: expected a table with names, got {type(value).__name__}"
        )
    return value


def _profiles(root: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The sizes in `chapters/profiles.yml`, by notebook and profile."""
    file = "chapters/profiles.yml"
    table = read_table(root, file)
    names = {n.name for n in discover(root)}
    for name, profiles in table.items():
        if name not in names:
            raise SettingsError(f"{file}: no notebook {name!r}")
        table[name] = _as_table(f"{file}: {name}", profiles or {})
        if extra := set(table[name]) - {"book", "full"}:
            raise SettingsError(
                f"{file}: {name}: expected 'book' and 'full' "
                f"('small' is the notebook's own cell), got {sorted(extra)}"
            )
        for profile, values in table[name].items():
            where = f"{file}: {name}, profile {profile}"
            table[name][profile] = _as_table(where, values or {})
            for parameter, value in table[name][profile].items():
                if not _plain(value):
                    raise SettingsError(
                        f"{where}: {parameter}: expected numbers, texts, lists or "
                        f"tables of them, got {type(value).__name__}"
                    )
    return table


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return isinstance(value, PLAIN)
