"""`python -m benchmarks.render`: the page `book/benchmarks.md` from the results."""

from __future__ import annotations

import json
import math
import os
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

Each row times this library and a named public one in the same process, on one thread,
in alternating rounds, after checking that both compute the same thing. *Ratio* is our
CPU time over theirs, the median over rounds with its quartiles: below 1 we are faster.
The last column says whether the row meets the bar that was set before it was measured.
`make bench` repeats all of it; a peer that is not at hand is reported as not run, with the reason.
"""
COLUMNS = ("what", "ours", "theirs", "ratio", "error", "bar")


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page as MyST text."""
    if not rows:
        return f"{HEAD}\nNothing has been measured yet.\n"
    parts = [HEAD, summary(rows)]
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
    return "\n".join(parts).rstrip() + "\n"


def summary(rows: list[dict[str, Any]]) -> str:
    """One screen: how many bars each part meets, its ratio, and the rows that miss."""
    lines = [
        "## On one screen\n",
        "| part | rows | bars met | median ratio (peers) |",
    ]
    lines.append("| --- | --- | --- | --- |")
    for name, title in CHAPTERS.items():
        mine = [r for r in rows if r["name"].split(".")[0] == name and "error" not in r]
        met = [r["verdict"] for r in mine if r["bar"]]
        found = [p["ratio"] for r in mine for p in r["peers"] if p["ratio"]]
        ratio = f"{median(found):.2g} ({len(found)})" if found else "no peer"
        bars = f"{met.count('met')} of {len(met)}" if met else "no bar"
        lines.append(_line([title, str(len(mine)), bars, ratio]))
    missed = [r for r in rows if r.get("verdict") == "missed"]
    lines.append("\nA bar that is missed:" if missed else "\nNo bar is missed.")
    for row in missed:
        value = _quantity(row["figure"], row["unit"] if row["of"] == "ours" else "")
        name, bar = row["title"], row["bar"]
        lines.append(f"- {name}: {row['of']} {value.strip()}, bar {bar}.")
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
    """One paragraph for each row that has something to add."""
    found = [f"*{row['title']}.* {row['note']}\n" for row in rows if row.get("note")]
    return found


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
    from matplotlib import pyplot as plt
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
    if unit != "s":
        return f"{value:.3g} {unit}"
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale or name == "µs":
            break
    text = f"{value / scale:.3g} {name}"
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
    return f"{row['of']} {row['bar']}: {row['verdict']}"


if __name__ == "__main__":
    write_beside()
