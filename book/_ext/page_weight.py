"""Lighter pages: of the icon library only the icons that the site shows."""

from __future__ import annotations

import re
from pathlib import Path

SCRIPT = re.compile(
    r'<script src="[^"]*vendor/fontawesome/[^"]*"></script>|'
    r'<link rel="preload" as="font"[^>]*vendor/fontawesome/[^>]*>'
)
RULE = re.compile(r'(?:\.fa-[\w-]+:before,?)+\{content:"[^"]*"\}')
FACE = re.compile(r"@font-face\{[^}]*\}")
FONTS = {"fa-solid-900": 900, "fa-regular-400": 400, "fa-brands-400": 400}


def without_scripts(page: str) -> str:
    """A page that draws its icons by the style sheet alone, not by a second library."""
    return SCRIPT.sub("", page)


def subset_icons(site: Path, pages: list[str]) -> None:
    """Cut the icon fonts and their style sheet down to what pages and styles name.

    The theme's own styles name icons by their code, pages and scripts by their class.
    """
    for sheet in site.glob("_static/vendor/fontawesome/*/css/all.min.css"):
        css = sheet.read_text()
        scripts = [p.read_text() for p in site.glob("_static/scripts/*.js")]
        classes = set(re.findall(r"fa-[\w-]+", " ".join([*pages, *scripts])))
        kept = {
            rule
            for rule in RULE.findall(css)
            if classes & set(re.findall(r"fa-[\w-]+", rule))
        }
        styles = [p.read_text() for p in site.glob("_static/**/*.css") if p != sheet]
        named = re.findall(r"\\(f[0-9a-f]{3})\b", " ".join([*kept, *styles]))
        codes = {int(code, 16) for code in named}
        css = RULE.sub(lambda m, kept=kept: m[0] if m[0] in kept else "", css)
        css = FACE.sub("", css) + "".join(_face(name) for name in FONTS)
        sheet.write_text(css)
        for name in FONTS:
            _subset(sheet.parents[1] / "webfonts" / name, codes)


def _face(name: str) -> str:
    family = "Brands" if "brands" in name else "Free"
    return (
        f'@font-face{{font-family:"Font Awesome 6 {family}";font-style:normal;'
        f"font-display:block;font-weight:{FONTS[name]};"
        f'src:url(../webfonts/{name}.woff) format("woff")}}'
    )


def _subset(font: Path, codes: set[int]) -> None:
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    whole = font.with_suffix(".ttf")
    if not whole.exists():
        return  # an earlier build cut this one
    cut = TTFont(whole)
    maker = Subsetter(Options())
    maker.populate(unicodes=codes)
    maker.subset(cut)
    cut.flavor = "woff"
    cut.save(font.with_suffix(".woff"))
    for old in font.parent.glob(f"{font.name}.*"):
        if old.suffix != ".woff":
            old.unlink()
