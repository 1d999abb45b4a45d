"""`python -m benchmarks.render`: the page `book/benchmarks.md` from the results."""

from __future__ import annotations

import json
import math
import os
import re
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results.json"
CHAPTERS = {
    "core": "The core",
    "stratifolds": "Stratifolds",
    "naturality": "Naturality",
    "geodesics": "Geodesics",
    "regimes": "Regimes",
    "inverse_stability": "Inverse stability",
    "sweep": "Sweeps",
    "project": "The whole project",
}
HEAD = """# Benchmarks

How fast is `geolib`, and beside what? A row of this page times one task with this library and with
a named public one, after checking that both compute the same thing. Where there is no peer, the
row has a limit on its time.
"""
METHOD = """## How it is measured

Ours and theirs run in the same process, on one thread, in alternating rounds. *Ratio* is our CPU
time over theirs, the median over rounds with its quartiles: below 1 we are faster. *Error* is how
far the two results lie apart. The last column says whether the row meets the bar that was set
before it was measured. `make bench` repeats all of it; a peer that is not at hand is reported as
not run, with the reason.
"""
OVERVIEW = """```{figure} _static/benchmarks/overview.svg
:name: fig-bench-overview
:alt: A row of dots for each part of the library on a logarithmic axis; left of one ours takes less.

Each dot is a comparison: our time or memory over theirs. Left of the line ours takes less. Some
peers do less work, as a plain gradient beside a natural step; their dots are to the right.
```
"""
PRINTED = re.compile(r"(?<![\w.])(\d(?:\.\d+)?)e([+-]\d\d)(?!\w)")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
WORDS = {"<=": "at most", ">=": "at least", "<": "below", ">": "above"}
COLUMNS = ("what", "ours", "theirs", "ratio", "error", "bar")


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page as MyST text."""
    if not rows:
        return f"{HEAD}\nNothing has been measured yet.\n"
    parts = [HEAD, summary(rows), METHOD]
    rank = {name: i for i, name in enumerate(CHAPTERS)}
    key = lambda row: row["name"].split(".")[0]  # noqa: E731
    ordered = sorted(rows, key=lambda r: (rank.get(key(r), 99), r["name"]))
    for chapter, group in groupby(ordered, key):
        members = list(group)
        parts.append(f"## {CHAPTERS.get(chapter, chapter.capitalize())}\n")
        parts.append(table(members))
        parts.extend(notes(members))
        parts.extend(figure(row) for row in members if row.get("curve"))
    parts.append("## Machines and versions\n")
    parts.append(settings(rows))
    return PRINTED.sub(_for_people, "\n".join(parts).rstrip() + "\n")


def _for_people(m: re.Match[str]) -> str:
    """A number that a machine has printed, as 3.2·10⁻⁷, 0.012, 2,180 or 0."""
    value, power = float(m[0]), int(m[2])
    if value == 0 or power > -3:
        return f"{value:,.0f}" if power > 0 else f"{value:g}"
    return f"{m[1]}·10{str(power).translate(RAISED)}"


def _mine(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [r for r in rows if r["name"].split(".")[0] == name and "error" not in r]


def _ratios(rows: list[dict[str, Any]]) -> list[float]:
    return [p["ratio"] for r in rows for p in r["peers"] if p["ratio"]]


def summary(rows: list[dict[str, Any]]) -> str:
    """One screen: what was found, a figure of it, each part, and the bars not met."""
    whole = [r for r in rows if "error" not in r]
    judged = [r["verdict"] for r in whole if r["bar"]]
    ratios = _ratios(whole)
    lines = []
    if ratios:
        faster = sum(x < 1 for x in ratios)
        lines = [
            f"In {faster} of {len(ratios)} comparisons ours takes less, and the median "
            f"ratio is {median(ratios):.2g}. Of {len(judged)} bars {judged.count('met')} "
            "are met; the others stand below.\n",
            OVERVIEW,
        ]
    lines.append("| part | rows | bars met | median ratio (comparisons) |")
    lines.append("| --- | --- | --- | --- |")
    for name, title in CHAPTERS.items():
        mine = _mine(rows, name)
        met = [r["verdict"] for r in mine if r["bar"]]
        found = _ratios(mine)
        ratio = f"{median(found):.2g} ({len(found)})" if found else "no peer"
        bars = f"{met.count('met')} of {len(met)}" if met else "no bar"
        lines.append(_line([title, str(len(mine)), bars, ratio]))
    missed = [r for r in rows if r.get("verdict") == "missed"]
    lines.append("\n**Not met:**\n" if missed else "\nEvery bar is met.")
    for row in missed:
        unit = row["unit"] if row["of"] == "ours" else "times"
        sign, bar = row["bar"].split(" ")
        lines.append(
            f"- {row['title']}: {_quantity(row['figure'], unit)}, where the bar is "
            f"{WORDS[sign]} {bar}."
        )
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> str:
    """A pipe table with one line for each row and peer."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
    for row in rows:
        if "error" in row:
            reason = f"**{row['verdict']}**: {row['error']}"
            cells = [_under(row.get("title", row["name"]), row.get("size", "")), reason]
            lines.append(_line(cells + [""] * (len(COLUMNS) - 2)))
            continue
        mine = _quantity(row["ours"], row["unit"], row.get("timing"))
        for i, peer in enumerate(row["peers"] or [None]):
            first = [_under(row["title"], row["size"]), mine] if i == 0 else ["", ""]
            last = _verdict(row) if i == 0 else ""
            lines.append(_line([*first, *_peer(peer, row["unit"]), last]))
    return "\n".join(lines) + "\n"


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What a row needs to be understood; a table that belongs to it is folded."""
    told, folded = [], []
    for row in rows:
        text, _, cells = (row.get("note") or "").partition("\n\n|")
        if text:
            told.append(f"- *{row['title']}.* {text.strip()}")
        if cells:
            title = f"Point by point: {row['title']}"
            folded.append(f":::{{dropdown}} {title}\n|{cells.strip()}\n:::\n")
    return [*(["\n".join(told) + "\n"] if told else []), *folded]


def figure(row: dict[str, Any]) -> str:
    """The directive that shows a row's scaling plot."""
    stem, curve = row["name"].replace(".", "-"), row["curve"]
    series = " and ".join(curve["series"])
    return (
        f"```{{figure}} _static/benchmarks/{stem}.svg\n:name: fig-bench-{stem}\n"
        f":alt: {curve['y_label']} against {curve['x_label']} for {series}, both axes "
        f"logarithmic\n\n{row['title']}: {curve['y_label']} against "
        f"{curve['x_label']}, both axes logarithmic.\n```\n"
    )


def settings(rows: list[dict[str, Any]]) -> str:
    """Each machine and set of versions, with the rows measured there."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if "machine" not in row:
            continue
        m = row["machine"]
        gpu = f", {m['gpu']}" if "gpu" in m else ""
        text = (
            f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}{gpu}, "
            f"{m['threads']} thread; "
            + ", ".join(f"{name} {v}" for name, v in row["versions"].items())
        )
        groups.setdefault(text, []).append(f"`{row['name']}`")
    if len(groups) == 1:
        return f"- {next(iter(groups))}.\n"
    lines = [f"- {text}: {', '.join(names)}." for text, names in groups.items()]
    return "\n".join(lines) + "\n"


def plot(row: dict[str, Any], path: Path) -> None:
    """The scaling plot of a row, as an SVG that repeats byte by byte."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.ticker import NullLocator

    from geolib.plotting import panels, use_style

    use_style()
    matplotlib.rcParams["svg.hashsalt"] = row["name"]
    figure, axes = panels()
    curve = row["curve"]
    for marker, (name, values) in zip("os^Dvx*", curve["series"].items(), strict=False):
        axes.loglog(
            curve["x"],
            [math.nan if v is None else v for v in values],
            marker=marker,
            label=name,
        )
    if len(curve["x"]) <= 8:  # the sizes themselves, not powers of ten that collide
        axes.set_xticks(curve["x"], [f"{x:g}" for x in curve["x"]])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(curve["x_label"])
    axes.set_ylabel(curve["y_label"])
    axes.set_title(row["title"])
    axes.legend()
    _save(figure, path)


def plot_overview(rows: list[dict[str, Any]], path: Path) -> None:
    """Every ratio as a dot, a line for each part, as an SVG that repeats byte by byte."""
    import matplotlib

    matplotlib.use("Agg")
    from geolib.plotting import COLORS, panels, use_style

    use_style()
    matplotlib.rcParams["svg.hashsalt"] = "overview"
    figure, axes = panels(width=7.2, height=3.2)
    found = {t: _ratios(_mine(rows, name)) for name, t in CHAPTERS.items()}
    found = {title: ratios for title, ratios in found.items() if ratios}
    for place, ratios in enumerate(found.values()):
        far = [COLORS["blue" if x < 1 else "orange"] for x in ratios]
        axes.scatter(ratios, [place] * len(ratios), c=far, s=42, alpha=0.75)
    axes.axvline(1, color=COLORS["ink"], lw=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("ours over theirs: less to the left, more to the right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.svg")
    figure.savefig(partial, metadata={"Date": None})
    plt.close(figure)
    os.replace(partial, path)


def write_beside(results: Path = RESULTS) -> None:
    """Write the page and its plots into the folder `book` beside the results' folder.

    A plot whose row is gone is removed.
    """
    rows = json.loads(results.read_text()) if results.exists() else []
    target = results.parent.parent / "book" / "benchmarks.md"
    plots = target.parent / "_static" / "benchmarks"
    wanted = set()
    for row in rows:
        if row.get("curve"):
            path = plots / f"{row['name'].replace('.', '-')}.svg"
            plot(row, path)
            wanted.add(path)
    if any("peers" in r and _ratios([r]) for r in rows):
        plot_overview(rows, plots / "overview.svg")
        wanted.add(plots / "overview.svg")
    for path in plots.glob("*.svg"):
        if path not in wanted:
            path.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(page(rows))
    os.replace(partial, target)


def _under(text: str, small: str) -> str:
    """A cell of two lines: eight columns would not fit a page."""
    return f"{text}<br><small>{small}</small>" if small else text


def _line(cells: list[str]) -> str:
    text = [str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(text)} |"


def _quantity(value: float | None, unit: str, timing: dict | None = None) -> str:
    if value is None or math.isnan(value):
        return ""
    unit = {"ratio": "times", "error": ""}.get(unit, unit)
    if unit != "s":
        digits = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
        return f"{digits} {unit}".strip()
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale or name == "µs":
            break
    text = f"{value:,.0f} s" if value >= 1000 else f"{value / scale:.3g} {name}"
    if timing is not None:
        low, high = timing["quartiles"]
        text += f" ({low / scale:.3g} to {high / scale:.3g})"
    return text


def _peer(peer: dict[str, Any] | None, unit: str) -> list[str]:
    if peer is None:
        return ["none", "", ""]
    if peer["not_run"]:
        return [_under(f"not run: {peer['not_run']}", peer["name"]), "", ""]
    name = f"{peer['name']} {peer['version'] or ''}".strip()
    ratio = "" if peer["ratio"] is None else f"{peer['ratio']:.3g}"
    if peer["ratio_quartiles"]:
        low, high = peer["ratio_quartiles"]
        ratio += f" ({low:.3g} to {high:.3g})"
    error = "" if peer["agreement"] is None else f"{peer['agreement']:.1e}"
    theirs = _quantity(peer["value"], unit, peer["timing"])
    return [_under(theirs, name), ratio, error]


def _verdict(row: dict[str, Any]) -> str:
    if not row["bar"]:
        return "none"
    sign, bar = row["bar"].split(" ")
    sign = {"<=": "≤", ">=": "≥"}.get(sign, sign)
    return f"{row['of']} {sign} {bar}: {row['verdict']}"


if __name__ == "__main__":
    write_beside()
