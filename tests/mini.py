"""A small book that fails in every way, pressed and rendered; for tests of the site too."""

import json
import os
import shutil
import subprocess
import sys

from conftest import HEADER, ROOT, cell

CLAIMS = "from geolib.claims import claim\n"


def page(name, *cells):
    """The text of a notebook with a title of its own."""
    return HEADER.replace("# A page", f"# The page {name}") + "".join(cells)


def make(folder):
    """Write the book: one page is whole, one claim breaks, one cell raises, one is none."""
    kept = cell(
        CLAIMS + 'claim("demo.kept", "it is kept", measured=size, bound="<= 9")'
    )
    broken = cell(
        CLAIMS + 'claim("demo.broken", "two is big", measured=2, bound="> 3")'
    )
    later = cell('claim("demo.later", "never said", measured=1, bound="<= 3")')
    gate = (
        "\n```{exercise-start}\n:label: ex-a\n```\nTry it: {glue:text}`demo.later`.\n"
    )
    texts = {
        "01-whole": page("one", kept, "\nSee {eq}`eq-late`.\n"),
        "02-claim": page("two", gate, broken, later, "\n```{exercise-end}\n```\n"),
        "03-raises": page(
            "three", cell("print('before')"), cell("x = {'<b>': `1`}".replace("`", ""))
            , cell("raise ValueError('no `such` <thing>')"),
            "\n```{math}\n:label: eq-late\na = b\n```\n",
        ),
        "04-magic": page("four", cell("y = 1"), cell("%matplotlib inline")),
    }  # fmt: skip
    chapter = folder / "chapters" / "demo"
    chapter.mkdir(parents=True)
    for name, text in texts.items():
        (chapter / f"{name}.md").write_text(text)
    (folder / "chapters" / "profiles.yml").write_text("{}\n")
    toc = "".join(f"      - file: chapters/demo/{n}\n" for n in texts)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nparts:\n  - caption: Demo\n    chapters:\n"
        f"{toc}      - file: book/claims\n"
    )
    for name in ("_config.yml", "book/_ext", "book/_static", "book/references.bib"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, target)
    (folder / "book" / "intro.md").write_text(
        "# The little book\n\nWelcome, $a = b$.\n"
    )
    (folder / "book" / "claims.md").write_text("# The ledger\n\n<!-- ledger -->\n")
    (folder / "node_modules").symlink_to(ROOT / "node_modules")


def geolib(folder, *arguments):
    """The real command there: its exit code and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "geolib", *arguments],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(ROOT), CI="true"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def shown(folder):
    """The article of every rendered page."""
    site = folder / "_build" / "small" / "html"
    texts = {
        p: p.read_text() for p in site.rglob("*.html") if "<article" in p.read_text()
    }
    return {
        p.relative_to(site).with_suffix("").as_posix(): t[t.index("<article") :]
        for p, t in texts.items()
    }


def pressed(folder):
    """Write and press the book, then change it; what the commands said and showed.

    Returns:
        `first`, after `geolib book`, `strict`, after `html --strict`, and `second`, after a
        page was added that no run executed and another was altered, `again`, with nothing
        changed, and `odd`, after the table of contents named a number: each with `code` and
        `text` of the command and whether it `rendered`; the first and the second with
        `pages`.
    """
    html = ("html", "--profile", "small")
    site = folder / "_build" / "small" / "html"
    make(folder)
    story = {}

    def command(name, *arguments):
        before = site.stat().st_ino if site.exists() else 0
        code, text = geolib(folder, *arguments)
        rendered = site.stat().st_ino != before  # a new tree takes the old one's place
        story[name] = {"code": code, "text": text, "rendered": rendered}

    command("first", "book", "--profile", "small", "--jobs", "2")
    story["first"]["pages"] = shown(folder)
    ledger = (folder / "_build" / "claims.json").read_text()
    story["first"]["rows"] = {
        r["key"]: r["verdict"] for r in json.loads(ledger)["rows"]
    }
    command("strict", *html, "--strict")
    chapter = folder / "chapters" / "demo"
    (chapter / "05-new.md").write_text(page("five", cell("z = 1")))
    with (folder / "_toc.yml").open("a") as toc:
        toc.write("      - file: chapters/demo/05-new\n")
    with (chapter / "01-whole.md").open("a") as whole:
        whole.write("\nOne more word.\n")
    command("second", *html)
    story["second"]["pages"] = shown(folder)
    command("again", *html)
    table = (folder / "_toc.yml").read_text()
    (folder / "_toc.yml").write_text(table.replace("book/intro", "3"))
    command("odd", *html)
    return story
