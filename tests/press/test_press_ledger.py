"""The ledger's second column: a GPU run that was kept as data beside the pages."""

import json
import re

import pytest
from compare_ledgers import differences
from conftest import cell
from page_gpu import GPU_LEDGER
from page_gpu import load_device_ledger as kept
from page_gpu import save_device_ledger as keep
from page_marks import ledger_page as page_table

from geolib.press import Build, Ledger, PressError
from geolib.press import ledger as module


def row(key, device="cpu", **changed):
    fields = {
        "key": key, "text": f"about {key}", "measured": 0.5, "shown": "0.5",
        "bound": "<= 1", "verdict": "holds", "paper": None, "reason": None,
        "holds": True, "notebook": "demo/01-a", "device": device,
    }  # fmt: skip
    return fields | changed


def cells(page):
    page = page.partition("ledger-filter")[2]  # below the one screen of counts
    return [
        re.findall(r"<td>(.*?)</td>", r)
        for r in re.findall("<tr[^>]*>(.*?)</tr>", page)
    ]


def test_a_kept_gpu_run_is_a_column_of_the_cpus_page(tmp_path):
    here = Ledger("book", [row("demo.a"), row("demo.b"), row("demo.cpu_only")])
    assert len(cells(page_table(here))[1]) == 5
    counted = '<a href="#ledger-demo">Demo</a></td><td>3</td>'
    assert counted in page_table(here)
    assert "Device: cpu." in page_table(here)  # said once, not in every row
    both = Ledger("full", [row("demo.a"), row("demo.b", "other")])
    assert [c[5] for c in cells(page_table(both))[1:]] == ["cpu", "other"]
    there = Ledger(
        "full",
        [
            row("demo.a", "Some GPU <1>", measured=0.25, shown="0.25"),
            row("demo.b", "Some GPU <1>", shown="", verdict="FAILS", measured=3e-9),
            row("demo.cpu_only"),
        ],
    )
    keep(there, tmp_path / GPU_LEDGER)
    second = kept(tmp_path / GPU_LEDGER)
    assert second.about["device"] == "Some GPU <1>"
    assert set(second.entries) == {"demo.a", "demo.b"}
    assert {"Python", "torch"} == set(second.about["versions"])
    page = page_table(here, second)
    assert '<th scope="col">On Some GPU &lt;1&gt;</th>' in page
    assert "profile full" in page
    a, b, only = cells(page)[1:]
    assert a[1].startswith("0.5")
    assert a[5].startswith("0.25 ")
    assert "verdict-holds" in a[5]
    assert b[5].startswith("3·10⁻⁹")
    assert "verdict-fails" in b[5]
    assert only[5] == ""


def test_a_cpu_run_is_not_kept_as_a_gpus(tmp_path):
    path = tmp_path / GPU_LEDGER
    with pytest.raises(PressError, match="got a CPU only; run `geolib run"):
        keep(Ledger("full", [row("demo.a")]), path)
    mixed = Ledger("full", [row("demo.a", "one"), row("demo.b", "two")])
    with pytest.raises(PressError, match="one kind of GPU, got one, two"):
        keep(mixed, path)
    assert not path.exists()
    assert kept(path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"device": "x"}'])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "claims-gpu.json"
    path.write_text(text)
    with pytest.raises(PressError, match=r"claims-gpu\.json: not a ledger"):
        kept(path)


def test_the_site_reads_the_file_that_the_command_keeps(book, monkeypatch):
    import page_site as site
    from typer.testing import CliRunner

    from geolib.press import cli

    gpu = Ledger("full", [row("demo.a", "Some GPU")])
    monkeypatch.chdir(book.root)
    monkeypatch.setattr(module, "collect", lambda notebooks, profile: gpu)
    done = CliRunner().invoke(cli.app, ["claims", "--profile", "full", "--keep"])
    assert done.exit_code == 0, done.output
    assert "book/claims-gpu.json: On Some GPU: profile full" in done.output
    (book.root / "book").mkdir(exist_ok=True)
    (book.root / "book/intro.md").write_text("# The book")
    (book.root / "book/claims.md").write_text("# Ledger\n\n<!-- ledger -->\n")
    (book.root / "book/gpu.md").write_text("# GPU\n\n<!-- cpu-notebooks -->\n")
    idle = book.add("demo/01-idle", cell("x = 1"))
    busy = book.add("demo/02-busy", cell("print(device)"))
    for notebook in (idle, busy):
        staged = Build(notebook.root, "book").stage(notebook)
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text("{}")
    (book.root / "_config.yml").write_text("title: A book\n")
    found = Ledger("book", [row("demo.a")])
    monkeypatch.setattr(site, "of_pages", lambda p, pages: found)
    monkeypatch.setattr(site, "_render", lambda *a, **k: None)
    monkeypatch.setattr(site, "_publish", lambda *a: None)
    site.build_site(Build(book.root, "book"))
    page = (book.root / "_build/book/pages/book/claims.md").read_text()
    assert "On Some GPU" in page
    gpu_page = (book.root / "_build/book/pages/book/gpu.md").read_text()
    assert gpu_page == "# GPU\n\n- {doc}`/chapters/demo/01-idle`\n"
    assert json.loads((book.root / "_build/claims.json").read_text())["rows"]


def test_two_ledgers_are_compared_to_rounding():
    def ledger(**more):
        row = {"key": "demo.a", "verdict": "holds", "bound": "<= 2", "measured": 1.0}
        return {"rows": [row | more]}

    assert differences(ledger(), ledger(measured=1 + 1e-9)) == []
    assert differences(ledger(measured=3), ledger(measured=3)) == []
    for more in (
        {"measured": 1 + 1e-8},
        {"measured": 1},
        {"measured": None},
        {"verdict": "FAILS"},
        {"bound": "<= 3"},
    ):
        assert len(differences(ledger(), ledger(**more))) == 1
    lines = differences(ledger(), ledger(key="demo.b"))
    assert lines == ["gone: demo.a", "new: demo.b"]
