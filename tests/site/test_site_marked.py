"""The pages of a book that is not whole, in a real browser: the mini book's."""

import re
import shutil
import sys

import browser
import pytest
import test_site_pages as pages
from browser import served

pytestmark = [
    pytest.mark.press,
    pytest.mark.slow,
    pytest.mark.skipif(browser.executable() is None, reason="NO BROWSER: no Chromium"),
]
# What each banner names, how far its page is shown, and what must not be on it.
SHOWN = {
    "01-whole": ("changed after it was executed", "It is kept", "not whole: "),
    "02-claim": ("ClaimFailed: demo.broken", "FAILS", "never said"),
    "03-raises": ("cell 4 `raise ValueError", "ValueError: no `such` <thing>", "a = b"),
    "04-magic": ("cell 3 `%matplotlib inline`", "%matplotlib inline", "Traceback"),
    "05-new": ("was not executed", "The page five", "z = 1"),
}


sys.path.insert(0, str(pages.ROOT / "book" / "_ext"))
from print_book import in_order, print_book  # noqa: E402


@pytest.fixture(scope="module")
def site(mini_book):
    """`(page, address)`: one page object for all tests, and where the site is."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p, served(mini_book[0]) as address:
        running = browser.start(p)
        yield pages.opened(running, "light-wide"), address
        running.close()


def looks(page, address, name):
    """Show a document in each view, and check there what must hold of every page."""
    page.complaints.clear()
    for view in browser.views(page, f"{address}/{name}.html"):
        pages.check(page)
        yield view
    assert page.complaints == []


def banner(page):
    """The banner's text, once it is seen whole, above everything but the heading."""
    mark = page.locator("article .press-mark")
    assert mark.count() == 1
    assert mark.is_visible()
    box = mark.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= page.width
    cut = "e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight"
    assert not mark.evaluate(cut)
    before = "e => e.previousElementSibling.tagName"
    assert mark.evaluate(before) == "H1"
    assert "danger" in mark.get_attribute("class")
    return mark.inner_text()


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_that_is_not_whole_is_shown_so_far_under_its_banner(site, name):
    page, address = site
    named, shown, absent = SHOWN[name]
    for _ in looks(page, address, f"chapters/demo/{name}"):
        text = banner(page)
        assert text.startswith("This page is not whole")
        assert named in text
        article = page.locator("article").inner_text().replace(text, "")
        assert shown in article
        assert absent not in article
        assert "The page five" in page.locator("nav.bd-links").text_content()


def test_the_landing_page_counts_what_is_not_whole_and_names_it(site):
    page, address = site
    for _ in looks(page, address, "book/intro"):
        text = banner(page)
        assert text.startswith("This book is not whole")
        assert "5 of 5 notebooks are not whole" in text
        for name in SHOWN:
            assert f"demo/{name}" in text


def test_the_rows_of_the_ledger_say_so_and_lead_to_the_page(site):
    page, address = site
    verdicts = [("Two is big", "FAILS"), ("demo.later", "not reached"),
                ("It is kept", "✓")]  # fmt: skip
    for _ in looks(page, address, "book/claims"):
        rows = [r.locator("td") for r in page.locator(".ledger tbody tr").all()]
        seen = [(r.first.text_content(), r.nth(3).text_content()) for r in rows]
        assert seen == verdicts
        assert all(r.nth(3).locator("span").is_visible() for r in rows)
    page.get_by_role("link", name="Two is big").click()
    page.wait_for_load_state("networkidle")
    anchor = page.evaluate("location.hash.slice(1)")
    assert page.url.startswith(f"{address}/chapters/demo/02-claim.html")
    assert page.locator(f"#{anchor}.claim-fails").is_visible()


WIDE = (
    r'<div class="math notranslate nohighlight">\[' + "a + " * 150 + r"b\]</div>"
    '<div class="table-box"><table><tr>' + "<td>wide</td>" * 60 + "</tr></table></div>"
)
CUT = """() => [...document.querySelectorAll('mjx-container[display="true"], table, img')]
  .filter(e => e.getBoundingClientRect().right > document.body.clientWidth + 1
    || e.closest('mjx-container, .table-box').scrollWidth
       > e.closest('mjx-container, .table-box').clientWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""


def test_the_book_is_one_pdf_with_all_its_pages_and_nothing_cut(
    site, mini_book, tmp_path
):
    html, pdf = tmp_path / "html", tmp_path / "a book.pdf"
    shutil.copytree(mini_book[0], html)
    third = html / "chapters" / "demo" / "03-raises.html"
    third.write_text(third.read_text().replace("</article>", f"{WIDE}</article>"))
    names = ["book/intro", *(f"chapters/demo/{n}" for n in SHOWN)]
    names.insert(5, "book/claims")
    assert in_order(html) == [f"{name}.html" for name in names]
    assert print_book(html, pdf) == len(names)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", pdf.read_bytes())) >= len(names)

    page, _ = site
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})
    page.goto((tmp_path / "print.html").as_uri(), wait_until="load")
    page.wait_for_selector("body[data-ready]", timeout=60000)
    titles = page.locator("article h1").all_text_contents()
    assert [t.rstrip("#") for t in titles][:3] == [
        "The little book", "The page one", "The page two",
    ]  # fmt: skip
    assert len(titles) == len(names)
    assert page.locator("mjx-container").count() == 2
    assert page.evaluate(CUT) == []
    heads = page.locator(".ledger thead th button")
    assert heads.count() >= 4
    assert all(h.is_visible() for h in heads.all())
    assert page.locator("details:visible, .ledger-filter:visible").count() == 0
    lost = (
        "a => a.map(x => x.hash.slice(1)).filter(x => x && !document.getElementById(x))"
    )
    assert page.eval_on_selector_all('article a[href^="#"]', lost) == []
    page.emulate_media(media="screen")


def test_a_book_that_cannot_be_printed_says_why(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="run `geolib html` first"):
        print_book(tmp_path, tmp_path / "x.pdf")
    (tmp_path / "index.html").write_text("a page")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GEOLIB_CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match="set GEOLIB_CHROMIUM"):
        print_book(tmp_path, tmp_path / "x.pdf")
