"""Key lines broken on purpose, one at a time: which tests notice?

`mutations.yml` lists certificates, guards and flags with a wrong line for each. Here every
one is put into a copy of the package, the tests named beside it run on the copy, and the
first that fails is stored as `seen`; a mutation that none sees is stored without it.

`python tests/trust/mutate.py [WORD ...]` tries those whose entry has one of the words, or
all; `--missing` those that no test has seen yet.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
STORE = Path(__file__).parent / "mutations.yml"
HEAD = """# Lines that were broken on purpose: `old` in `file` became `new`, and `seen` is the test
# that failed. `python tests/trust/mutate.py` renews it; the page on reliability counts it.
"""


def mutations() -> list[dict[str, Any]]:
    """All entries, in order."""
    return yaml.safe_load(STORE.read_text())


def broken(entry: dict[str, Any]) -> str:
    """The text of the file with its line broken; `old` must be there once."""
    text = (ROOT / entry["file"]).read_text()
    if text.count(entry["old"]) != 1:
        raise ValueError(
            f"{entry['what']}: {text.count(entry['old'])} places for `old`"
        )
    return text.replace(entry["old"], entry["new"])


def copied(house: Path) -> None:
    """The checkout with package, chapters and tests of its own, all else by links."""
    for path in ROOT.iterdir():
        if path.name in ("geolib", "chapters", "tests"):
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, house / path.name, ignore=skip)
        elif path.name != ".git":
            (house / path.name).symlink_to(path)


def first_failure(entry: dict[str, Any], house: Path) -> str | None:
    """The first test that fails on the broken package, or None."""
    (house / entry["file"]).write_text(broken(entry))
    paths = {"PYTHONPATH": str(house), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n0",
        "-p",
        "no:cacheprovider",
    ]
    try:
        run = subprocess.run(
            [*command, *entry["tests"]],
            cwd=house,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.copy(ROOT / entry["file"], house / entry["file"])
    if run.returncode == 0:
        return None
    found = re.search(
        r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py(?:::\S+)?)", run.stdout, re.M
    )
    if found is None:
        raise RuntimeError(f"{entry['what']}: {run.stdout[-1500:]}{run.stderr[-500:]}")
    return found[1].partition("[")[0]


def main() -> None:
    """Try the entries that were asked for, and store what saw each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--missing", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        copied(Path(place))
        for k, entry in enumerate(mutations()):
            asked = not given.words or any(w in str(entry) for w in given.words)
            if not asked or (given.missing and entry.get("seen")):
                continue
            seen = first_failure(entry, Path(place))
            print(f"{entry['what']}: {seen or 'NOT SEEN'}", flush=True)
            entries = mutations()
            entries[k].pop("seen", None)
            entries[k] |= {"seen": seen} if seen else {}
            text = yaml.safe_dump(
                entries, sort_keys=False, width=88, allow_unicode=True
            )
            STORE.with_suffix(".new").write_text(HEAD + text)
            STORE.with_suffix(".new").replace(STORE)


if __name__ == "__main__":
    main()
