"""The committed pairs: each text notebook's `.ipynb` with its checked outputs."""

from __future__ import annotations

from pathlib import Path

from geolib.files import write_whole

from .build import Build
from .notebook import Notebook, PressError
from .pool import Settings, press


def refresh(notebooks: list[Notebook], settings: Settings) -> list[Path]:
    """Run the `small` profile where needed and rewrite the pairs that changed.

    Returns:
        The pairs that were rewritten.

    Raises:
        PressError: a notebook failed; the pairs of the others are still written.
    """
    if settings.profile != "small" or settings.device not in ("cpu", "auto"):
        raise PressError("refs: pairs are written from the small profile on a CPU")
    outcomes = press(notebooks, Settings("small", "cpu", settings.jobs, settings.force))
    changed = []
    for notebook, outcome in zip(notebooks, outcomes, strict=True):
        if outcome.status == "failed":
            continue
        staged = Build(notebook.root, "small").stage(notebook)
        text = staged.with_suffix(".reference").read_text()
        if not notebook.pair.exists() or notebook.pair.read_text() != text:
            write_whole(notebook.pair, text)
            changed.append(notebook.pair)
    if failed := [o.message for o in outcomes if o.status == "failed"]:
        raise PressError("no pair written for\n" + "\n".join(failed))
    return changed
