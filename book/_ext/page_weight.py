"""Lighter pages: of styles and icons what the site shows, figures in few colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

# Scripts that no page needs: icons come by the style sheet, and what the theme takes
# Bootstrap for, book.js does; live code and tabs are not used.
SCRIPT = re.compile(
    r"<(?:script|link)\b[^>]*(?:vendor/fontawesome/[\d.]+/(?:js|webfonts)/|"
    r"scripts/bootstrap\.js|sphinx-thebe\.|design-tabs\.)[^>]*>(?:\s*</script>)?"
)
# Marks of highlighted code that have the colour of plain text.
PLAIN = re.compile(r'<span class="(?:n|nn|p|w|pre)">([^<]*)</span>')
FACE = re.compile(r"@font-face\s*\{[^}]*\}")
FONTS = {"fa-solid-900": 900, "fa-regular-400": 400, "fa-brands-400": 400}
# What stands between the braces of a style sheet, and what only looks like one.
MARK = re.compile(r"""/\*.*?\*/|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]""", re.S)
NESTED = ("@media", "@supports", "@layer")
CLASS = re.compile(r"\.(-?[A-Za-z_](?:[\w-]|\\.)*)")
COMMENT = re.compile(r"/\*(!?).*?\*/", re.S)  # with a mark: a licence, which stays
INSIDE = re.compile(r"\([^()]*\)|\[[^\]]*\]")
SET_BY_SCRIPTS = {"show", "active"}


def lighter(page: str) -> str:
    """A page without the scripts and marks that change nothing on it."""
    page = SCRIPT.sub("", page)
    return PLAIN.sub(r"\1", PLAIN.sub(r"\1", page))  # a mark may lie within another


def lighten(site: Path, pages: list[str]) -> None:
    """Cut styles and icon fonts down to what these pages and the scripts name."""
    named = {*SET_BY_SCRIPTS}
    for attribute in {a for p in pages for a in re.findall(r'class="([^"]*)"', p)}:
        named |= {*attribute.split()}
    for script in site.glob("_static/**/*.js"):
        if not {"bootstrap.js", "mathjax", "vendor"} & {*script.parts}:
            named |= {*re.findall(r"[\w-]+", script.read_text())}
    sheets = {p: p.read_text() for p in site.glob("_static/**/*.css")}
    for sheet, css in sheets.items():
        sheet.write_text(purged(css, named))
    for font in site.glob("_static/mathjax/**/*.woff"):
        _cut(font, font)
    for sheet in site.glob("_static/vendor/fontawesome/*/css/all.min.css"):
        _subset_icons(sheet, " ".join(p.read_text() for p in sheets))


def purged(css: str, named: set[str]) -> str:
    """A style sheet without the rules for classes that nothing names.

    Examples:
        >>> purged("a,.b .c{top:0} @media print{.d{top:1}} .b{top:2}", {"b"})
        'a{top:0}.b{top:2}'
    """
    kept = [m[0] for m in COMMENT.finditer(css) if m[1]]
    for head, body in _rules(COMMENT.sub("", css)):
        if body is None:
            kept.append(head)
        elif head.startswith(NESTED):
            inner = purged(body, named)
            kept += [f"{head}{{{inner}}}"] if inner else []
        elif head.startswith("@"):
            kept.append(f"{head}{{{body}}}")
        else:
            live = [s for s in _selectors(head) if _classes(s) <= named]
            kept += [f"{','.join(live)}{{{body}}}"] if live else []
    return "".join(kept)


def _rules(css: str) -> Iterator[tuple[str, str | None]]:
    """Head and body of each rule; a statement without a body has None."""
    depth = start = inner = 0
    for m in MARK.finditer(css):
        if m[0] == "{":
            depth += 1
            inner = m.end() if depth == 1 else inner
        elif m[0] == "}":
            depth -= 1
            if depth == 0:
                yield css[start : inner - 1].strip(), css[inner : m.start()].strip()
                start = m.end()
        elif m[0] == ";" and depth == 0:
            yield css[start : m.end()].strip(), None
            start = m.end()


def _selectors(head: str) -> list[str]:
    """The selectors of a list; commas within parentheses part none."""
    return re.split(r",(?![^(]*\))", head)


def _classes(selector: str) -> set[str]:
    """The classes that an element must have; those of `:not()` and `:is()` it may."""
    while (outer := INSIDE.sub("", selector)) != selector:
        selector = outer
    return {name.replace("\\", "") for name in CLASS.findall(selector)}


def lighten_figures(site: Path) -> None:
    """Figures in as few colours as are enough; each is cut once, and kept beside the site."""
    kept = site.with_name("figures")
    kept.mkdir(exist_ok=True)
    for figure in site.glob("_images/*.png"):
        content = figure.read_bytes()
        cut = kept / f"{sha256(content).hexdigest()}.png"
        if not cut.exists():
            cut.write_bytes(in_few_colors(content))
        figure.write_bytes(cut.read_bytes())


def in_few_colors(png: bytes) -> bytes:
    """A picture in 32, 64, 128 or 256 colours, as it needs; as it was where that is no less."""
    from PIL import Image, ImageChops, ImageStat

    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P" or picture.convert("RGBA").getextrema()[3][0] < 255:
        return png
    plain = picture.convert("RGB")
    # Colours that cover all, moved to where the pixels are, are half of the bytes of a
    # picture with shades, and take a second to find.
    moved = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1}
    ways = (
        (32, moved, 2.75), (64, {}, 1.6), (64, moved, 2.75), (128, moved, 2.75), (256, {}, 256.0)
    )  # fmt: skip
    for colors, how, most in ways:
        cut = plain.quantize(colors, dither=Image.Dither.NONE, **how)
        off = ImageStat.Stat(ImageChops.difference(cut.convert("RGB"), plain))
        if max(off.rms) < most:
            break
    file = io.BytesIO()
    cut.save(file, "PNG", optimize=True)
    return min(file.getvalue(), png, key=len)


def _subset_icons(sheet: Path, styles: str) -> None:
    """The icons that are left; styles of the theme name icons by their code."""
    codes = {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})\b", styles)}
    faces = "".join(_face(name) for name in FONTS)
    sheet.write_text(FACE.sub("", sheet.read_text()) + faces)
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
    whole = font.with_suffix(".ttf")
    if not whole.exists():
        return  # an earlier build cut this one
    _cut(whole, font.with_suffix(".woff"), codes)
    for old in font.parent.glob(f"{font.name}.*"):
        if old.suffix != ".woff":
            old.unlink()


def _cut(whole: Path, target: Path, codes: set[int] | None = None) -> None:
    """A font with these glyphs, or all of them, and without hints for old screens."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(whole)
    maker = Subsetter(Options(hinting=False, drop_tables=["FFTM"]))
    maker.populate(unicodes=font.getBestCmap() if codes is None else codes)
    maker.subset(font)
    font.flavor = "woff"
    font.save(target)
